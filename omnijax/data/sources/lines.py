"""JSON lines, one document each, and plain texts; both may be gzipped."""

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from omnijax.data.sources import rows, store
from omnijax.data.sources.item import Bad, Item

TEXT_BLOCK = 1 << 20  # bytes of a longer text that are a document


def json_lines(path: str) -> Iterator[Item]:
  """The items of a JSONL file, blank lines left out; never fails on a line."""
  with store.open_file(path) as opened, _unpacked(opened, path) as file:
    number, lines = 0, iter(file)
    while True:
      number += 1
      try:
        line = next(lines, None)
      except (OSError, EOFError, zlib.error) as error:
        yield rows.item(number, f"line {number}", _broken(error))
        return
      if line is None:
        return
      if line.strip():
        yield rows.item(number, f"line {number}", _parsed(line))


def _unpacked(file: BinaryIO, path: str) -> BinaryIO | gzip.GzipFile:
  return gzip.GzipFile(fileobj=file) if path.endswith(".gz") else file


def _broken(error: Exception) -> Bad:
  return Bad("truncated file", f"{type(error).__name__}: {error}")


def _parsed(line: bytes) -> Any:
  try:
    return json.loads(line.decode("utf-8"))
  except UnicodeDecodeError as error:
    return Bad("invalid UTF-8", f"byte {error.object[error.start]:#04x} at {error.start}")
  except (ValueError, RecursionError) as error:
    return Bad("invalid JSON", str(error))


def text(path: str, name: str) -> Iterator[Item]:
  """A text file as one document, or as several, cut at an empty line or else at a line's end.

  Args:
    path: of the file.
    name: its id; that of several goes on with their number.
  """
  with store.open_file(path) as opened, _unpacked(opened, path) as file:
    rest, more, count = b"", True, 0
    while more:
      try:
        block = file.read(TEXT_BLOCK)
      except (OSError, EOFError, zlib.error) as error:
        yield rows.item(count + 1, f"{name}:{count + 1}", _broken(error))
        return
      more = len(block) == TEXT_BLOCK
      content = rest + block
      at = len(content)
      if more:
        at = next((p + len(mark) for mark in (b"\n\n", b"\n", b" ")
                   if (p := content.rfind(mark)) > 0), len(content))
      rest = content[at:]
      if content[:at].strip() or not count:
        count += 1
        yield rows.item(count, f"{name}:{count}" if count > 1 or more else name,
                        _decoded(content[:at]))


def _decoded(content: bytes) -> dict[str, str] | Bad:
  try:
    return {"text": content.decode("utf-8-sig").strip()}
  except UnicodeDecodeError as error:
    return Bad("invalid UTF-8", f"byte {error.object[error.start]:#04x} at {error.start}")
