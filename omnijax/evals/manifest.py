"""The texts or the files of one modality in a manifest, for evaluations."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def texts(manifest: Path) -> list[str]:
  """Texts and transcripts of a manifest, or the lines of a plain text file.

  Raises:
    ValueError: no such file, a line that is no document, or no text.
  """
  if manifest.suffix not in (".jsonl", ".json"):
    return [line for line in _lines(manifest, "text") if line.strip()]
  keys = ("text", "transcript")
  found = [part[key] for part in _parts(manifest, "text") for key in keys if part.get(key)]
  return _some(found, manifest, "text")


def files(manifest: Path, kind: str) -> list[Path]:
  """Files of a kind (image, audio) in the order of the manifest; paths are relative to it.

  Raises:
    ValueError: no such file, a line that is no document, or no part of this kind.
  """
  found = [manifest.parent / part[kind] for part in _parts(manifest, kind) if kind in part]
  return _some(found, manifest, kind)


def _parts(manifest: Path, kind: str) -> Iterator[dict[str, Any]]:
  """Parts of documents {"parts": [{KIND: ...}, ...]}, or of lines that are just {KIND: ...}."""
  for number, line in enumerate(_lines(manifest, kind), 1):
    try:
      item = json.loads(line) if line.strip() else {"parts": []}
      yield from item.get("parts", [item])
    except (ValueError, AttributeError) as error:
      raise ValueError(f"{manifest} line {number} is no document ({error}); wanted "
                       f'{{"parts": [{{"{kind}": ...}}]}}') from error


def _lines(manifest: Path, kind: str) -> list[str]:
  if not manifest.is_file():
    raise ValueError(f"--data {manifest} is not a file; wanted JSON lines, such as "
                     f'{{"{kind}": ...}}')
  return manifest.read_text("utf-8").splitlines()


def _some(found: list[Any], manifest: Path, kind: str) -> list[Any]:
  if not found:
    raise ValueError(f'{manifest} has no {kind}: wanted lines with a "{kind}"; name another '
                     "manifest.")
  return found
