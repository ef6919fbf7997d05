"""Arguments of `omnijax prepare` and of `omnijax data`."""

import argparse
from pathlib import Path
from typing import Any

from omnijax import config, usage
from omnijax.arguments import Parser, command


def add(p: argparse.ArgumentParser) -> None:
  """Adds those of `omnijax prepare`."""
  p.add_argument("source", metavar="SOURCE", help="JSON lines, texts, tar shards, Parquet, or a "
                 "folder")
  p.add_argument("--out", type=Path, required=True, help="directory to write")
  p.add_argument("--strict", action="store_true", help="stop at the first bad item")
  p.add_argument("--image-size", type=int, default=0, metavar="N", help="scale larger pictures "
                 "down to N pixels of their longer side (default: refuse what doesn't fit)")
  p.add_argument("--heldout", type=float, default=0.0, metavar="SHARE", help="of documents, by a "
                 "hash of their ids, to write to OUT/heldout instead (default: none)")
  p.add_argument("--dedup", action="store_true", help="leave out what says exactly the same as "
                 "another document")
  p.add_argument("--engine", choices=("local", "ray"), default="local", help="processes here, or "
                 "workers of a Ray cluster that all see SOURCE and OUT (default: %(default)s)")
  p.add_argument("--processes", type=int, metavar="N", help="that decode files, or workers of Ray "
                 "(default: by cores and work)")
  for kind in ("text", "image", "audio"):
    p.add_argument(f"--tokenizers.{kind}", dest=kind, default=config.PACKAGED, metavar="DIR",
                   help=f"{kind} tokenizer (default: %(default)s)")


def add_actions(commands: Any, show: Any) -> None:
  """Adds `omnijax data` and its actions, each with the function that does it."""
  p = command(commands, "data", None, usage.DATA)
  actions = p.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
  p = command(actions, "show", show, usage.DATA_SHOW, fields=True)
  p.add_argument("experiment", metavar="RUN|EXPERIMENT", type=Path, nargs="?",
                 help="directory of a run, or a Python file")
  p.add_argument("--step", type=int, metavar="T", help="from 0, as in the run's metrics.jsonl")
  p.add_argument("--rows", type=int, default=4, metavar="N", help="of the batch, the first so many "
                 "(default: %(default)s)")
  p.add_argument("--out", type=Path, metavar="FILE", help="page to write (default: "
                 "NAME_step_T.html, here)")
