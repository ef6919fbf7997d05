"""What `omnijax sweep` takes beside fields of a run."""

import argparse
from pathlib import Path

ENGINES = ("local", "ray", "slurm")
SAMPLERS = ("tpe", "gp", "cmaes", "qmc", "random")
PRUNERS = ("median", "halving", "hyperband")
NAMES = ("engine", "jobs", "devices", "cpus", "restarts", "objective", "optuna", "trials", "pruner",
         "seed")


def add(p: argparse.ArgumentParser) -> None:
  """Adds them to a parser."""
  p.add_argument("experiment", metavar="EXPERIMENT", type=Path, nargs="?", help="Python file")
  p.add_argument("--dir", type=Path, help="directory of the sweep (default: sweeps/NAME, of the "
                 "experiment's file)")
  p.add_argument("--engine", choices=ENGINES, default="local",
                 help="who runs trials (default: %(default)s)")
  p.add_argument("--jobs", type=int, metavar="N", help="trials at once (default: one for each GPU, "
                 "else one; of an engine, what it has room for)")
  p.add_argument("--devices", type=int, metavar="N", help="of each trial: GPUs where there are "
                 "some (default: 1), else virtual ones of the CPU; with slurm, GPUs (default: 0)")
  p.add_argument("--cpus", type=int, metavar="N", help="of each trial, with ray and slurm "
                 "(default: 1)")
  p.add_argument("--restarts", type=int, default=2, metavar="N", help="of a trial, in a row "
                 "without a new checkpoint (default: %(default)s)")
  p.add_argument("--objective", metavar="NAME", help="figure that trials are compared by (default: "
                 "eval/loss where they are evaluated, else loss)")
  p.add_argument("--optuna", nargs="?", const="tpe", default="", metavar="SAMPLER",
                 choices=("", *SAMPLERS), help="chooses trials one by one: "
                 f"{SAMPLERS[0]} (default), {', '.join(SAMPLERS[1:])}")
  p.add_argument("--trials", type=int, metavar="N", help="that Optuna chooses, earlier calls "
                 "included (default: as many as sweep() has)")
  p.add_argument("--pruner", choices=("", *PRUNERS), default="", metavar="NAME",
                 help=f"stops trials that are worse than others: {', '.join(PRUNERS)}")
  p.add_argument("--seed", type=int, metavar="N", help="of Optuna's choices (default: 0)")
