"""The command `omnijax bench data`: its stages, a table, and a file on request."""

import argparse
import dataclasses
import json as json_lib
import platform
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from omnijax import bench
from omnijax.bench import data as data_lib

_TOLD = {
  "packing_efficiency": "of all positions of rows, those that documents use",
  "frame_efficiency": "of all frames of rows, those that documents use",
  "positions_per_s_per_core": "read, rendered and packed, from the page cache",
  "ratio_to_grain_first_fit": "times as fast as grain's packing of the same records, in turn",
  "plan_100m_s": "seconds to plan 100 million documents",
  "plan_peak_gib": "memory of all processes while planning",
  "seek_s": "to a step of a plan that is counted",
}


def run(args: argparse.Namespace) -> None:
  """Measures, prints, and writes where asked for.

  Raises:
    ValueError: an option is out of range, or the file can't be written.
  """
  for name in ("documents", "records", "positions", "frames", "repeats"):
    if getattr(args, name) < 1:
      raise ValueError(f"--{name} is {getattr(args, name)}; wanted 1 or more.")
  for path, what in ((args.json and args.json.absolute().parent, "--json"), (args.dir, "--dir")):
    if path is not None and not path.is_dir():
      raise ValueError(f"{what}: there is no directory {path}.")
  settings = dataclasses.replace(data_lib.DATA, positions=args.positions, frames=args.frames)
  console = Console(stderr=True)
  with tempfile.TemporaryDirectory(dir=args.dir) as folder:
    root = Path(folder)
    with console.status(f"planning {args.documents:,} documents"):
      values = data_lib.planning(root, args.documents, settings, bench.cores())
    with console.status(f"reading {args.records:,} documents, ours and grain's in turn"):
      (root / "records").mkdir()
      data_lib.synthetic_records(root / "records", args.records)
      settings = dataclasses.replace(settings, sources=(str(root / "records"),))
      values |= data_lib.reading(root / "records", settings, data_lib.VOCAB, seconds=1.0,
                                 repeats=args.repeats)
  values |= {"positions": args.positions, "frames": args.frames, "cores": bench.cores(),
             "machine": platform.processor() or platform.machine(),
             "python": platform.python_version()}
  _print(values)
  if args.json is not None:
    args.json.write_text(json_lib.dumps(values, indent=1) + "\n", "utf-8")


def _print(values: dict[str, Any]) -> None:
  table = Table("", "", "", title=f"rows of {values['positions']} positions and "
                f"{values['frames']} frames")
  for name, told in _TOLD.items():
    table.add_row(name, f"{values[name]:,.4g}", told)
  Console().print(table)
