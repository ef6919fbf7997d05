"""A job of TPU slices on Google Kubernetes Engine by xpk: the command to run.

  python -m launch xpk --topology v6e:16x16 --slices 2 --cluster CLUSTER --image IMAGE \\
    --storage NAME -- /app/exp.py --run-dir /data/runs/first | bash

What follows `--` is what `omnijax train` takes, as seen in a container of IMAGE, which has omnijax
installed with its extra `tpu`. The run directory and the records lie in a storage that
`xpk storage attach` has made known to the cluster, and that all hosts may write to.

A host that is to be emptied is told by SIGTERM: all hosts save the same step and stop. The job is
started again --restarts times in all, unless it ends with 0, 2, 42 or 130. Of xpk 1.16.
"""

import shlex
from collections.abc import Sequence

from launch import arguments, jobset, tpu
from omnijax.job import exits

# xpk always restarts what ends with 42 or more than 126, and sends SIGTERM to a shell around the
# command only. So this shell passes it on, and names what has ended for good by the one code that
# the restarts leave out.
_COMMAND = ("trap 'kill $p' TERM; {command} & p=$!; "
            "while kill -0 $p 2>/dev/null; do wait $p; code=$?; done; "
            "case $code in {for_good}) code={bad_input};; esac; exit $code")
_RESTART = f"1,{exits.BAD_INPUT + 1}-126"


def command(*, name: str, cluster: str, image: str, train: Sequence[str], tpus: tpu.Slice,
            storages: Sequence[str] = (), zone: str | None = None, project: str | None = None,
            grace: int = 300, restarts: int = 50) -> str:
  """The call of `xpk workload create`, an option a line.

  Args:
    name: of the workload: lower case letters, digits and dashes.
    cluster: of xpk.
    image: of the container.
    train: `omnijax train ...`, word by word.
    tpus: the slices.
    storages: names that xpk knows.
    zone, project: of the cluster; gcloud's own by default.
    grace: seconds to save and stop.
    restarts: of the whole job.
  """
  around = _COMMAND.format(command=shlex.join(train), bad_input=exits.BAD_INPUT,
                           for_good=f"{exits.NEVER}|{exits.INTERRUPTED}")
  options = {
    "workload": name, "cluster": cluster, "zone": zone, "project": project,
    "tpu-type": f"{tpus.kind.type}-{tpus.topology}", "num-slices": tpus.slices,
    "docker-image": image, "max-restarts": restarts, "restart-on-exit-codes": _RESTART,
    "termination-grace-period-seconds": grace}
  words = [f"--{k}={shlex.quote(str(v))}" for k, v in options.items() if v is not None]
  words += [f"--storage={shlex.quote(s)}" for s in storages]
  words += [f"--env={exits.STOPPED}={jobset.STOPPED_CODE}", "--env=PYTHONUNBUFFERED=1",
            f"--command={shlex.quote(around)}"]
  return " \\\n  ".join(["xpk workload create", *words]) + "\n"


def main(argv: Sequence[str]) -> int:
  """Prints or writes the command; returns an exit code."""
  parser = arguments.parser("xpk", __doc__ or "")
  tpu.add(parser)
  parser.add_argument("--cluster", required=True, metavar="NAME", help="of xpk")
  parser.add_argument("--image", required=True, help="of the container")
  parser.add_argument("--storage", action="append", default=[], metavar="NAME",
                      help="that xpk knows; may be repeated")
  for option in ("zone", "project"):
    parser.add_argument(f"--{option}", help="of the cluster (default: gcloud's)")
  parser.add_argument("--grace", type=int, default=300, metavar="SECONDS",
                      help="to save and stop (default: %(default)s)")
  parser.add_argument("--restarts", type=int, default=50, metavar="N",
                      help="in all (default: %(default)s)")
  args = parser.parse_args(argv)
  try:
    name = arguments.label(args.name or arguments.run_dir(args.train).name)
    arguments.put(command(
      name=name, cluster=args.cluster, image=args.image, train=["omnijax", "train", *args.train],
      tpus=tpu.parse(args.topology, args.slices), storages=args.storage, zone=args.zone,
      project=args.project, grace=args.grace, restarts=args.restarts), args.out)
  except (ValueError, OSError) as error:
    parser.error(str(error))
  return 0
