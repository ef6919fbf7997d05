"""When somebody speaks: by loudness, as the sound comes in.

L samples  T blocks of 20 ms
"""

import collections
import dataclasses
from typing import Literal

import numpy as np

_BLOCK_S = 0.02
_ONSET = 3  # loud blocks that make speech: a click is shorter
_FLOOR_S = 4.0  # speech has a pause in less; a fan has none
_ABOVE_DB = 10.0  # speech is so much louder than the floor
_LINGER_DB = 6.0  # what goes on may be quieter than what begins
_QUIETEST_DB = -100.0
_PAST = 100  # speeches remembered: who asks may be seconds behind


@dataclasses.dataclass(frozen=True)
class Change:
  """Speech started or stopped at this sample, counted from the first that was heard."""

  kind: Literal["started", "stopped"]
  sample: int


class Activity:
  """Finds speech in a sound that comes in pieces; how it is cut makes no difference.

  A block of 20 ms is loud when its level, without its mean, is over a fixed level and well over
  the quietest block of the last seconds. Three loud blocks are speech, which lasts until nothing
  was loud for a while.

  Args:
    sample_rate: samples per second.
    threshold: 0 to 1: speech is over -60 to -20 dBFS; 0.5 is -40 dBFS.
    silence_ms: speech stops after so much silence.
  """

  def __init__(self, sample_rate: int, *, threshold: float = 0.5, silence_ms: int = 500):
    self._block = round(sample_rate * _BLOCK_S)
    self.set(threshold=threshold, silence_ms=silence_ms)
    self._rest_L = np.zeros(0, np.float32)
    self._blocks = 0
    # (block, level) of the last seconds' quietest block, of the quietest since that, and so on. A
    # silence before all blocks is there so that who speaks from the first one on is heard.
    self._quietest = collections.deque([(0, _QUIETEST_DB)])
    self._loud = 0  # loud blocks in a row, up to now
    self._quiet = 0  # quiet ones in a row
    self._started: int | None = None
    self._past = collections.deque(maxlen=_PAST)  # (start, end) of speeches

  def set(self, *, threshold: float, silence_ms: int) -> None:
    """Changes what counts as speech, from now on."""
    self._level = 40 * threshold - 60
    self._patience = max(1, round(silence_ms / 1000 / _BLOCK_S))

  @property
  def started(self) -> int | None:
    """The sample at which the speech began that goes on; None in silence."""
    return self._started

  def spoke_at(self, sample: int) -> bool:
    """Whether a sample lies in one of the last speeches, or in that which goes on."""
    if self._started is not None and sample >= self._started:
      return True
    return any(start <= sample < end for start, end in self._past)

  def hear(self, wave_L: np.ndarray) -> list[Change]:
    """What changes in the next samples, float32 [L]."""
    wave_L = np.concatenate([self._rest_L, wave_L])
    whole = len(wave_L) - len(wave_L) % self._block
    self._rest_L = wave_L[whole:]
    power_T = np.var(wave_L[:whole].reshape(-1, self._block), axis=1, dtype=np.float64)
    level_T = 10 * np.log10(np.maximum(power_T, 10 ** (_QUIETEST_DB / 10)))
    changes = [self._hear(level) for level in level_T.tolist()]
    return [change for change in changes if change is not None]

  def _hear(self, level: float) -> Change | None:
    self._blocks += 1
    while self._quietest and self._quietest[-1][1] >= level:
      self._quietest.pop()
    self._quietest.append((self._blocks, level))
    if self._quietest[0][0] <= self._blocks - _FLOOR_S / _BLOCK_S:
      self._quietest.popleft()
    over = max(self._level, self._quietest[0][1] + _ABOVE_DB)
    loud = level > over - (_LINGER_DB if self._started is not None else 0)
    self._loud = self._loud + 1 if loud else 0
    self._quiet = 0 if loud else self._quiet + 1
    if self._started is None and self._loud >= _ONSET:
      self._started = (self._blocks - self._loud) * self._block
      return Change("started", self._started)
    if self._started is not None and self._quiet >= self._patience:
      # Where the silence has lasted long enough: what is answered ends here.
      stopped = self._blocks * self._block
      self._past.append((self._started, stopped - self._quiet * self._block))
      self._started = None
      return Change("stopped", stopped)
    return None
