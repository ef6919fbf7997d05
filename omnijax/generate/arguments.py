"""What `omnijax generate` takes beside how tokens are drawn."""

import argparse
import functools
from pathlib import Path


def add(p: argparse.ArgumentParser) -> None:
  """Adds them to a parser."""
  p.set_defaults(takes_fields=True)
  p.add_argument("run", metavar="RUN", type=Path, help="directory of a run")
  for kind, value in (("text", "TEXT"), ("image", "FILE"), ("audio", "FILE")):
    p.add_argument(f"--{kind}", dest="inputs", action="append", metavar=value, default=[],
                   type=functools.partial(_input, kind), help=f"an input: {kind}")
  p.add_argument("--to", choices=("text", "image", "audio"), required=True, help="what to write")
  p.add_argument("--out", type=Path, metavar="FILE", help="default: print text, or out.png, "
                 "out.wav")
  p.add_argument("--seed", type=int, default=0, help="default: %(default)s")
  p.add_argument("--image-size", type=int, nargs=2, metavar=("H", "W"), help="pixels of a picture "
                 "(default: the model decides)")
  p.add_argument("--max-new", type=int, default=256, metavar="N", help="most positions of text or "
                 "speech; one of speech is 80 ms (default: %(default)s)")
  p.add_argument("--guidance", type=float, default=1.0, metavar="X", help="for a picture, how "
                 "much more what is asked counts than in training (default: %(default)s)")


def _input(kind: str, value: str) -> tuple[str, str]:
  return kind, value
