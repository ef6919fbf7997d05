"""What fits a row: tasks that a document can be rendered to, and documents that must be cut.

N documents  T tasks
"""

from typing import Any

import numpy as np

from omnijax import config as config_lib
from omnijax.data import documents
from omnijax.data.lengths import Lengths
from omnijax.data.prompts import Prompts

_CHUNK = 1 << 20  # documents looked at together


def usable(counts_N: Any, data: config_lib.Data, prompts: Prompts = Prompts()) -> np.ndarray:
  """Which tasks each document allows and a row has room for, however asked: bool [N, T]."""
  out_NT = documents.allowed(counts_N)
  for task in range(len(documents.TASKS)):
    which = np.flatnonzero(out_NT[:, task])
    if len(which):
      positions, frames = documents.lengths(counts_N[which], task, False, data)
      out_NT[which, task] = (
        positions + prompts.longest_T[task] <= data.positions) & (frames <= data.frames)
  return out_NT


def unfit(lengths: Lengths, data: config_lib.Data) -> np.ndarray:
  """Documents, in order, that no task makes short enough for a row."""
  # Most fit as they are: only what comes near the budgets has to be looked at in full.
  late = max(data.acoustic_delay - 1, 0) + data.acoustic_delay + data.text_delay
  slack = int(lengths.forms["audio"].max(initial=0)) * late
  found = []
  for start in range(0, len(lengths), _CHUNK):
    rows = lengths.rows[start : start + _CHUNK]
    near = np.flatnonzero((rows["positions"] > data.positions - slack)
                          | (rows["frames"] > data.frames - slack))
    found.append(start + near[~usable(lengths[start + near], data).any(1)])
  return np.concatenate(found) if found else np.zeros(0, np.int64)


def mean_positions(lengths: Lengths) -> float:
  """Of the documents of a source, rendered plain."""
  return float(lengths.rows["positions"].mean(dtype=np.float64)) if len(lengths) else 1.0


def check(lengths: Lengths, lost: np.ndarray, data: config_lib.Data, name: str) -> None:
  """Raises if there are documents of a kind of which no single one fits.

  Args:
    lengths: of a source.
    lost: its documents that fit no row, whole or cut.
    data: the budgets.
    name: of the source.

  Raises:
    ValueError: names the smallest such document, and the budget that it needs.
  """
  if not len(lost):
    return
  sound, shown = (lengths.forms[field] > 0 for field in ("audio", "images"))
  all_of = np.bincount(lengths.rows["form"], minlength=len(lengths.forms))
  gone = np.bincount(lengths.rows["form"][lost], minlength=len(lengths.forms))
  for what, mine in (("one recording", sound), ("one image", shown),
                     ("one text", ~sound & ~shown)):
    if not gone[mine].sum() or gone[mine].sum() < all_of[mine].sum():
      continue
    some = lengths[lost[mine[lengths.rows["form"][lost]]]]
    positions_N, frames_N = documents.lengths(some, documents.PLAIN, False, data)
    i = int(np.maximum(positions_N / data.positions, frames_N / data.frames).argmin())
    short = [f"needs {need} {field}, Data.{field} is {have}; raise Data.{field} to {need}"
             for field, need, have in (("positions", int(positions_N[i]), data.positions),
                                       ("frames", int(frames_N[i]), data.frames)) if need > have]
    raise ValueError(f"row budget too small for {what}: the smallest such document of {name} "
                     f"{' and '.join(short)} or more.")
