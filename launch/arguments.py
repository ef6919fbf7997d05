"""What the engines that write a text have in common on the command line."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from launch import local
from omnijax.arguments import Parser


def parser(engine: str, text: str) -> argparse.ArgumentParser:
  """One that takes what `omnijax train` takes after `--`, and where the text goes."""
  made = Parser(prog=f"python -m launch {engine}", description=text)
  made.add_argument("--name", help="of the job (default: of the run directory)")
  made.add_argument("--out", type=Path, metavar="FILE", help="writes it there (default: prints it)")
  made.add_argument("train", nargs="+", metavar="-- EXPERIMENT --run-dir DIR ...",
                    help="what `omnijax train` takes")
  return made


def run_dir(train: Sequence[str]) -> PurePosixPath:
  """The directory of the run, on the hosts that run it.

  Raises:
    ValueError: none is named.
  """
  if (found := local.run_dir(train)) is not None:
    return PurePosixPath(found)
  raise ValueError(f"no --run-dir DIR in {' '.join(train)!r}; wanted the directory that the job is "
                   "to go on from when it is started again.")


def label(name: str) -> str:
  """A name as Kubernetes and Google Cloud allow it: lower case letters, digits, dashes.

  Raises:
    ValueError: it has no letter to begin with, or is too long to leave room for parts of the job.
  """
  made = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
  if not made[:1].isalpha() or len(made) > 40:
    raise ValueError(f"--name is {name!r}; wanted 1 to 40 letters, digits and dashes that begin "
                     "with a letter.")
  return made


def put(text: str, out: Path | None) -> None:
  """Writes or prints a text."""
  if out is None:
    sys.stdout.write(text)
  else:
    out.write_text(text)
