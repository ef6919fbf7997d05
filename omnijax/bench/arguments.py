"""Arguments of `omnijax bench`."""

import argparse
from pathlib import Path


def step(p: argparse.ArgumentParser) -> None:
  """Adds those of `bench step`, beside fields of a run."""
  p.add_argument("experiment", metavar="EXPERIMENT", type=Path, nargs="?", help="Python file")
  p.add_argument("--against", choices=("torch",), help="the same model in PyTorch, in turn")
  for name, count, text in (("repeats", 7, "blocks of steps that are timed"),
                            ("steps", 10, "steps of a block")):
    p.add_argument(f"--{name}", type=int, default=count, metavar="N",
                   help=f"{text} (default: %(default)s)")
  p.add_argument("--document", type=int, metavar="N", help="mean positions of a made document "
                 "(default: a quarter of a row)")
  p.add_argument("--mix", type=float, nargs=3, default=(60.0, 25.0, 15.0),
                 metavar=("TEXT", "IMAGE", "AUDIO"), help="by positions (default: 60 25 15)")
  for name, text in (("json", "all figures"), ("html", "a page with a plot")):
    p.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"writes {text}")


def data(p: argparse.ArgumentParser) -> None:
  """Adds those of `bench data`."""
  p.add_argument("--documents", type=int, default=100_000_000, metavar="N",
                 help="that are planned (default: %(default)s, 1.6 GB of disk)")
  p.add_argument("--records", type=int, default=60_000, metavar="N",
                 help="documents that are read (default: %(default)s)")
  p.add_argument("--positions", type=int, default=4096, help="of a row (default: %(default)s)")
  p.add_argument("--frames", type=int, default=2048, help="of a row (default: %(default)s)")
  p.add_argument("--repeats", type=int, default=7, metavar="N",
                 help="turns of each side (default: %(default)s)")
  p.add_argument("--dir", type=Path, help="folder for what is made meanwhile (default: the "
                 "system's for temporary files)")
  p.add_argument("--json", type=Path, metavar="FILE", help="writes all figures")
