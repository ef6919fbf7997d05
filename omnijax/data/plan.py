"""Which documents share which row: a pure function of (seed, weights, lengths).

The stream of documents (`mixture.py`) is cut into windows; each is packed by itself and its rows
shuffled. A prefix sum over the rows of the windows makes any row reachable by planning its window
alone, so the state of a data set is one integer. Where weights change at a row, a window ends with
that row.

N documents of a window  T tasks
"""

import bisect
import collections
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from omnijax import config as config_lib
from omnijax.data import documents, fit
from omnijax.data.lengths import Lengths
from omnijax.data.mixture import Once, Stream
from omnijax.data.order import key, mix, permute
from omnijax.data.pack import pack
from omnijax.data.prompts import Prompts

_KEPT = 3  # windows kept, enough for readers of neighbouring batches


@dataclasses.dataclass(frozen=True)
class Window:
  """The rows of one window: documents sorted by row, and where each row starts."""

  starts: np.ndarray  # [rows + 1]
  source: np.ndarray  # [N]
  document: np.ndarray  # [N]
  task: np.ndarray  # [N]
  dropped: np.ndarray  # [N]
  prompt: np.ndarray  # [N]
  positions: int  # used, of all rows together
  frames: int
  unfit: int  # documents drawn that fit no row

  @property
  def rows(self) -> int:
    return len(self.starts) - 1


class Plan:
  """The rows of a data set, each reachable by its number.

  Args:
    lengths: the length index of each source.
    data: weights, budgets, tasks and delays are read.
    seed: of every shuffle and draw.
    prompts: what tasks are asked with.
    once: one shuffled pass over all documents of all sources, instead of a stream by weights.
  """

  def __init__(self, lengths: Sequence[Lengths], data: config_lib.Data, *, seed: int,
               prompts: Prompts = Prompts(), once: bool = False):
    self._lengths, self._data, self._seed = list(lengths), data, seed
    self._prompts = prompts
    self.sizes = [len(x) for x in lengths]
    self._stages = [] if once else stages(lengths, data)
    _, weights = self._stages.pop(0) if self._stages else (0, [])
    self._stream: Stream | Once = Once(self.sizes, seed) if once else Stream(
      self.sizes, weights, data.epochs or [0.0] * len(self.sizes), seed)
    self._cache = collections.OrderedDict[int, Window]()
    self._places = [0]  # of the stream, where each window begins
    self._ends: list[int] = []  # rows up to and including each window
    self._changes: list[int] = []  # windows that end where weights change
    self._lock = threading.RLock()

  def __getstate__(self) -> dict[str, Any]:
    """All but the length index, which may be large: the receiver calls `attach`."""
    return {k: v for k, v in self.__dict__.items() if k not in ("_lengths", "_lock", "_cache")}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._cache = collections.OrderedDict()
    self._lock = threading.RLock()

  def attach(self, lengths: Sequence[Lengths]) -> None:
    """Gives the length index back to a plan that was sent to another process."""
    self._lengths = list(lengths)

  @property
  def rows(self) -> int | None:
    """All rows there are; None of an endless plan, or of one whose end has changes before it."""
    if self._stages or self._stream.end is None:
      return None
    while self._more():
      self._count()
    return self._ends[-1] if self._ends else 0

  def row(self, number: int) -> list[tuple[int, int, int, bool, int]]:
    """The (source, document, task, dropped, prompt) of each document of a row, in order.

    Raises:
      IndexError: the plan ends before it.
    """
    index = self._window_of(number)
    w = self.window(index)
    at = number - (self._ends[index - 1] if index else 0)
    span = slice(w.starts[at], w.starts[at + 1])
    return list(zip(w.source[span].tolist(), w.document[span].tolist(), w.task[span].tolist(),
                    w.dropped[span].tolist(), w.prompt[span].tolist(), strict=True))

  def reached(self) -> int:
    """Rows of all windows that are counted."""
    return self._ends[-1] if self._ends else 0

  def epochs(self, number: int, *, begun: bool = False) -> list[float]:
    """Passes over each source when the window of a row has ended, or when it has begun."""
    drawn = self._stream.drawn(self._places[self._window_of(number) + (not begun)])
    return [n / max(1, size) for n, size in zip(drawn, self.sizes, strict=True)]

  def window_at(self, row: int) -> Window:
    """The window that a row lies in."""
    return self.window(self._window_of(row))

  def window(self, index: int) -> Window:
    """Plans a window, or finds it among the last few."""
    with self._lock:
      while index >= len(self._ends) and self._more():
        self._count()
      found = self._cache.get(index)
      if found is None:
        rows = self._ends[index] - (self._ends[index - 1] if index else 0)
        found = self._plan(self._places[index], self._places[index + 1], rows)
        self._cache[index] = found
        if len(self._cache) > _KEPT:
          self._cache.popitem(last=False)
      else:
        self._cache.move_to_end(index)
      return found

  def _window_of(self, row: int) -> int:
    with self._lock:
      while not self._ends or row >= self._ends[-1]:
        if not self._more():
          raise IndexError(f"row {row} of a pass of {self._ends[-1] if self._ends else 0} rows")
        self._count()
      return bisect.bisect_right(self._ends, row)

  def _more(self) -> bool:
    """Whether the stream goes on behind the windows that are counted."""
    return self._stream.end is None or self._places[-1] < self._stream.end or bool(self._stages)

  def _next(self) -> tuple[int, int]:
    """The places of the next window, if no change cuts it short."""
    start, end = self._places[-1], self._stream.end
    stop = start + self._data.window
    return start, stop if end is None else min(stop, end)

  def _count(self, rows: int | None = None) -> None:
    """Finds where the next window ends, and how many rows it has.

    Args:
      rows: of it, if that is known already.
    """
    with self._lock:
      start, stop = self._next()
      before = self._ends[-1] if self._ends else 0
      change = self._stages[0][0] if self._stages else None
      if rows is None:
        rows = self.count(start, stop)
      # At the stream's end a change may bring sources back: the rows until then stay empty.
      if change is not None and (before + rows >= change or stop == self._stream.end):
        if before + rows > change:
          stop = self._cut(start, stop, change - before)
        rows = change - before
        assert isinstance(self._stream, Stream)
        self._stream.change(stop, self._stages.pop(0)[1])
        self._changes.append(len(self._ends))
      self._places.append(stop)
      self._ends.append(before + rows)

  def counted(self) -> dict[str, np.ndarray]:
    """All windows whose rows are known so far, for `recall`."""
    with self._lock:
      return {"places": np.array(self._places), "ends": np.array(self._ends, np.int64),
              "changes": np.array(self._changes, np.int64)}

  def recall(self, counted: Mapping[str, np.ndarray]) -> None:
    """Takes over windows that another plan of the same data has counted."""
    assert not self._ends
    self._places, self._ends = counted["places"].tolist(), counted["ends"].tolist()
    self._changes = counted["changes"].tolist()
    for window in self._changes:
      assert isinstance(self._stream, Stream)
      self._stream.change(self._places[window + 1], self._stages.pop(0)[1])

  def ahead(self, rows: int, counts: Callable[["Plan", list[tuple[int, int]]], Iterator[int]],
            together: int) -> Iterator[int]:
    """Counts windows until so many rows are reached, many windows at a time.

    Args:
      rows: to reach.
      counts: yields what this plan's `count` says of each of some spans of places.
      together: spans at a time.

    Yields:
      the rows that are reached.
    """
    while self._more() and (not self._ends or self._ends[-1] < rows):
      start, stop = self._next()
      spans = [(start, stop)]
      while len(spans) < together and (end := self._stream.end or stop + 1) and stop < end:
        start, stop = stop, stop + self._data.window
        spans.append((start, stop if self._stream.end is None else min(stop, end)))
      changes = len(self._changes)
      for span, found in zip(spans, counts(self, spans), strict=True):
        # A change makes what was counted behind it void.
        if len(self._changes) == changes and self._more() and span == self._next():
          self._count(found)
      yield self._ends[-1]

  def _cut(self, start: int, stop: int, rows: int) -> int:
    """The last place that a window may end at to have so many rows at most."""
    low, high = start, stop
    while high - low > 1:
      middle = (low + high) // 2
      low, high = (middle, high) if self.count(start, middle) <= rows else (low, middle)
    return low

  def count(self, start: int, stop: int) -> int:
    """Rows that the documents of some places take."""
    return self._packed(start, stop)[-1] if stop > start else 0

  def _packed(self, start: int, stop: int) -> tuple[Any, ...]:
    """Documents of some places, what is made of each, sums of their lengths, rows."""
    data = self._data
    source_N, epoch_N, document_N = self._stream.draw(start, stop)
    some, chance_N, order = [], np.empty(len(source_N), np.uint64), []
    for source, lengths in enumerate(self._lengths):
      mine = np.flatnonzero(source_N == source)
      some.append(lengths[document_N[mine]])
      order.append(mine)
      salted_N = mix(document_N[mine], key(self._seed, 3, source))
      chance_N[mine] = mix(salted_N ^ epoch_N[mine].astype(np.uint64), key(self._seed, 4))
    counts_N = some[0]
    if len(some) > 1:
      counts_N = Lengths.join(some)[np.argsort(np.concatenate(order), kind="stable")]
    usable_NT = fit.usable(counts_N, data, self._prompts)
    fit_N = usable_NT.any(1)
    if not fit_N.all():
      source_N, document_N, counts_N = source_N[fit_N], document_N[fit_N], counts_N[fit_N]
      usable_NT, chance_N = usable_NT[fit_N], chance_N[fit_N]
    task_N, dropped_N = documents.choose(counts_N, usable_NT, chance_N, data)
    prompt_N = self._prompts.choose(task_N, dropped_N, chance_N)
    positions_N, frames_N = documents.lengths(counts_N, task_N, dropped_N, data)
    positions_N += self._prompts.lengths(task_N, prompt_N)
    row_N, rows = pack(positions_N, frames_N, data.positions, data.frames, data.documents)
    return (source_N, document_N, task_N, dropped_N, prompt_N, int(positions_N.sum()),
            int(frames_N.sum()), int((~fit_N).sum()), row_N, rows)

  def _plan(self, start: int, stop: int, rows: int) -> Window:
    """The window of some places; rows more than its documents take stay empty."""
    if start == stop:
      none = np.zeros(0, np.int64)
      return Window(np.zeros(rows + 1, np.int64), none, none, none, none > 0, none, 0, 0, 0)
    *of_N, positions, frames, unfit, row_N, found = self._packed(start, stop)
    assert found <= rows
    # Rows are opened longest first: shuffled, so that training sees no order by length.
    if rows:
      row_N = permute(np.arange(rows), rows, key(self._seed, 5, start))[row_N]
    order = np.argsort(row_N, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(row_N, minlength=rows))])
    return Window(starts, *[x_N[order] for x_N in of_N], positions=positions, frames=frames,
                  unfit=unfit)


def stages(lengths: Sequence[Lengths], data: config_lib.Data) -> list[tuple[int, list[float]]]:
  """The row at which weights by documents begin to hold, and the weights."""
  sizes = [float(len(x)) for x in lengths]
  n = len(sizes)
  means = [fit.mean_positions(x) if data.weights_by == "tokens" else 1.0 for x in lengths]
  given = data.weights or tuple(s * m for s, m in zip(sizes, means, strict=True))
  return [(step * data.rows, [w / m for w, m in zip(given[i * n : i * n + n], means, strict=True)])
          for i, step in enumerate((0, *data.stages))]
