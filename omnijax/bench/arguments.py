"""Arguments of `omnijax bench`."""

import argparse
from pathlib import Path
from typing import Any

from omnijax import usage
from omnijax.arguments import Parser, command


def add_actions(commands: Any, *, step: Any, data: Any, voice: Any) -> None:
  """Adds `omnijax bench` and what it measures, each with the function that does it."""
  p = command(commands, "bench", None, "Measures the speed of omnijax on this machine.\n")
  kinds = p.add_subparsers(metavar="WHAT", required=True, parser_class=Parser)
  _step(command(kinds, "step", step, usage.BENCH_STEP, fields=True))
  _data(command(kinds, "data", data, usage.BENCH_DATA))
  _voice(command(kinds, "voice", voice, usage.BENCH_VOICE))


def _step(p: argparse.ArgumentParser) -> None:
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


def _data(p: argparse.ArgumentParser) -> None:
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


def _voice(p: argparse.ArgumentParser) -> None:
  p.add_argument("run", metavar="RUN", type=Path, help="directory of a run")
  p.add_argument("--scenarios", type=Path, required=True, metavar="FILE", help="JSON lines: what "
                 "users say, and when")
  p.add_argument("--sessions", type=_counts, default=(1, 2, 4, 8), metavar="N,N,...",
                 help="talks at once (default: 1,2,4,8)")
  p.add_argument("--seconds", type=float, default=30.0, metavar="X",
                 help="of each talk (default: %(default)s)")
  p.add_argument("--slots", type=int, metavar="N", help="rows of the service (default: as many as "
                 "talks)")
  p.add_argument("--questions", type=int, default=20, metavar="N", help="that the pipeline is "
                 "asked, too; 0: no pipeline (default: %(default)s)")
  p.add_argument("--out", type=Path, metavar="FILE", help="writes all figures as FILE, which ends "
                 "in .json, and a page with charts beside it, in .html")


def _counts(text: str) -> tuple[int, ...]:
  counts = tuple(int(n) for n in text.split(",") if n.strip().isdigit())
  if len(counts) != len(text.split(",")) or min(counts) < 1:
    raise argparse.ArgumentTypeError(f"{text!r}; wanted numbers above 0 with commas, such as 1,2,4")
  return counts
