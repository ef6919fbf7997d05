"""What the engines that write a text have in common on the command line."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from omnijax.arguments import Parser


def parser(engine: str, text: str) -> argparse.ArgumentParser:
  """One that takes what `omnijax train` takes after `--`, and where the text goes."""
  made = Parser(prog=f"python -m launch {engine}", description=text)
  made.add_argument("--name", help="of the job (default: of the run directory)")
  made.add_argument("--out", type=Path, metavar="FILE", help="writes it there (default: prints it)")
  made.add_argument("train", nargs="+", metavar="-- EXPERIMENT --run-dir DIR ...",
                    help="what `omnijax train` takes")
  return made


def run_dir(train: Sequence[str]) -> Path:
  """The directory of the run.

  Raises:
    ValueError: none is named.
  """
  for word, after in zip(train, [*train[1:], ""], strict=True):
    name, _, value = word.partition("=")
    if name == "--run-dir" and (value or after):
      return Path(value or after)
  raise ValueError(f"no --run-dir DIR in {' '.join(train)!r}; wanted the directory that the job is "
                   "to go on from when it is started again.")


def put(text: str, out: Path | None) -> None:
  """Writes or prints a text."""
  if out is None:
    sys.stdout.write(text)
  else:
    out.write_text(text)
