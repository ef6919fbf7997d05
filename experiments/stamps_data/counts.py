"""What manifests say, held against what the packages hold."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping


def write(path: pathlib.Path, lines: Iterable[dict]) -> list[dict]:
  """Writes a manifest, whole or not at all, and returns its lines."""
  lines = list(lines)
  temporary = path.with_suffix(".tmp")
  temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
                       "utf-8")
  temporary.replace(path)
  return lines


def compare(in_package: Mapping[str, int], in_manifest: Mapping[str, int]) -> str:
  """A table of both counts.

  Raises:
    ValueError: they differ somewhere.
  """
  names = sorted({*in_package, *in_manifest}, key=[*in_package, *in_manifest].index)
  rows = [(name, in_package.get(name, 0), in_manifest.get(name, 0)) for name in names]
  wide = max(map(len, names))
  table = "\n".join(f"  {name:{wide}}  {a:7,} {b:7,}" for name, a, b in rows)
  head = f"  {'':{wide}}  package    here"
  if wrong := [name for name, a, b in rows if a != b]:
    raise ValueError(f"not all that the packages hold is accounted for, see {wrong}:\n{head}\n"
                     f"{table}\nDelete root and packages in that folder, and build again.")
  return f"{head}\n{table}"
