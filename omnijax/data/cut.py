"""Documents longer than a row, cut into pieces that fit, at legal boundaries.

Between parts; within a text at any token; within a recording at any frame, unless it has a
transcript whose words have no times. A picture is never cut. The pieces are documents of their own
that are rendered plain; what they read are rows of the table of parts like any other.

P parts of a document
"""

from collections.abc import Sequence

import numpy as np

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.data import documents
from omnijax.data.lengths import Lengths

_SCRAP = 32  # tokens or frames that are not worth a cut


def pieces(parts_P: np.ndarray, data: config_lib.Data) -> list[np.ndarray] | None:
  """The pieces of a document, each some rows of `documents.PART`; None if one part is too long.

  Args:
    parts_P: rows of `documents.PART`.
    data: budgets and delays.
  """
  out: list[np.ndarray] = []
  piece: list[np.void] = []
  for part in parts_P:
    rest = part
    while True:
      room = _room(piece, rest, data)
      n = min(room, int(rest["length"]))
      if n == rest["length"]:
        piece.append(rest)
        break
      # What can't be cut is tried again at the start of a row, as is what only a scrap of fits.
      if piece and (not _divisible(rest) or n < _SCRAP):
        out.append(np.array(piece, documents.PART))
        piece = []
        continue
      if not _divisible(rest) or n < 1:
        return None
      first, rest = _split(rest, n)
      out.append(np.array([*piece, first], documents.PART))
      piece = []
  return [*out, np.array(piece, documents.PART)] if piece else out


def singles(parts_N: np.ndarray, data: config_lib.Data) -> tuple[np.ndarray, np.ndarray]:
  """The pieces of documents of one part each, all at once: most long documents are one text.

  Args:
    parts_N: rows of `documents.PART`.
    data: budgets and delays.

  Returns:
    rows of `documents.PART`, one of each piece, as `pieces` makes them; and which documents can't
    be cut.
  """
  ones_N = parts_N.copy()
  ones_N["length"] = 1
  index_N = np.arange(len(parts_N))
  positions_N, frames_N = documents.lengths(documents.counts(ones_N, index_N), documents.PLAIN,
                                            False, data)
  room_N = 1 + data.positions - positions_N
  sound_N = parts_N["kind"] == vocab_lib.AUDIO
  room_N = np.where(sound_N, np.minimum(room_N, 1 + data.frames - frames_N), room_N)
  good_N = (room_N > 0) & ((parts_N["kind"] == vocab_lib.TEXT)
                           | sound_N & ((parts_N["words"] < 0) | (parts_N["timed"] > 0)))
  some, room_N = parts_N[good_N], room_N[good_N]
  often_N = -(-some["length"] // room_N)
  out = np.repeat(some, often_N)
  at = (np.arange(len(out)) - np.repeat(np.cumsum(often_N) - often_N, often_N)) * np.repeat(
    room_N, often_N)
  out["length"] = np.minimum(out["length"] - at, np.repeat(room_N, often_N))
  out["offset"] += at
  out["words_offset"] += np.where(out["timed"] > 0, at, 0)
  out["heard_offset"] += np.where(out["heard_offset"] >= 0, at, 0)
  return out, np.flatnonzero(~good_N)


def _room(piece: Sequence[np.void], part: np.void, data: config_lib.Data) -> int:
  """How much of a part's length a row has room for behind a piece."""
  one = part.copy()
  one["length"] = 0 if part["kind"] == vocab_lib.IMAGE else 1
  table = np.array([*piece, one], documents.PART)
  counts = documents.counts(table, np.array([0]))
  positions, frames = documents.lengths(counts, documents.PLAIN, False, data)
  left = data.positions - int(positions[0])
  if part["kind"] == vocab_lib.AUDIO:
    left = min(left, data.frames - int(frames[0]))
  return left + int(one["length"])


def _divisible(part: np.void) -> bool:
  if part["kind"] == vocab_lib.AUDIO:
    return bool(part["words"] < 0 or part["timed"])
  return bool(part["kind"] == vocab_lib.TEXT)


def _split(part: np.void, at: int) -> tuple[np.void, np.void]:
  """A part's first so many tokens or frames, and the rest."""
  first, rest = part.copy(), part.copy()
  first["length"] = at
  rest["length"] -= at
  rest["offset"] += at
  if part["kind"] == vocab_lib.AUDIO:
    if part["timed"]:
      rest["words_offset"] += at
    if part["heard_offset"] >= 0:
      rest["heard_offset"] += at
  return first, rest


def cut(table: np.ndarray, sizes_N: np.ndarray, data: config_lib.Data
        ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The pieces of documents that are too long.

  Args:
    table: rows of `documents.PART`, document after document.
    sizes_N: parts of each document.
    data: budgets and delays.

  Returns:
    rows of `documents.PART`, the first row of each piece, and which documents can't be cut.
  """
  starts_N = np.cumsum(sizes_N) - sizes_N
  alone = np.flatnonzero(sizes_N == 1)
  ones, lost = singles(table[starts_N[alone]], data)
  found, whole = list[np.ndarray](), alone[lost].tolist()
  for i in np.flatnonzero(sizes_N > 1).tolist():
    some = pieces(table[starts_N[i] : starts_N[i] + sizes_N[i]], data)
    if some is None:
      whole.append(i)
    else:
      found += some
  sizes = np.array([1] * len(ones) + [len(p) for p in found], np.int64)
  return np.concatenate([ones, *found]), np.cumsum(sizes) - sizes, np.array(sorted(whole), np.int64)


def index(parts: np.ndarray, starts: np.ndarray) -> Lengths:
  """The length index of pieces, which are only rendered plain."""
  counts = documents.counts(parts, starts) if len(starts) else np.zeros(0, documents.COUNTS)
  counts["allows"] = 1 << documents.PLAIN
  return Lengths.of(counts)
