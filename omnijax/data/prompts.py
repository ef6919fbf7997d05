"""Instructions that tasks are asked with, in as many languages and wordings as are given.

N documents  T tasks
"""

from collections.abc import Callable, Sequence

import numpy as np

from omnijax.data import documents
from omnijax.data.order import mix


class Prompts:
  """The instructions of each task, as ids of text.

  Args:
    given: "TASK: WORDS" each, as `config.Data.prompts` has them.
    encode: words to ids.
  """

  def __init__(self, given: Sequence[str] = (), encode: Callable[[str], list[int]] = list):
    self.ids: list[list[np.ndarray]] = [[] for _ in documents.TASKS]
    for entry in given:
      task, _, words = entry.partition(":")
      ids = np.array(encode(words.strip()), np.int32)
      self.ids[documents.TASKS.index(task)].append(ids)
    self.longest_T = np.array([max(map(len, some), default=0) for some in self.ids])

  def choose(self, task_N: np.ndarray, dropped_N: np.ndarray, chance_N: np.ndarray) -> np.ndarray:
    """Which of its task's instructions each document is asked with; -1 is none: int16 [N].

    Args:
      task_N: indices into `documents.TASKS`.
      dropped_N: whether all that asks is left out.
      chance_N: uint64, uniform.
    """
    counts_T = np.array([len(some) for some in self.ids])
    n_N = counts_T[task_N]
    pick_N = (mix(chance_N, 1) >> np.uint64(33)).astype(np.int64) % np.maximum(n_N, 1)
    return np.where((n_N > 0) & ~dropped_N, pick_N, -1).astype(np.int16)

  def lengths(self, task_N: np.ndarray, prompt_N: np.ndarray) -> np.ndarray:
    """Positions that the instructions take: int64 [N]."""
    if not self.longest_T.any():
      return np.zeros(len(task_N), np.int64)
    table_TX = np.zeros((len(self.ids), 1 + max(map(len, self.ids))), np.int64)  # the last is none
    for task, some in enumerate(self.ids):
      table_TX[task, : len(some)] = [len(ids) for ids in some]
    return table_TX[task_N, prompt_N]

  def of(self, task: int, prompt: int) -> np.ndarray | None:
    """The ids of an instruction."""
    return self.ids[task][prompt] if 0 <= prompt < len(self.ids[task]) else None
