"""A job of SLURM: the script for sbatch, printed, written or submitted.

  python -m launch slurm --nodes 2 --time 1-00:00:00 -- exp.py --run-dir /shared/runs/first
  python -m launch slurm --nodes 4 --gpus 8 --sbatch partition=gpu --submit -- exp.py --run-dir r

What follows `--` is what `omnijax train` takes; paths are as seen from where sbatch is run, and by
every node. The script runs one process on each node, or for each GPU. Before the time is up all
save and stop, and the job is put back into the queue, as after anything else than exit codes 0, 2,
42 and 130, until so many starts in a row brought no new checkpoint. To end it: scancel JOB.
"""

import sys
from collections.abc import Sequence

from launch import arguments
from omnijax.job import sbatch


def main(argv: Sequence[str]) -> int:
  """Prints, writes or submits the script; returns an exit code."""
  parser = arguments.parser("slurm", __doc__ or "")
  parser.add_argument("--nodes", type=int, default=1, metavar="N", help="default: %(default)s")
  parser.add_argument("--gpus", type=int, default=0, metavar="N",
                      help="of each node; each gets a process (default: none)")
  parser.add_argument("--cpus", type=int, metavar="N",
                      help="of each process (default: what the cluster gives)")
  parser.add_argument("--time", metavar="D-HH:MM:SS", help="limit (default: the cluster's)")
  parser.add_argument("--grace", type=int, default=300, metavar="SECONDS",
                      help="before the limit, to save (default: %(default)s)")
  parser.add_argument("--restarts", type=int, default=5, metavar="N",
                      help="in a row without a new checkpoint (default: %(default)s)")
  parser.add_argument("--setup", action="append", default=[], metavar="LINE",
                      help="of shell, run before; may be repeated")
  parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION",
                      help="more of sbatch's, such as partition=gpu; may be repeated")
  parser.add_argument("--python", default=sys.executable, metavar="FILE",
                      help="that has omnijax on the nodes (default: %(default)s)")
  parser.add_argument("--submit", action="store_true", help="gives it to sbatch and prints the "
                      "number of the job")
  args = parser.parse_args(argv)
  try:
    name = args.name or arguments.run_dir(args.train).name
    text = sbatch.script(
      name=name, command=[args.python, "-m", "omnijax.cli", "train", *args.train],
      nodes=args.nodes, gpus=args.gpus, cpus=args.cpus, time=args.time, grace=args.grace,
      restarts=args.restarts, setup=args.setup, options=args.sbatch)
    if not args.submit or args.out is not None:
      arguments.put(text, args.out)
    if args.submit:
      print(sbatch.submit(text))
  except (ValueError, OSError) as error:
    parser.error(str(error))
  return 0
