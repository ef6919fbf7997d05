"""`omnijax checkpoint ls|verify|diff`: what there is, whether it is whole, how two differ."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
from orbax.checkpoint import v1 as ocp
from rich.console import Console
from rich.progress import track
from rich.table import Table

from omnijax import config
from omnijax.checkpoint import identity as identity_lib
from omnijax.checkpoint import manifest
from omnijax.job import saved

PARTS = ("model", "training")


def steps_of(directory: Path) -> list[Path]:
  """Directories of the checkpoints in a run, in its `checkpoints`, or just the one given.

  Raises:
    FileNotFoundError: there is none.
  """
  if directory.name.isdigit() and directory.is_dir():
    return [directory]
  inside = directory / "checkpoints" if (directory / "checkpoints").is_dir() else directory
  found = [inside / str(step) for step in saved.steps(inside)]
  if not found:
    raise FileNotFoundError(f"no checkpoint in {inside}; name a run, its checkpoints or one step.")
  return found


def ls(directory: Path) -> None:
  """Prints step, time, size, number of values and format of each checkpoint."""
  table = Table("step", "written", "GiB", "files listed", "format", "experiment")
  for path in steps_of(directory):
    found = identity_lib.read(path) or {}
    files = [p for p in path.rglob("*") if p.is_file()]
    size = sum(p.stat().st_size for p in files)
    written = datetime.datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "seconds")
    listed = _listed(path)
    table.add_row(path.name, written, f"{size / 2**30:.3f}", listed,
                  str(found.get("format", "unreadable")),
                  str(found.get("config", {}).get("name", "")))
  Console().print(table)


def _listed(path: Path) -> str:
  try:
    listed = manifest.read(path)
  except (ValueError, OSError):
    return "unreadable"
  return "no" if listed is None else str(len(listed))


def verify(directory: Path) -> None:
  """Checks files and arrays of each checkpoint, and prints what is wrong.

  Raises:
    ValueError: something is.
  """
  bad = []
  console = Console()
  for path in track(steps_of(directory), "verifying", console=console, transient=True):
    wrong = manifest.problems(path) or _wrong_arrays(path)
    console.print(f"{path}: {'; '.join(wrong) or 'good'}", soft_wrap=True, highlight=False)
    bad += [path.name] if wrong else []
  if bad:
    raise ValueError(f"{len(bad)} of the checkpoints are damaged ({', '.join(bad)}); training goes "
                     "on from the newest good one by itself.")


def _wrong_arrays(path: Path) -> list[str]:
  from omnijax.checkpoint import arrays as arrays_lib

  found = identity_lib.read(path)
  if found is None:
    return ["its metadata can't be read"]
  identity_lib.check_format(found, path)
  wrong = []
  for part in PARTS:
    try:
      got = _arrays(path, part)
    except Exception as error:  # whatever orbax meets first in a damaged file
      return [f"{part} can't be read: {' '.join(str(error.__cause__ or error).split())[:200]}"]
    prints = arrays_lib.fingerprints(got)
    wrong += [f"{part}: {name} has other bits than were saved"
              for name, saved in found["fingerprints"][part].items() if prints.get(name) != saved]
  return wrong


def _arrays(path: Path, part: str) -> dict[str, Any]:
  """On the host, whatever mesh they were saved on."""
  import jax

  like = ocp.checkpointables_metadata(path.absolute()).metadata[part]
  one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  want = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one) for name, x in like.items()}
  return ocp.load_checkpointables(path.absolute(), {part: want})[part]


def diff(one: Path, other: Path) -> None:
  """Prints which settings and which arrays of two checkpoints differ, and by how much."""
  paths = [steps_of(p)[-1] for p in (one, other)]
  metadata = [identity_lib.read(p) for p in paths]
  for path, found in zip(paths, metadata, strict=True):
    identity_lib.check_format(found, path)
  a, b = (config.flat({k: v for k, v in (m or {}).items() if k != "fingerprints"})
          for m in metadata)
  console = Console()
  settings = Table("setting", *map(str, paths))
  for name in sorted({*a, *b}):
    if a.get(name) != b.get(name):
      settings.add_row(name, str(a.get(name)), str(b.get(name)))
  arrays = Table("array", "largest difference", "of largest value")
  for part in PARTS:
    prints = [m["fingerprints"][part] for m in metadata if m is not None]
    names = [n for n in sorted({*prints[0], *prints[1]}) if prints[0].get(n) != prints[1].get(n)]
    if names:
      x, y = (_arrays(p, part) for p in paths)
      for name in names:
        arrays.add_row(f"{part}.{name}", *_difference(x.get(name), y.get(name)))
  for table in (settings, arrays):
    if table.row_count:
      console.print(table)
  if not settings.row_count and not arrays.row_count:
    console.print("no difference")


def _difference(x: Any, y: Any) -> tuple[str, str]:
  if x is None or y is None:
    return "only in " + ("the first" if y is None else "the second"), ""
  if x.shape != y.shape or x.dtype != y.dtype:
    return f"{x.dtype}{list(x.shape)} and {y.dtype}{list(y.shape)}", ""
  x, y = (np.asarray(v, np.float64) for v in (x, y))
  return f"{np.abs(x - y).max():.3g}", f"{np.abs(x).max():.3g}"
