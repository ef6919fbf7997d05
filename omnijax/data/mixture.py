"""Which document comes at each place of the endless stream of all sources.

Sources are interleaved by weights; each is permuted anew in every epoch. Weights may change at
some places, and a source that has been passed over often enough leaves its share to the others.

N places of the stream
"""

import dataclasses
import fractions
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from omnijax.data.order import key, permute

_PERIOD = 1 << 20  # longest pattern of sources


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

  @functools.cached_property
  def pattern(self) -> tuple[np.ndarray, np.ndarray]:
    """The source of each place of a period, and how many of that source come before it."""
    # Draw n of a source is due at (2n + 1) / 2 share: all of them merged in time.
    due = [(2 * np.arange(n) + 1) / (2 * n) for n in self.shares]
    source = np.repeat(np.arange(len(self.shares), dtype=np.int32), self.shares)
    order = np.argsort(np.concatenate(due), kind="stable")
    count = np.concatenate([np.arange(n) for n in self.shares])
    return source[order], count[order]

  def draw(self, index_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The source of each place in the stream, and how many of that source came before."""
    source, count = self.pattern
    period_N, at_N = np.divmod(index_N, len(source))
    source_N = source[at_N]
    return source_N, period_N * np.asarray(self.shares)[source_N] + count[at_N]

  def drawn(self, index: int) -> list[int]:
    """Documents of each source before a place."""
    source, _ = self.pattern
    period, at = divmod(index, len(source))
    within = np.bincount(source[:at], minlength=len(self.shares))
    return (period * np.asarray(self.shares) + within).tolist()

  def place(self, which: int, count: int) -> int:
    """The place of a source's document that so many of its own come before."""
    source, _ = self.pattern
    period, at = divmod(count, self.shares[which])
    return period * len(source) + int(np.flatnonzero(source == which)[at])


@dataclasses.dataclass(frozen=True)
class _Segment:
  """From a place on: who is mixed how, and how often each source was drawn before."""

  start: int
  mixture: Mixture
  which: np.ndarray  # the source of each share
  base: tuple[int, ...]  # of every source


class Stream:
  """The documents of all sources in the order in which they are drawn.

  Args:
    sizes: documents of each source.
    weights: of each source, by documents; 0 is none of it.
    passes: over each source at most; 0 is any number.
    seed: of the permutations.
  """

  def __init__(self, sizes: Sequence[int], weights: Sequence[float], passes: Sequence[float],
               seed: int):
    self._sizes, self._seed = list(sizes), seed
    self._most = [math.floor(size * n) if n else None for size, n in zip(sizes, passes,
                                                                         strict=True)]
    self._segments: list[_Segment] = []
    self.end: int | None = None  # places there are; None is any number
    self._begin(0, weights, [0] * len(sizes))

  def change(self, at: int, weights: Sequence[float]) -> None:
    """Other weights from a place on."""
    base = self.drawn(at)
    self._segments = [s for s in self._segments if s.start < at]
    self._begin(at, weights, base)

  def _begin(self, at: int, weights: Sequence[float], base: list[int]) -> None:
    left = [0.0 if most is not None and n >= most else w
            for w, n, most in zip(weights, base, self._most, strict=True)]
    while any(left):
      which = np.flatnonzero(left)
      segment = _Segment(at, Mixture.of([left[i] for i in which]), which, tuple(base))
      self._segments.append(segment)
      ends = {at + segment.mixture.place(k, most - base[i]): i for k, i in enumerate(which.tolist())
              if (most := self._most[i]) is not None}
      if not ends:
        self.end = None
        return
      at = min(ends)
      left[ends[at]] = 0.0
      base = self.drawn(at)
    self.end = at

  def drawn(self, at: int) -> list[int]:
    """Documents of each source before a place."""
    segment = next((s for s in reversed(self._segments) if s.start <= at), None)
    if segment is None:
      return [0] * len(self._sizes)
    out = list(segment.base)
    for i, n in zip(segment.which.tolist(), segment.mixture.drawn(at - segment.start),
                    strict=True):
      out[i] += n
    return out

  def mixed(self) -> Iterator[tuple[int, int | None, np.ndarray]]:
    """First place, place behind the last, and share of each source, while these stay the same."""
    starts = [s.start for s in self._segments]
    for segment, stop in zip(self._segments, [*starts[1:], self.end], strict=True):
      share_N = np.zeros(len(self._sizes))
      share_N[segment.which] = np.asarray(segment.mixture.shares) / sum(segment.mixture.shares)
      yield segment.start, stop, share_N

  def draw(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source, epoch and document of each place from start to before stop: int64 [N]."""
    sources, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    ends = [*(s.start for s in self._segments[1:]), stop]
    for segment, end in zip(self._segments, ends, strict=False):
      a, b = max(start, segment.start), min(stop, end)
      if a < b:
        share_N, count_N = segment.mixture.draw(np.arange(a, b) - segment.start)
        source_N = segment.which[share_N]
        sources.append(source_N)
        counts.append(count_N + np.asarray(segment.base)[source_N])
    source_N, count_N = np.concatenate(sources), np.concatenate(counts)
    epoch_N, document_N = np.divmod(count_N, np.asarray(self._sizes)[source_N])
    for source, size in enumerate(self._sizes):
      mine = np.flatnonzero(source_N == source)
      for epoch in np.unique(epoch_N[mine]).tolist():
        which = mine[epoch_N[mine] == epoch]
        salt = key(self._seed, 2, source, epoch)
        document_N[which] = permute(document_N[which], size, salt)
    return source_N, epoch_N, document_N


class Once:
  """One pass over all documents of all sources, permuted as a whole."""

  def __init__(self, sizes: Sequence[int], seed: int):
    self._sizes, self._seed = np.asarray(sizes), seed
    self.end: int = int(self._sizes.sum())

  def drawn(self, at: int) -> list[int]:
    """Documents of each source before a place, if all were as often."""
    return (self._sizes * (at / self.end)).tolist()

  def draw(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source, epoch and document of each place from start to before stop: int64 [N]."""
    place_N = permute(np.arange(start, stop), self.end, key(self._seed, 1))
    edges = np.cumsum(self._sizes)
    source_N = np.searchsorted(edges, place_N, side="right")
    return source_N, np.zeros_like(place_N), place_N - (edges - self._sizes)[source_N]
