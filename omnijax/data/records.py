"""Prepared documents on disk, readable at random: the only module that knows the files.

A directory holds flat token files in small shards (`text-00000.bin`, `image-*`, `audio-*`); tables
of parts and of documents (`parts.npy`; `starts.npy`, `lengths.npy`, `forms.npy`; memory-mapped);
`rejects.jsonl`; and `meta.json`, which is written last: without it the directory is not finished.
An image or a recording that many documents share is stored once. Documents held out have tables of
their own, in a directory within. Everything is written beside its name and then renamed.

Q codebooks
"""

import bisect
import collections
import dataclasses
import hashlib
import json
import mmap
import os
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omnijax import vocab as vocab_lib
from omnijax.data import cut, documents
from omnijax.data.lengths import Lengths

FORMAT = 4
META, REJECTS = "meta.json", "rejects.jsonl"
_PARTS, _STARTS, _LENGTHS, _FORMS = "parts.npy", "starts.npy", "lengths.npy", "forms.npy"
_NAMES = {vocab_lib.TEXT: "text", vocab_lib.IMAGE: "image", vocab_lib.AUDIO: "audio"}
_OPEN_SHARDS = 256  # memory maps kept for each modality


def shard_path(root: pathlib.Path, kind: int, number: int) -> pathlib.Path:
  """Where the tokens of a shard lie."""
  return root / f"{_NAMES[kind]}-{number:05d}.bin"


def token_type(codes: int) -> np.dtype:
  """The smallest type that holds ids below `codes`; of text one more than there are pieces."""
  return np.dtype("<u2" if codes <= 1 << 16 else "<i4")


def write(path: pathlib.Path, content: bytes) -> None:
  """Writes a file so that it is there whole or not at all, even after a crash."""
  temporary = path.with_name(path.name + ".tmp")
  with temporary.open("wb") as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def write_json(path: pathlib.Path, value: Any) -> None:
  write(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def write_tables(root: pathlib.Path, parts: np.ndarray, starts: np.ndarray) -> str:
  """Writes the tables of parts and documents; returns a hash of every length in them."""
  index = Lengths.of(documents.counts(parts, starts))
  digest = hashlib.sha256()
  for name, table in ((_PARTS, parts), (_STARTS, starts), (_LENGTHS, index.rows),
                      (_FORMS, index.forms)):
    temporary = root / (name + ".tmp")
    with temporary.open("wb") as file:
      np.save(file, table)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, root / name)
    digest.update(table.tobytes())
  return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Meta:
  """What a finished directory is made of.

  `tokenizers` has for each modality its fingerprint and sizes, `shards` for each modality the
  number of tokens (of frames for audio) in each shard.
  """

  format: int
  inputs: str  # fingerprint of the manifest and of everything else that decided the content
  content: str  # hash of the tables
  tokenizers: Mapping[str, Mapping[str, Any]]
  shards: Mapping[str, Sequence[int]]
  counts: Mapping[str, int]
  rejects: Mapping[str, int]
  tokens: str = "."  # where the shards lie, from here

  @classmethod
  def read(cls, root: pathlib.Path) -> "Meta | None":
    """The meta data of a finished directory, None of any other."""
    try:
      value = json.loads((root / META).read_text("utf-8"))
    except FileNotFoundError:
      return None
    if value.get("format") != FORMAT:
      raise ValueError(f"{root} has records of format {value.get('format')}; this version reads "
                       f"format {FORMAT}: prepare it again.")
    return cls(**value)


class Records:
  """Random access to a prepared directory; cheap to open and to send to another process.

  Args:
    root: the directory.
    more: further documents made of what is in it: rows of `documents.PART`, and the first row of
      each.

  Raises:
    ValueError: the directory was not prepared, or not to its end.
  """

  def __init__(self, root: str | pathlib.Path,
               more: tuple[np.ndarray, np.ndarray] | None = None):
    self.root = pathlib.Path(root)
    meta = Meta.read(self.root)
    if meta is None:
      state = "is not finished" if self.root.is_dir() else "does not exist"
      raise ValueError(f"the records {self.root} {state}: there is no {META}; run "
                       f"`omnijax prepare SOURCE --out {self.root}`.")
    self.meta = meta
    # As plain arrays: each slice of a np.memmap costs as much as reading the document.
    self.table, self._starts, lengths, forms = (
      np.asarray(np.load(self.root / name, mmap_mode="r"))
      for name in (_PARTS, _STARTS, _LENGTHS, _FORMS))
    self.lengths: Lengths = Lengths(lengths, forms)
    self._more = more
    if more is not None:
      self.lengths = Lengths.join([self.lengths, cut.index(*more)])
    self._tokens = {}
    for kind, name in _NAMES.items():
      if name in meta.tokenizers:
        sizes = meta.tokenizers[name]
        width = sizes["codebooks"] if kind == vocab_lib.AUDIO else 1
        codes = sizes["size"] + 1 if kind == vocab_lib.TEXT else sizes["codes"]
        self._tokens[kind] = _Tokens(self.root / meta.tokens, kind, width, codes, meta.shards[name])

  def __reduce__(self):
    return Records, (self.root, self._more)

  def __len__(self) -> int:
    return len(self.lengths)

  @property
  def whole(self) -> int:
    """Documents without `more`."""
    return len(self._starts)

  def parts(self, index: int) -> np.ndarray:
    """The rows of `documents.PART` of one document."""
    table, starts = self.table, self._starts
    if index >= len(starts):
      assert self._more is not None
      index -= len(starts)
      table, starts = self._more
    stop = starts[index + 1] if index + 1 < len(starts) else len(table)
    return table[starts[index] : stop]

  def some(self, which_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `documents.PART` of some documents of the directory, and how many each has."""
    stops = np.append(self._starts[1:], len(self.table))
    sizes_N = stops[which_N] - self._starts[which_N]
    first_N = self._starts[which_N] - (np.cumsum(sizes_N) - sizes_N)
    return self.table[np.repeat(first_N, sizes_N) + np.arange(sizes_N.sum())], sizes_N

  def read(self, index: int) -> list[documents.Part]:
    """The parts of one document; its arrays are views of the files."""
    return [self._part(*row) for row in self.parts(index).tolist()]

  def _part(self, kind: int, role: int, rows: int, cols: int, length: int, words: int,
            timed: int, offset: int, words_offset: int, heard_offset: int) -> documents.Part:
    codes = self._tokens[kind].read(offset, length)
    if kind == vocab_lib.IMAGE:
      return documents.Part(kind, role, codes.reshape(rows, cols))
    if kind == vocab_lib.TEXT:
      return documents.Part(kind, role, codes[:, 0])
    heard = self._tokens[kind].read(heard_offset, length) if heard_offset >= 0 else None
    if words < 0:
      return documents.Part(kind, role, codes, heard=heard)
    text = self._tokens[vocab_lib.TEXT].read(words_offset, length if timed else words)[:, 0]
    if timed:
      text = np.where(text == self.gap, -1, text.astype(np.int32))
    return documents.Part(kind, role, codes, text, bool(timed), heard)

  @property
  def gap(self) -> int:
    """What stands at a frame where no word begins: the id behind the last piece of text."""
    return int(self.meta.tokenizers["text"]["size"])


class _Tokens:
  """The token files of one modality, addressed as one array [n, width] by offset."""

  def __init__(self, root: pathlib.Path, kind: int, width: int, codes: int,
               sizes: Sequence[int]):
    self._root, self._kind, self._width = root, kind, width
    self._type = token_type(codes)
    self._starts = np.concatenate([[0], np.cumsum(np.asarray(sizes, np.int64))]).tolist()
    self._open: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
    self._lock = threading.Lock()

  def read(self, offset: int, length: int) -> np.ndarray:
    """Tokens [length, width]; a part never crosses a shard."""
    if not length:
      return np.zeros((0, self._width), self._type)
    shard = bisect.bisect_right(self._starts, offset) - 1
    start = offset - self._starts[shard]
    return self._shard(shard)[start : start + length]

  def _shard(self, number: int) -> np.ndarray:
    with self._lock:
      array = self._open.get(number)
      if array is None:
        array = self._map(number)
        self._open[number] = array
        if len(self._open) > _OPEN_SHARDS:
          self._open.popitem(last=False)
      else:
        self._open.move_to_end(number)
      return array

  def _map(self, number: int) -> np.ndarray:
    path = shard_path(self._root, self._kind, number)
    want = self._starts[number + 1] - self._starts[number]
    with path.open("rb") as file:
      mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    array = np.frombuffer(mapped, self._type).reshape(-1, self._width)
    if len(array) != want:
      raise ValueError(f"{path} has {len(array)} tokens, {META} says {want}; the file was "
                       "changed after it was written: prepare again.")
    return array
