"""Files that belong together because their names begin alike: in folders, and in tar archives.

`cat.png` and `cat.txt` are a picture and its caption, `clip.flac` and `clip.txt` a recording and
its transcript; `cat.json` may have any of a row's columns, `words` (times of words) among them.
In archives that is WebDataset's convention: a key ends at the first dot.
"""

import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from omnijax.data.sources import rows, store
from omnijax.data.sources.item import Bad, Item

_MEDIA = (*rows.IMAGES, *rows.SOUNDS)
_LARGEST = 16 << 20  # bytes of a text or JSON beside a file


def folder(root: str, names: Sequence[str]) -> Iterator[Item]:
  """The documents of a folder: each medium with the text and JSON of the same name.

  A text without a medium is a document of its own; files of other kinds are bad items, named.
  """
  opened = store.Store(root)
  groups: dict[str, list[str]] = {}
  for name in names:
    groups.setdefault(name.rsplit(".", 1)[0], []).append(name)
  for number, (key, members) in enumerate(groups.items(), 1):
    yield _item(number, key, [(store.extension(n), n) for n in members],
                lambda name: opened.read(name, _LARGEST + 1))


def tars(root: str, names: Sequence[str]) -> Iterator[Item]:
  """The samples of WebDataset shards; of a broken one, those before the break."""
  number = 0
  for shard in names:
    with store.open_file(store.Store(root).path(shard)) as file:
      for key, members, bad in _samples(file, shard):
        number += 1
        if bad is not None:
          yield rows.item(number, f"{shard}/{key}" if key else shard, bad)
          continue

        def read(name: str, file: Any = file, members: Any = members) -> bytes:
          offset, size = next((o, s) for n, o, s in members if n == name)
          at = file.tell()
          file.seek(offset)
          content = file.read(min(size, _LARGEST + 1))
          file.seek(at)
          return content

        opened = [(name.split(".", name.rsplit("/", 1)[-1].count(".") or 1)[-1].lower(), name)
                  for name, _, _ in members]
        places = {name: store.member(shard, offset, size, name) for name, offset, size in members}
        yield _item(number, f"{shard}/{key}", opened, read, places)


def _samples(file: Any, shard: str
             ) -> Iterator[tuple[str, list[tuple[str, int, int]], Bad | None]]:
  """Key, (name, offset, size) of each member, and what is wrong."""
  key, members, after = "", list[tuple[str, int, int]](), 0
  end = file.seek(0, 2)
  file.seek(0)
  try:
    with tarfile.open(fileobj=file, mode="r:") as archive:
      for member in archive:
        after = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if not member.isfile():
          continue
        folder, _, base = member.name.rpartition("/")
        now = f"{folder}/{base.split('.')[0]}".lstrip("/")
        if members and now != key:
          yield key, members, None
          members = []
        key = now
        if member.offset_data + member.size > end:
          raise tarfile.ReadError(f"{member.name} ends behind the end of the file")
        members.append((member.name, member.offset_data, member.size))
      file.seek(after)
      if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it has no end")
    if members:
      yield key, members, None
    elif not key:
      yield "", [], Bad("empty archive", f"{shard} has no files")
  except (tarfile.TarError, EOFError) as error:
    # What else belonged to the last sample may be what is lost.
    yield key, [], Bad("truncated archive", f"{shard}: {error}")


def _item(number: int, key: str, members: Sequence[tuple[str, str]],
          read: Callable[[str], bytes], places: dict[str, str] | None = None) -> Item:
  """A document of files, given as (extension, name)."""
  row: dict[str, Any] = {}
  try:
    unknown = [name for kind, name in members if kind not in (*_MEDIA, "txt", "json")]
    known = [(kind, name) for kind, name in members if kind in (*_MEDIA, "txt", "json")]
    if not known:
      raise Bad("unknown modality", f"{', '.join(unknown)[:200]}; wanted a picture, a sound, .txt "
                "or .json")
    for kind, name in known:
      if kind == "json":
        row |= _object(read(name), name)
      elif kind == "txt":
        row.setdefault("text", _text(read(name), name))
    for kind, name in known:
      if kind in _MEDIA:
        column = "image" if kind in rows.IMAGES else "audio"
        row.setdefault(column, []).append(places[name] if places else name)
  except Bad as bad:
    return rows.item(number, key, bad)
  for column in ("image", "audio"):  # JSON may have named what the file beside it is
    if isinstance(row.get(column), list) and len(row[column]) == 1:
      row[column] = row[column][0]
  return rows.item(number, key, row)


def _text(content: bytes, name: str) -> str:
  if len(content) > _LARGEST:
    raise Bad("text too large", f"{name} has more than {_LARGEST} bytes beside a file")
  try:
    return content.decode("utf-8-sig").strip()
  except UnicodeDecodeError as error:
    raise Bad("invalid UTF-8", f"{name}: byte {error.object[error.start]:#04x} at "
              f"{error.start}") from None


def _object(content: bytes, name: str) -> dict[str, Any]:
  try:
    value = json.loads(_text(content, name))
  except (ValueError, RecursionError) as error:
    raise Bad("invalid JSON", f"{name}: {error}") from None
  if not isinstance(value, dict):
    raise Bad("bad document", f"{name} is a {type(value).__name__}; wanted an object")
  # A file's own name decides, whatever JSON says of where it once lay.
  return {k: v for k, v in value.items() if k not in ("image", "audio", "id")} | (
    {"id": str(value["id"])} if isinstance(value.get("id"), str | int) else {})
