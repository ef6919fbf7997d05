"""JSON lines, one document each, and plain texts."""

import json
from collections.abc import Iterator
from typing import Any

from omnijax.data.sources import rows, store
from omnijax.data.sources.item import Bad, Item

TEXT_BLOCK = 1 << 20  # bytes of a longer text that are a document


def json_lines(path: str) -> Iterator[Item]:
  """The items of a JSONL file, blank lines left out; never fails on a line."""
  with store.open_file(path) as file:
    for number, line in enumerate(file, 1):
      if line.strip():
        yield rows.item(number, f"line {number}", _parsed(line))


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
  with store.open_file(path) as file:
    rest, more, count = b"", True, 0
    while more:
      block = file.read(TEXT_BLOCK)
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
