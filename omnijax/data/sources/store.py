"""Opens what a source names: files, members of tar archives, cells of Parquet tables, channels.

A name is a path relative to the source's root, which is a folder or an fsspec URL. Into an archive
it goes on with where the member lies, `photos.tar@1536+20344/cat.png`; into a table, with the
cell, `train.parquet@ROW_GROUP:ROW/image.bytes`. `#1` at the end is the second channel of a sound.
"""

import functools
import io
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from omnijax.data.sources.item import Bad

_MEMBER = re.compile(r"^(.*\.tar)@(\d+)\+(\d+)/(.*)$", re.DOTALL)
_CELL = re.compile(r"^(.*\.parquet)@(\d+):(\d+)/(.*)$", re.DOTALL)
_CHANNEL = re.compile(r"^(.*)#(\d+)$", re.DOTALL)


def member(archive: str, offset: int, size: int, name: str) -> str:
  """The name of a member of a tar archive."""
  return f"{archive}@{offset}+{size}/{name}"


def cell(table: str, group: int, row: int, column: str) -> str:
  """The name of a cell of a Parquet table; `column` may go into structs and lists by dots."""
  return f"{table}@{group}:{row}/{column}"


def channel_of(name: str) -> tuple[str, int | None]:
  """What a name says without its channel, and the channel, or None for all of them mixed."""
  found = _CHANNEL.match(name)
  return (found[1], int(found[2])) if found else (name, None)


def extension(name: str) -> str:
  """Lower-case letters behind the last dot of a name, channel left out."""
  return os.path.splitext(channel_of(name)[0])[1].lower().removeprefix(".")


def remote(path: str) -> bool:
  """Whether a path is a URL, which fsspec opens."""
  return "://" in path


class Store:
  """Everything under a root; cheap to send to another process.

  Args:
    root: a folder, or a URL that fsspec knows (`gs://bucket/folder`).
  """

  def __init__(self, root: str):
    self.root = str(root)

  def open(self, name: str) -> BinaryIO:
    """What a name says, open to be read from its start.

    Raises:
      Bad: there is nothing of this name, or it is empty.
    """
    name, _ = channel_of(name)
    if found := _MEMBER.match(name):
      with self._file(found[1]) as file:
        file.seek(int(found[2]))
        content = file.read(int(found[3]))
      if len(content) != int(found[3]):
        raise Bad("truncated archive", f"{name} has {len(content)} of {found[3]} bytes")
      return _some(content, name)
    if found := _CELL.match(name):
      column, *inside = found[4].split(".")
      value = _row_group(self.path(found[1]), int(found[2]), column)
      return _some(_inside(value[int(found[3])].as_py(), inside, name), name)
    return self._file(name)

  def read(self, name: str, most: int) -> bytes:
    """The first bytes of what a name says, at most so many.

    Raises:
      Bad: as `open`.
    """
    with self.open(name) as file:
      return file.read(most)

  def path(self, name: str) -> str:
    """The path or URL of a file."""
    if not self.root or remote(name) or os.path.isabs(name):
      return name
    return f"{self.root.rstrip('/')}/{name}" if remote(self.root) else os.path.join(self.root, name)

  def _file(self, name: str) -> BinaryIO:
    path = self.path(name)
    try:
      file = open_file(path)
      size = file.seek(0, os.SEEK_END)
      file.seek(0)
    except (OSError, ValueError) as error:
      reason = getattr(error, "strerror", None) or type(error).__name__
      raise Bad("missing file", f"{name}: {reason}") from None
    if not size:
      file.close()
      raise Bad("empty file", f"{name} has 0 bytes")
    return file


def _some(content: Any, name: str) -> BinaryIO:
  if not isinstance(content, bytes):
    raise Bad("missing file", f"{name} is {type(content).__name__}, no bytes")
  if not content:
    raise Bad("empty file", f"{name} has 0 bytes")
  return io.BytesIO(content)


def _inside(value: Any, keys: list[str], name: str) -> Any:
  """What lies within structs and lists; bytes of `image` may be the cell or its field."""
  for key in keys:
    try:
      value = value[int(key) if key.isdigit() else key]
    except (KeyError, IndexError, TypeError):
      raise Bad("missing file", f"{name}: there is no {key}") from None
  return value


@functools.lru_cache(maxsize=2)
def _row_group(path: str, group: int, column: str) -> Any:
  """One column of one row group; cells are read in their order, so the last one is mostly asked."""
  library = parquet(path)
  try:
    with open_file(path) as file:
      table = library.parquet.ParquetFile(file)
      return table.read_row_group(group, columns=[column]).column(0)
  except (OSError, library.ArrowException) as error:
    raise unreadable(path.rpartition("/")[2], error) from None


def unreadable(name: str, error: Exception) -> Bad:
  """What is wrong with a table that can't be read."""
  return Bad("unreadable table", f"{name}: {str(error).splitlines()[0][:200]}")


def open_file(path: str) -> BinaryIO:
  """A file or a URL, open to be read."""
  return fsspec(path).open(path, "rb").open() if remote(path) else open(path, "rb")


def fsspec(path: str) -> Any:
  """The library that opens URLs.

  Raises:
    ValueError: it is not installed.
  """
  try:
    import fsspec as library
  except ImportError as error:
    raise ValueError(f"{path} needs fsspec and its package for that address; install the extra "
                     "`cloud`.") from error
  return library


def system(path: str) -> tuple[Any, str]:
  """What opens a URL, and what it calls it.

  Raises:
    ValueError: no such system is known, its package is not installed, or it can't be reached.
  """
  try:
    return fsspec(path).core.url_to_fs(path)
  except ImportError as error:
    raise ValueError(f"{path}: {error}; install the extra `cloud`, or that package.") from error
  except (OSError, ValueError) as error:
    raise ValueError(f"{path} can't be opened: {error}; wanted an address that fsspec knows, such "
                     "as gs://bucket/folder or s3://bucket/folder.") from error


def parquet(path: str) -> Any:
  """The library that reads Parquet.

  Raises:
    ValueError: it is not installed.
  """
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise ValueError(f"{path} needs pyarrow; install the extra `parquet`.") from error
  return pyarrow


def files(root: str) -> Iterator[tuple[str, int]]:
  """Names below a folder or URL, in order, and bytes of each; hidden ones are left out."""
  if remote(root):
    opened, base = system(root)
    found = {name.removeprefix(base).lstrip("/"): about["size"]
             for name, about in opened.find(base, detail=True).items()}
  else:
    found = {}
    for folder, folders, names in os.walk(root):
      folders[:] = [f for f in folders if not f.startswith(".")]
      for name in names:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
          found[os.path.relpath(path, root)] = os.path.getsize(path)
  return iter(sorted((n, s) for n, s in found.items() if not os.path.basename(n).startswith(".")))
