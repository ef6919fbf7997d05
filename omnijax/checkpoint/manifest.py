"""What files a checkpoint is made of: their sizes and checksums, written when it is whole.

Processes share the work out: each lists, and later checks, every n-th file.
"""

import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

_NAME = re.compile(r"omnijax_files\.(\d+)-of-(\d+)\.json")
_CHUNK = 2**22


def write(step_dir: Path, process: int, processes: int) -> None:
  """Lists this process's share of a whole checkpoint's files."""
  mine = _files(step_dir)[process::processes]
  listed = {name: [(step_dir / name).stat().st_size, _checksum(step_dir / name)] for name in mine}
  path = step_dir / f"omnijax_files.{process}-of-{processes}.json"
  part = path.with_suffix(".part")
  part.write_text(json.dumps(listed, indent=0), "utf-8")
  part.replace(path)


def read(step_dir: Path) -> dict[str, tuple[int, int]] | None:
  """Size and checksum of every file; None if a process didn't come to list its share.

  Raises:
    ValueError: a list can't be read.
  """
  lists = sorted(p for p in step_dir.iterdir() if _NAME.fullmatch(p.name))
  counts = {found[2] for p in lists if (found := _NAME.fullmatch(p.name))}
  if len(counts) != 1 or len(lists) != int(next(iter(counts))):
    return None
  out: dict[str, tuple[int, int]] = {}
  for path in lists:
    try:
      part: dict[str, Any] = json.loads(path.read_text("utf-8"))
      out |= {str(name): (int(size), int(crc)) for name, (size, crc) in part.items()}
    except (ValueError, TypeError, AttributeError) as error:
      raise ValueError(f"{path.name} can't be read: {error}") from error
  return out


def problems(step_dir: Path, process: int = 0, processes: int = 1) -> list[str]:
  """What is wrong with this process's share of the files, in words.

  A checkpoint whose list of files is not complete has no problem that could be told here.
  """
  try:
    listed = read(step_dir)
  except (ValueError, OSError) as error:
    return [str(error)]
  if listed is None:
    return []
  out = []
  for name in sorted(listed)[process::processes]:
    (size, crc), path = listed[name], step_dir / name
    try:
      have = path.stat().st_size
      if have != size:
        out.append(f"{name} has {have} bytes and was written with {size}")
      elif _checksum(path) != crc:
        out.append(f"{name} has another checksum than it was written with")
    except OSError as error:
      out.append(f"{name} can't be read: {error.strerror or error}")
  return out


def _files(step_dir: Path) -> list[str]:
  found = []
  for folder, _, names in os.walk(step_dir):
    found += [str((Path(folder) / n).relative_to(step_dir)) for n in names
              if not n.startswith("omnijax_files.")]
  return sorted(found)


def _checksum(path: Path) -> int:
  crc = 0
  with path.open("rb") as file:
    while block := file.read(_CHUNK):
      crc = zlib.crc32(block, crc)
  return crc
