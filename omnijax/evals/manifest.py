"""The texts or files of one modality in a manifest, for evaluations."""

import json
from pathlib import Path
from typing import NamedTuple


class Part(NamedTuple):
  """A text, or a file with what is said in it."""

  value: str | Path
  transcript: str | None


def parts(manifest: Path, kind: str) -> list[Part]:
  """All parts of a kind, in order.

  Args:
    manifest: JSON lines, {"parts": [{KIND: ...}, ...]} or just {KIND: ...}; for text, a plain
      text file of one sentence a line will do, and transcripts count as text.
    kind: text, image or audio.

  Raises:
    ValueError: the file, a line, or anything of this kind is missing.
  """
  if not manifest.is_file():
    raise ValueError(f"--data {manifest} is not a file; wanted JSON lines, such as "
                     f'{{"{kind}": {"..." if kind == "text" else "path"!r}}}')
  lines = [line for line in manifest.read_text("utf-8").splitlines() if line.strip()]
  if kind == "text" and manifest.suffix not in (".jsonl", ".json"):
    return [Part(line, None) for line in lines]
  out = []
  for number, line in enumerate(lines, 1):
    try:
      item = json.loads(line)
      for part in item.get("parts", [item]):
        if kind == "text":
          out += [Part(part[k], None) for k in ("text", "transcript") if part.get(k)]
        elif kind in part:
          out.append(Part(manifest.parent / part[kind], part.get("transcript")))
    except (ValueError, TypeError, AttributeError) as error:
      raise ValueError(f"{manifest} line {number} is no document ({error}); wanted "
                       f'{{"parts": [{{"{kind}": ...}}]}}') from error
  if not out:
    raise ValueError(f"{manifest} has no {kind}: {len(lines)} lines, none with a \"{kind}\"; name "
                     "another manifest.")
  return out
