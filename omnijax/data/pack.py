"""Packing documents into rows: best fit, longest first, under budgets of positions and frames.

N documents
"""

import numpy as np

_TRIES = 8  # rows of different room looked at before a new one is opened


def pack(positions_N: np.ndarray, frames_N: np.ndarray, positions: int, frames: int,
         documents: int = 0) -> tuple[np.ndarray, int]:
  """Assigns each document to a row.

  Documents with frames go first when frames are scarce, since only they compete for them; then
  the rest, best fit by positions. Equal lengths are moved together, which makes it fast.

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
  rows = _Rows(positions)
  # A frame takes a position, so frames can't be scarce if a row may hold one at each.
  if frames < positions:
    loud = np.flatnonzero(frames_N)
    _pack_frames(rows, row_N, loud, positions_N, frames_N, frames)
    rest = np.flatnonzero(frames_N == 0)
  else:
    rest = np.arange(len(positions_N))
  _pack_positions(rows, row_N, rest, positions_N)
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
  """Open rows by the positions that they have left."""

  def __init__(self, positions: int):
    self.positions, self.count = positions, 0
    self.by_room: list[list[int]] = [[] for _ in range(positions + 1)]
    self.mask = 0  # bit r: some row has room r

  def put(self, room: int, rows: list[int]) -> None:
    if rows:
      self.by_room[room] += rows
      self.mask |= 1 << room


def _pack_positions(rows: _Rows, row_N: np.ndarray, which: np.ndarray, positions_N: np.ndarray
                    ) -> None:
  """Best fit decreasing, all documents of one length at a time."""
  if not len(which):
    return
  order = which[np.argsort(-positions_N[which], kind="stable")]
  sizes, starts = np.unique(-positions_N[order], return_index=True)
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
      each = rows.positions // size
      new = -(-left // each)
      chosen = list(range(rows.count, rows.count + new))
      rows.count += new
      _fill(rows, out, chosen, rows.positions, size, each, left)
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


def _pack_frames(rows: _Rows, row_N: np.ndarray, which: np.ndarray, positions_N: np.ndarray,
                 frames_N: np.ndarray, frames: int) -> None:
  """Best fit decreasing by the scarcer budget, watching the other.

  The rows nearest in room are tried, then the emptiest: many rows may be full in the other
  budget, and none of them must hide one that isn't.
  """
  need_N, budget = frames_N[which], frames
  other_N, other_budget = positions_N[which], rows.positions
  swap = other_N.sum() * budget > need_N.sum() * other_budget
  if swap:
    need_N, other_N, budget, other_budget = other_N, need_N, other_budget, budget
  order = np.lexsort((-other_N, -need_N))
  room: list[int] = []  # of the other budget, by row
  left: list[int] = []  # of the scarcer budget
  by_left: list[list[int]] = [[] for _ in range(budget + 1)]
  mask, out = 0, []

  def find(fitting: int, base: int, b: int) -> int:
    """The bucket whose last row has room b, -1 if none of those tried has."""
    for _ in range(_TRIES):
      if not fitting:
        return -1
      step = (fitting & -fitting).bit_length()
      base += step - 1
      if room[by_left[base][-1]] >= b:
        return base
      base, fitting = base + 1, fitting >> step
    base += fitting.bit_length() - 1
    return base if fitting and room[by_left[base][-1]] >= b else -1

  for a, b in zip(need_N[order].tolist(), other_N[order].tolist(), strict=True):
    bucket = find(mask >> a, a, b)
    if bucket < 0:
      row = len(left)
      room.append(other_budget)
      left.append(budget)
    else:
      row = by_left[bucket].pop()
      if not by_left[bucket]:
        mask ^= 1 << bucket
    room[row] -= b
    left[row] -= a
    by_left[left[row]].append(row)
    mask |= 1 << left[row]
    out.append(row)
  row_N[which[order]] = out
  rows.count = len(left)
  for row, free in enumerate(room if not swap else left):
    rows.put(free, [row])
