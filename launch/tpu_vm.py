"""A job on TPU VMs of Google Cloud, without Kubernetes: the commands of gcloud to run.

  python -m launch tpu-vm --topology v5p:4x4x4 --zone us-east5-a --out job.sh \\
    --setup 'pip install -q "omnijax[tpu] @ git+https://HOST/omnijax"' \\
    --setup 'sudo mkdir -p /data && sudo mount -t nfs SERVER:/share /data' \\
    -- /data/exp.py --run-dir /data/runs/first

What follows `--` is what `omnijax train` takes, as seen on each TPU VM; the run directory and the
records lie on a file system that --setup mounts on all of them.

The script asks for the slices, unless they are there, waits for them, runs each line of --setup on
every host and starts the training, which then needs no connection to it. Each host starts its
process again unless it ended with 0, 2, 42 or 130, until so many starts in a row brought no new
checkpoint. If hosts were taken away, delete what is left, and run the script once more.
"""

import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath

from launch import arguments, tpu
from omnijax.job import exits, sbatch

_FINAL = "|".join(map(str, sorted((exits.DONE, exits.BAD_INPUT, exits.NEVER, exits.INTERRUPTED))))
_JOB = """\
#!/bin/bash
set -eu
{{  # a shell that gets this by a pipe reads all of it before ssh might
gcloud compute tpus queued-resources describe {where} > /dev/null 2>&1 ||
  gcloud compute tpus queued-resources create {where} \\
    {ask}
while :; do
  state=$(gcloud compute tpus queued-resources describe {where} --format='value(state.state)')
  echo "$state"
  case $state in ACTIVE) break;; FAILED|SUSPENDED) exit 1;; esac
  sleep 30
done
{setup}# What every host runs from here on.
job=$(cat << 'JOB'
run_dir={run_dir}
{newest}tries=0
while :; do
  before=$(newest)
  {train}
  code=$?
  case $code in {final}) break;; esac
  after=$(newest)
  [ "${{after:--1}}" -gt "${{before:--1}}" ] && tries=0
  tries=$((tries + 1))
  [ "$tries" -gt {restarts} ] && break
  echo "launch: ended with $code; again (start $tries of {restarts} without a new checkpoint)"
  sleep 10
done
echo "launch: ended with $code"
JOB
)
{every} \\
  --command="nohup bash -c $(printf %q "$job") >> {log} 2>&1 < /dev/null &"
cat << 'TOLD'
To look at it, to stop it with everything saved, and to give the TPUs back:
  {every} --command='tail {log}'
  {every} --command="pkill -TERM -f '^{process}'"
  gcloud compute tpus queued-resources delete {where} --force
TOLD
}} < /dev/null
"""


def script(*, name: str, zone: str, train: Sequence[str], run_dir: PurePosixPath, tpus: tpu.Slice,
           setup: Sequence[str] = (), options: Sequence[str] = (), restarts: int = 5) -> str:
  """The script that asks for the TPUs and starts the job.

  Args:
    name: of the TPUs: lower case letters, digits and dashes.
    zone: such as us-east5-a.
    train: `PYTHON -m omnijax.cli train ...`, word by word.
    run_dir: of the run.
    tpus: the slices.
    setup: lines of shell for each host, each run once all hosts have run the one before.
    options: more of `gcloud compute tpus queued-resources create`, such as spot.
    restarts: starts in a row without a new checkpoint, of each host.

  Raises:
    ValueError: there are no such TPU VMs.
  """
  if tpus.kind.version is None:
    raise ValueError(f"{tpus.kind.type} comes with Kubernetes only; use `launch jobset` or xpk.")
  where = f"{name} --zone={shlex.quote(zone)}"
  if tpus.topology.count("x") == 1:  # of so many chips there is one shape
    ask = [f"--accelerator-type={tpus.kind.type}-{tpus.hosts * tpus.chips}"]
  else:
    ask = [f"--type={tpus.kind.type}", f"--topology={tpus.topology}"]
  ask += [f"--runtime-version={tpus.kind.version}",
          *([f"--node-id={name}"] if tpus.slices == 1 else
            [f"--node-count={tpus.slices}", f"--node-prefix={name}"]),
          *(f"--{option}" for option in options)]
  every = f"gcloud compute tpus queued-resources ssh {where} --node=all --worker=all"
  return _JOB.format(
    where=where, ask=" \\\n    ".join(ask), every=every, log=f"omnijax-{name}.log",
    setup="".join(f"{every} \\\n  --command={shlex.quote(line)}\n" for line in setup),
    run_dir=shlex.quote(str(run_dir)), newest=sbatch.NEWEST, train=shlex.join(train), final=_FINAL,
    restarts=restarts, process=" ".join(train[:3]))


def main(argv: Sequence[str]) -> int:
  """Prints or writes the script; returns an exit code."""
  parser = arguments.parser("tpu-vm", __doc__ or "")
  tpu.add(parser)
  parser.add_argument("--zone", required=True, help="of Google Cloud, such as us-east5-a")
  parser.add_argument("--setup", action="append", default=[], metavar="LINE",
                      help="of shell, run on each host before; may be repeated")
  parser.add_argument("--gcloud", action="append", default=[], metavar="OPTION",
                      help="more of `queued-resources create`, such as spot; may be repeated")
  parser.add_argument("--restarts", type=int, default=5, metavar="N",
                      help="in a row without a new checkpoint (default: %(default)s)")
  parser.add_argument("--python", default="python3", metavar="FILE",
                      help="that has omnijax on the hosts (default: %(default)s)")
  args = parser.parse_args(argv)
  try:
    run_dir = arguments.run_dir(args.train)
    arguments.put(script(
      name=arguments.label(args.name or run_dir.name), zone=args.zone, run_dir=run_dir,
      train=[args.python, "-m", "omnijax.cli", "train", *args.train],
      tpus=tpu.parse(args.topology, args.slices), setup=args.setup, options=args.gcloud,
      restarts=args.restarts), args.out)
  except (ValueError, OSError) as error:
    parser.error(str(error))
  return 0
