"""Speech that has been said, so that clients can name it instead of sending it back.

L samples
"""

import collections
import time
import uuid
from collections.abc import Callable

import numpy as np

_LIFE_S = 3600
_MOST_BYTES = 64_000_000


class Memory:
  """The newest spoken answers, for an hour at most, and as many as fit 64 MB."""

  def __init__(self, clock: Callable[[], float] = time.time):
    self._clock = clock
    self._kept: collections.OrderedDict[str, tuple[float, np.ndarray, str]]
    self._kept = collections.OrderedDict()
    self._bytes = 0

  @staticmethod
  def name() -> str:
    """A new id, which can't be guessed."""
    return f"audio_{uuid.uuid4().hex}"

  def keep(self, name: str, wave_L: np.ndarray, words: str) -> int:
    """Keeps float32 samples and their words; returns the Unix time at which they are forgotten."""
    until = self._clock() + _LIFE_S
    self._kept[name] = (until, wave_L, words)
    self._bytes += wave_L.nbytes
    while self._kept and (self._bytes > _MOST_BYTES
                          or next(iter(self._kept.values()))[0] < self._clock()):
      _, (_, old_L, _) = self._kept.popitem(last=False)
      self._bytes -= old_L.nbytes
    return int(until)

  def recall(self, name: str) -> tuple[np.ndarray, str] | None:
    """Samples and words, or None where they are not known, or not any more."""
    until, wave_L, words = self._kept.get(name, (0.0, np.zeros(0, np.float32), ""))
    return (wave_L, words) if until >= self._clock() else None
