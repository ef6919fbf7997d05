"""Which documents share which row: a pure function of (seed, weights, lengths).

The documents of all sources form one endless stream: each source permuted anew in every epoch,
the sources interleaved by weight. The stream is cut into windows; each is packed by itself and
its rows shuffled. A prefix sum over the rows of the windows makes any row reachable by planning
its window alone, so the state of a data set is one integer.

N documents of a window  T tasks
"""

import bisect
import collections
import dataclasses
import fractions
import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from omnijax import config as config_lib
from omnijax.data import documents
from omnijax.data.pack import pack

_WORD = (1 << 64) - 1
_PERIOD = 1 << 20  # longest pattern of sources
_KEPT = 3  # windows kept, enough for readers of neighbouring batches
_CHUNK = 1 << 20  # documents looked at together


def key(*parts: int) -> int:
  """64 bits that depend on every part and on their order."""
  out = 0x9E3779B97F4A7C15
  for part in parts:
    out = _finish((out ^ (part & _WORD)) * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15 & _WORD)
  return out


def _finish(x: int) -> int:
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _WORD
  x = (x ^ x >> 27) * 0x94D049BB133111EB & _WORD
  return x ^ x >> 31


def mix(x_N: np.ndarray, salt: int) -> np.ndarray:
  """64 hashed bits for each number; source: the finaliser of SplitMix64 (Steele et al. 2014)."""
  x_N = x_N.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
  x_N = (x_N ^ x_N >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
  x_N = (x_N ^ x_N >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
  return x_N ^ x_N >> np.uint64(31)


def permute(index_N: np.ndarray, size: int, salt: int) -> np.ndarray:
  """A keyed permutation of range(size), for some of its indices, without making it whole.

  A Feistel network over two digits a x b >= size, walked until it falls inside: since a and b
  differ by the least possible, nearly none has to walk (Black and Rogaway 2002).

  Args:
    index_N: numbers in [0, size).
    size: length of the permutation.
    salt: the key.

  Returns:
    int64 [N].
  """
  a = math.isqrt(size - 1) + 1
  b = -(-size // a)
  out_N = index_N.astype(np.int64)
  todo = np.arange(len(out_N))
  while len(todo):
    left, right = np.divmod(out_N[todo], b)
    for i in range(6):
      x, y, n = (left, right, a) if i % 2 == 0 else (right, left, b)
      x += (mix(y, key(salt, i)) >> np.uint64(32)).astype(np.int64) * n >> 32
      x -= np.where(x >= n, n, 0)
    moved = left * b + right
    out_N[todo] = moved
    todo = todo[moved >= size]
  return out_N


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Sources interleaved so that each is always within one document of its exact share."""

  shares: tuple[int, ...]  # documents of each source in a period

  @classmethod
  def of(cls, weights: Sequence[float]) -> "Mixture":
    """The mixture of weights by documents, exact if a period of 2^20 can express them."""
    exact = [fractions.Fraction(str(w)) for w in weights]
    scale = math.lcm(*(f.denominator for f in exact))
    whole = [int(f * scale) for f in exact]
    whole = [n // math.gcd(*whole) for n in whole]
    if sum(whole) > _PERIOD:
      whole = [max(1, round(n * (_PERIOD - len(whole)) / sum(whole))) for n in whole]
    return cls(tuple(whole))

  def __post_init__(self) -> None:
    # Draw n of a source is due at (2n + 1) / 2 share: all of them merged in time.
    due = [(2 * np.arange(n) + 1) / (2 * n) for n in self.shares]
    source = np.repeat(np.arange(len(self.shares), dtype=np.int32), self.shares)
    order = np.argsort(np.concatenate(due), kind="stable")
    count = np.concatenate([np.arange(n) for n in self.shares])
    object.__setattr__(self, "_pattern", (source[order], count[order]))

  def draw(self, index_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The source of each place in the stream, and how many of that source came before."""
    source, count = self._pattern  # type: ignore[attr-defined]
    period_N, at_N = np.divmod(index_N, len(source))
    source_N = source[at_N]
    return source_N, period_N * np.asarray(self.shares)[source_N] + count[at_N]


@dataclasses.dataclass(frozen=True)
class Window:
  """The rows of one window: documents sorted by row, and where each row starts."""

  starts: np.ndarray  # [rows + 1]
  source: np.ndarray  # [N]
  document: np.ndarray  # [N]
  task: np.ndarray  # [N]
  dropped: np.ndarray  # [N]
  positions: int  # used, of all rows together
  frames: int
  unfit: int  # documents drawn that fit no row

  @property
  def rows(self) -> int:
    return len(self.starts) - 1


class Plan:
  """The rows of a data set, each reachable by its number.

  Args:
    counts: for each source its length index, rows of `documents.COUNTS`.
    data: weights, budgets, tasks and delays are read.
    names: of the sources, for messages.
    seed: of every shuffle and draw.
    once: one shuffled pass over all documents of all sources, instead of an endless stream.

  Raises:
    ValueError: nothing of a source fits a row, or a weight is not above 0.
  """

  def __init__(self, counts: Sequence[np.ndarray], data: config_lib.Data, *,
               names: Sequence[str], seed: int, once: bool = False):
    self._counts, self._data, self._seed = list(counts), data, seed
    self.sizes = [len(c) for c in counts]
    self.unfit = [_check_fit(c, data, n) for c, n in zip(counts, names, strict=True)]
    weights = data.weights if data.weights and not once else self.sizes
    if min(weights) <= 0:
      raise ValueError(f"Data.weights are {tuple(weights)}; each must be above 0: leave out the "
                       "source instead.")
    self._mixture = None if once else Mixture.of([float(w) for w in weights])
    self.windows = -(-sum(self.sizes) // data.window) if once else None
    self._cache = collections.OrderedDict[int, Window]()
    self._ends: list[int] = []  # rows up to and including each window
    self._lock = threading.RLock()

  def __getstate__(self) -> dict[str, Any]:
    """All but the length index, which may be large: the receiver calls `attach`."""
    return {k: v for k, v in self.__dict__.items() if k not in ("_counts", "_lock", "_cache")}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._cache = collections.OrderedDict()
    self._lock = threading.RLock()

  def attach(self, counts: Sequence[np.ndarray]) -> None:
    """Gives the length index back to a plan that was sent to another process."""
    self._counts = list(counts)

  @property
  def rows(self) -> int | None:
    """All rows of one pass; None of an endless plan."""
    if self.windows is None:
      return None
    self._extend(self.windows)
    return self._ends[-1]

  def row(self, number: int) -> list[tuple[int, int, int, bool]]:
    """The (source, document, task, dropped) of each document of a row, in order."""
    index = self._window_of(number)
    w = self.window(index)
    at = number - (self._ends[index - 1] if index else 0)
    span = slice(w.starts[at], w.starts[at + 1])
    return list(zip(w.source[span].tolist(), w.document[span].tolist(), w.task[span].tolist(),
                    w.dropped[span].tolist(), strict=True))

  def epochs(self, number: int, *, begun: bool = False) -> list[float]:
    """Passes over each source when the window of a row has ended, or when it has begun."""
    end = np.array([(self._window_of(number) + (not begun)) * self._data.window])
    if self._mixture is None:
      return [min(1.0, end[0] / sum(self.sizes))] * len(self.sizes)
    share = np.asarray(self._mixture.shares) / sum(self._mixture.shares)
    return (end * share / self.sizes).tolist()

  def window_at(self, row: int) -> Window:
    """The window that a row lies in."""
    return self.window(self._window_of(row))

  def window(self, index: int) -> Window:
    """Plans a window, or finds it among the last few."""
    with self._lock:
      found = self._cache.get(index)
      if found is None:
        found = self._plan(index)
        self._cache[index] = found
        if len(self._cache) > _KEPT:
          self._cache.popitem(last=False)
      else:
        self._cache.move_to_end(index)
      return found

  def _window_of(self, row: int) -> int:
    with self._lock:
      while not self._ends or row >= self._ends[-1]:
        if self.windows is not None and len(self._ends) == self.windows:
          raise IndexError(f"row {row} of a pass of {self._ends[-1]} rows")
        self._extend(len(self._ends) + 1)
      return bisect.bisect_right(self._ends, row)

  def _extend(self, windows: int) -> None:
    with self._lock:
      for index in range(len(self._ends), windows):
        self._ends.append((self._ends[-1] if index else 0) + self.window(index).rows)

  def _draw(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source, epoch and document of each place of a window."""
    start = index * self._data.window
    if self._mixture is None:
      place_N = np.arange(start, min(start + self._data.window, sum(self.sizes)))
      place_N = permute(place_N, sum(self.sizes), key(self._seed, 1))
      edges = np.cumsum(self.sizes)
      source_N = np.searchsorted(edges, place_N, side="right")
      return source_N, np.zeros_like(place_N), place_N - (edges - self.sizes)[source_N]
    source_N, count_N = self._mixture.draw(np.arange(start, start + self._data.window))
    epoch_N, document_N = np.divmod(count_N, np.asarray(self.sizes)[source_N])
    for source, size in enumerate(self.sizes):
      mine = np.flatnonzero(source_N == source)
      for epoch in np.unique(epoch_N[mine]).tolist():
        which = mine[epoch_N[mine] == epoch]
        salt = key(self._seed, 2, source, epoch)
        document_N[which] = permute(document_N[which], size, salt)
    return source_N, epoch_N, document_N

  def _plan(self, index: int) -> Window:
    data = self._data
    source_N, epoch_N, document_N = self._draw(index)
    counts_N = np.empty(len(source_N), documents.COUNTS)
    chance_N = np.empty(len(source_N), np.uint64)
    for source, counts in enumerate(self._counts):
      mine = np.flatnonzero(source_N == source)
      counts_N[mine] = counts[document_N[mine]]
      salted_N = mix(document_N[mine], key(self._seed, 3, source))
      chance_N[mine] = mix(salted_N ^ epoch_N[mine].astype(np.uint64), key(self._seed, 4))
    usable_NT = usable(counts_N, data)
    fit_N = usable_NT.any(1)
    source_N, document_N, counts_N = source_N[fit_N], document_N[fit_N], counts_N[fit_N]
    task_N, dropped_N = documents.choose(counts_N, usable_NT[fit_N], chance_N[fit_N], data)
    positions_N, frames_N = documents.lengths(counts_N, task_N, dropped_N, data)
    row_N, rows = pack(positions_N, frames_N, data.positions, data.frames, data.documents)
    # Rows are opened longest first: shuffled, so that training sees no order by length.
    row_N = permute(np.arange(rows), rows, key(self._seed, 5, index))[row_N] if rows else row_N
    order = np.argsort(row_N, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(row_N, minlength=rows))])
    return Window(starts, source_N[order], document_N[order], task_N[order], dropped_N[order],
                  int(positions_N.sum()), int(frames_N.sum()), int((~fit_N).sum()))


def usable(counts_N: np.ndarray, data: config_lib.Data) -> np.ndarray:
  """Which tasks each document allows and a row has room for: bool [N, T]."""
  out_NT = documents.allowed(counts_N)
  for task in range(len(documents.TASKS)):
    which = np.flatnonzero(out_NT[:, task])
    positions, frames = documents.lengths(counts_N[which], task, False, data)
    out_NT[which, task] = (positions <= data.positions) & (frames <= data.frames)
  return out_NT


def _check_fit(counts: np.ndarray, data: config_lib.Data, name: str) -> dict[str, int]:
  """How many documents of a source fit no row, by reason; raises if none of a kind does."""
  out = {"positions": 0, "frames": 0}
  fit: set[str] = set()
  best: dict[str, tuple[float, int, int]] = {}
  for start in range(0, len(counts), _CHUNK):
    chunk = np.asarray(counts[start : start + _CHUNK])
    unfit_N = ~usable(chunk, data).any(1)
    positions_N, frames_N = documents.lengths(chunk, documents.PLAIN, False, data)
    many_N = unfit_N & (frames_N > data.frames)
    out["frames"] += int(many_N.sum())
    out["positions"] += int((unfit_N & ~many_N).sum())
    excess_N = np.maximum(positions_N / data.positions, frames_N / data.frames)
    sound_N, shown_N = chunk["audio"] > 0, chunk["images"] > 0
    for what, mine_N in (("one recording", sound_N), ("one image", shown_N),
                         ("one text", ~sound_N & ~shown_N)):
      if (mine_N & ~unfit_N).any():
        fit.add(what)
      if (mine_N & unfit_N).any():
        i = int(np.where(mine_N & unfit_N, excess_N, np.inf).argmin())
        found = (float(excess_N[i]), int(positions_N[i]), int(frames_N[i]))
        best[what] = min(best.get(what, found), found)
  for what, (_, positions, frames) in best.items():
    if what not in fit:
      short = [f"needs {need} {field}, Data.{field} is {have}; raise Data.{field} to {need}"
               for field, need, have in (("positions", positions, data.positions),
                                         ("frames", frames, data.frames)) if need > have]
      raise ValueError(f"row budget too small for {what}: the smallest such document of {name} "
                       f"{' and '.join(short)} or more.")
  return out
