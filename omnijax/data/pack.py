"""Packing documents into rows: best fit, longest first, under budgets of positions and frames.

N documents
"""

import numpy as np


def pack(positions_N: np.ndarray, frames_N: np.ndarray, positions: int, frames: int,
         documents: int = 0) -> tuple[np.ndarray, int]:
  """Assigns each document to a row.

  Documents that take a greater share of a row's frames than of its positions are packed by frames,
  and others that have frames by positions: each then fits in the other budget, too, so that no row
  has to be looked at twice. Those without frames fill the positions that are left. Equal lengths
  are moved together, which makes it fast.

  Args:
    positions_N, frames_N: needs of each document, at most the budget of a row.
    positions, frames: budgets of a row.
    documents: most of them in a row; 0 is any number. The shortest of rows that would have more
      are packed again by themselves.

  Returns:
    The row of each document int32 [N], and the number of rows.
  """
  assert not len(positions_N) or (positions_N.max() <= positions and frames_N.max() <= frames)
  row_N = np.zeros(len(positions_N), np.int32)
  # A frame takes a position, so frames can't be scarce if a row may hold one at each.
  loud_N = (frames_N > 0) & (frames < positions)
  # In these, the frames of a row are used up before its positions.
  scarce_N = loud_N & (frames_N * np.int64(positions) > positions_N * np.int64(frames))
  by_frames, by_positions = _Rows(frames), _Rows(positions)
  _pack(by_frames, row_N, np.flatnonzero(scarce_N), frames_N)
  _pack(by_positions, row_N, np.flatnonzero(loud_N & ~scarce_N), positions_N)
  row_N[loud_N & ~scarce_N] += by_frames.count
  rows = _Rows(positions)
  rows.count = by_frames.count + by_positions.count
  used_R = np.bincount(row_N[loud_N], positions_N[loud_N], rows.count).astype(np.int64)
  for row, used in enumerate(used_R.tolist()):
    rows.put(positions - used, [row])
  _pack(rows, row_N, np.flatnonzero(~loud_N), positions_N)
  count = rows.count
  over_N = _beyond(row_N, positions_N, documents) if documents else np.zeros(0, np.int64)
  if len(over_N):
    row_N[over_N], more = pack(positions_N[over_N], frames_N[over_N], positions, frames, documents)
    row_N[over_N] += count
    count += more
  return row_N, count


def _beyond(row_N: np.ndarray, positions_N: np.ndarray, documents: int) -> np.ndarray:
  """Those that aren't among the so many longest documents of their row."""
  order = np.lexsort((-positions_N, row_N))
  _, first = np.unique(row_N[order], return_index=True)
  rank_N = np.arange(len(order)) - np.repeat(first, np.diff([*first, len(order)]))
  return np.sort(order[rank_N >= documents])


class _Rows:
  """Open rows by what they have left of a budget."""

  def __init__(self, budget: int):
    self.budget, self.count = budget, 0
    self.by_room: list[list[int]] = [[] for _ in range(budget + 1)]
    self.mask = 0  # bit r: some row has room r

  def put(self, room: int, rows: list[int]) -> None:
    if rows:
      self.by_room[room] += rows
      self.mask |= 1 << room


def _pack(rows: _Rows, row_N: np.ndarray, which: np.ndarray, need_N: np.ndarray) -> None:
  """Best fit decreasing, all documents of one length at a time."""
  if not len(which):
    return
  order = which[np.argsort(-need_N[which], kind="stable")]
  sizes, starts = np.unique(-need_N[order], return_index=True)
  ends = [*starts[1:].tolist(), len(order)]
  out: list[int] = []
  by_room = rows.by_room
  for size, start, end in zip((-sizes).tolist(), starts.tolist(), ends, strict=True):
    left = end - start
    while left:
      fitting = rows.mask >> size
      if not fitting:
        break
      room = size + (fitting & -fitting).bit_length() - 1
      stack, each = by_room[room], room // size
      take = min(len(stack), -(-left // each))
      chosen = stack[-take:]
      del stack[-take:]
      if not stack:
        rows.mask ^= 1 << room
      left = _fill(rows, out, chosen, room, size, each, left)
    if left:
      each = rows.budget // size
      new = -(-left // each)
      chosen = list(range(rows.count, rows.count + new))
      rows.count += new
      _fill(rows, out, chosen, rows.budget, size, each, left)
  row_N[order] = out


def _fill(rows: _Rows, out: list[int], chosen: list[int], room: int, size: int, each: int,
          left: int) -> int:
  """Puts `each` documents in every chosen row, fewer in the last; returns how many are left."""
  if each == 1:
    out += chosen
    rows.put(room - size, chosen)
    return left - len(chosen)
  full = min(len(chosen), left // each)
  out += np.repeat(chosen[:full], each).tolist()
  rows.put(room - each * size, chosen[:full])
  left -= full * each
  if full < len(chosen):
    out += [chosen[full]] * left
    rows.put(room - left * size, chosen[full:])
    left = 0
  return left
