"""What `omnijax plan` takes beside fields of a run."""

import argparse
from pathlib import Path


def add(p: argparse.ArgumentParser) -> None:
  """Adds them to a parser."""
  p.add_argument("experiment", metavar="EXPERIMENT", type=Path, nargs="?", help="Python file")
  p.add_argument("--topology", metavar="CHIP:SHAPE", help="such as v5e:4x4, v5p:4x4x4, v6e:16x16, "
                 "tpu7x:2x2x1, h100:8, cpu:8")
  p.add_argument("--slices", type=int, default=1, metavar="N", help="of that shape, over a slower "
                 "network (default: %(default)s)")
  p.add_argument("--decode", action="store_true", help="the step of generation instead: data.rows "
                 "streams at once, of data.positions each")
  p.add_argument("--search", type=Path, metavar="FILE", nargs="?", const=Path(), help="compiles "
                 "variants, ranks them, and writes the best as an experiment (default: "
                 "NAME_TOPOLOGY.py)")
  p.add_argument("--tries", type=int, metavar="N", help="variants that --search compiles, earlier "
                 "calls included (default: 6)")
  p.add_argument("--document", type=int, metavar="N", help="positions of a document, for the FLOPs "
                 "of attention (default: a whole row)")
  p.add_argument("--price", type=float, metavar="X", help="of a chip and hour, for the cost of a "
                 "billion tokens")
  for name, text in (("json", "all figures"), ("html", "a page with plots"),
                     ("hlo", "the compiled program")):
    p.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"writes {text}")
