"""Arguments of `omnijax prepare`."""

import argparse
from pathlib import Path


def add(p: argparse.ArgumentParser) -> None:
  """Adds them, without those of the tokenizers."""
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
