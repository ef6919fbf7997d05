"""Sources of raw documents: what people have on their disks and buckets, found out by its form.

A file of JSON lines, a text, a WebDataset shard or a Parquet table; or a folder of one of these
kinds, or of pictures, sounds and texts that belong together by their names.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from typing import Literal

from omnijax.data.sources import groups, lines, store, tables
from omnijax.data.sources.item import Bad, Item, RawPart
from omnijax.data.sources.store import Store

__all__ = ["Bad", "Item", "RawPart", "Source", "Store", "find"]

Kind = Literal["lines", "text", "tars", "tables", "folder"]
_KINDS: dict[str, Kind] = {"jsonl": "lines", "ndjson": "lines", "txt": "text", "md": "text",
                           "tar": "tars", "parquet": "tables"}
_BLOCK = 1 << 20  # bytes hashed at a time
_COMPRESSED = ("gz", "tgz", "zst", "bz2", "xz", "zip")


@dataclasses.dataclass(frozen=True)
class Source:
  """Where raw documents come from.

  Args:
    path: as it was given, for messages.
    kind: its form.
    root: what names of files are relative to.
    files: that it is made of, and bytes of each.
  """

  path: str
  kind: Kind
  root: str
  files: tuple[tuple[str, int], ...]

  def items(self) -> Iterator[Item]:
    """All documents, the same each time; never fails on one of them."""
    names = [name for name, _ in self.files]
    if self.kind == "folder":
      yield from groups.folder(self.root, names)
    elif self.kind == "tars":
      yield from groups.tars(self.root, names)
    elif self.kind == "tables":
      yield from tables.tables(self.root, names)
    else:
      number = 0  # lines of the files before
      for name in names:
        last, path = number, self.store.path(name)
        for item in lines.json_lines(path) if self.kind == "lines" else lines.text(path, name):
          last = number + item.line
          if len(names) > 1 and self.kind == "lines" and item.id == f"line {item.line}":
            item = dataclasses.replace(item, id=f"{name} {item.id}")
          yield dataclasses.replace(item, line=last)
        number = last

  @property
  def store(self) -> Store:
    """Opens what the items name."""
    return Store(self.root)

  def fingerprint(self) -> str:
    """16 hex digits of the bytes of JSON lines and texts, of names and sizes of all else."""
    digest = hashlib.sha256()
    for name, size in self.files:
      if self.kind in ("lines", "text"):
        with store.open_file(self.store.path(name)) as file:
          while block := file.read(_BLOCK):
            digest.update(block)
      else:
        digest.update(f"{name}\0{size}\0".encode())
    return digest.hexdigest()[:16]


def find(path: str | os.PathLike[str]) -> Source:
  """The source at a path or URL.

  Raises:
    ValueError: there is nothing, or nothing of a known form.
  """
  path = os.fspath(path)
  if store.remote(path):
    system, base = store.system(path)
    is_file, is_folder = system.isfile(base), system.isdir(base)
  else:
    is_file, is_folder = os.path.isfile(path), os.path.isdir(path)
  if is_file:
    root, name = path.rsplit("/", 1) if store.remote(path) else os.path.split(path)
    return _of_file(path, root, name)
  if not is_folder:
    raise ValueError(f"the source {path} is not a file or a folder; wanted JSON lines, text, "
                     "WebDataset shards, Parquet tables, or a folder of pictures, sounds and "
                     "texts.")
  files = list(store.files(path))
  if not files:
    raise ValueError(f"the source {path} is empty: there is no file in it.")
  kinds = {_kind(name) for name, _ in files}
  for kind in ("tars", "tables", "lines"):
    mine = tuple((n, s) for n, s in files if _kind(n) == kind)
    if mine and (kind != "lines" or _listing(files)):
      return _made(Source(path, kind, path, mine))
  if kinds == {"text"}:
    return Source(path, "text", path, tuple(files))
  return Source(path, "folder", path, tuple(files))


def _listing(files: list[tuple[str, int]]) -> bool:
  """Whether JSON lines list the rest: they alone are at the top."""
  return any("/" not in name and _kind(name) == "lines" for name, _ in files)


def _kind(name: str) -> Kind | None:
  """What a file is by its name; in a folder .json belongs to the file of the same name."""
  if name.endswith(".gz"):
    kind = _KINDS.get(store.extension(name[:-3]), "lines" if name.endswith(".json.gz") else None)
    return kind if kind in ("lines", "text") else None
  return _KINDS.get(store.extension(name))


def _of_file(path: str, root: str, name: str) -> Source:
  kind = "lines" if name.endswith(".json") else _kind(name)
  if kind is None:
    if store.extension(name) in _COMPRESSED:
      raise ValueError(f"the source {path} is compressed, and can't be read at random: unpack it "
                       "first (members of a tar may be compressed, the tar itself not).")
    raise ValueError(f"the source {path} is a file of an unknown form; wanted .jsonl, .txt, .tar "
                     "or .parquet, or a folder.")
  with store.open_file(path) as file:
    return _made(Source(path, kind, root, ((name, file.seek(0, os.SEEK_END)),)))


def _made(source: Source) -> Source:
  """A source whose library is there, which is better told now than later."""
  if source.kind == "tables":
    store.parquet(source.path)
  return source
