"""A job of SLURM as the text of a script for sbatch: started again as its exit codes say."""

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from omnijax.job import exits

# srun ends with the highest code of all tasks. Of those that end a job for good each gets another
# one, above all that a task may end with otherwise (128 + the number of a signal).
_FOR_GOOD = {exits.BAD_INPUT: 202, exits.INTERRUPTED: 230, exits.NEVER: 242}

_LEAVE_S = 60  # for the other tasks to end by themselves after the first did

# The newest checkpoint's step, or nothing; of a shell that has the directory in run_dir.
NEWEST = """\
newest() {
  ls "$run_dir/checkpoints" 2>/dev/null | grep -Ex '[0-9]+' | sort -n | tail -n 1
}
"""
_COMMAND = """\
set -- {command}
"""
_LINE = """\
# This task's line of the file of commands.
line=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {commands})
eval "set -- $line"
"""
_BODY = """\
run_dir= before=
for word; do
  [ "$before" = --run-dir ] && run_dir=$word
  case $word in --run-dir=*) run_dir=${{word#--run-dir=}};; esac
  before=$word
done
if [ -z "$run_dir" ]; then echo "launch: no --run-dir in: $*" >&2; exit {bad_input}; fi
{newest}
before=$(newest)
# SIGTERM goes to all processes of a task: this shell waits while the other one saves.
srun {srun} bash -c '
  trap : TERM
  "$@"
  code=$?
  case $code in {there} esac
  exit $code' task "$@"
code=$?
case $code in {back} esac

# Starts in a row without a new checkpoint are counted in a file, since this script begins anew.
count=$run_dir/starts.$SLURM_JOB_ID
tries=$(($(cat "$count" 2>/dev/null || echo 0) + 1))
after=$(newest)
[ "${{after:--1}}" -gt "${{before:--1}}" ] && tries=1
told="launch: start ${{SLURM_RESTART_COUNT:-0}} of job $SLURM_JOB_ID ended with $code"
case $code in
  {final}) echo "$told";;
  *)
    if [ "$tries" -le {restarts} ]; then
      echo "$told; again (start $tries of {restarts} without a new checkpoint)"
      mkdir -p "$run_dir" && echo "$tries" > "$count"
      scontrol requeue "{job}" && sleep 60  # SLURM ends this script meanwhile
    else
      echo "$told; $tries starts brought no new checkpoint"
    fi;;
esac
rm -f "$count"
exit "$code"
"""


def script(*, name: str, command: Sequence[str] | Path, nodes: int = 1,
           array: tuple[int, int] | None = None, gpus: int = 0, cpus: int | None = None,
           time: str | None = None, grace: int = 300, restarts: int = 5,
           setup: Sequence[str] = (), options: Sequence[str] = ()) -> str:
  """The script: one process on each node, or for each GPU, runs the command.

  What ends with 0, 2, 42 or 130 has ended for good. Anything else is requeued, until so many starts
  in a row brought no new checkpoint; a run that was stopped before its end, as SLURM does when the
  time is up, says so with 75.

  Args:
    name: of the job.
    command: `omnijax train ... --run-dir DIR`, word by word; of an array, the file with such a
      command on each line, quoted for a shell.
    nodes: of the job, or of each task of an array.
    array: how many lines the file has, and how many of them may run at once.
    gpus: of each node; each gets a process, as jax expects of SLURM.
    cpus: of each process.
    time: limit as sbatch takes it, such as 1-00:00:00; the cluster's own by default.
    grace: seconds before the limit at which the run is asked to save and stop.
    restarts: starts in a row without a new checkpoint.
    setup: lines of shell that come before, such as `module load cuda`.
    options: more of sbatch's options, such as partition=long.
  """
  assert isinstance(command, Path) == (array is not None), (command, array)
  lines = [f"--job-name={name}", f"--nodes={nodes}", f"--ntasks-per-node={gpus or 1}"]
  if gpus:
    lines.append(f"--gpus-per-node={gpus}")
  if cpus is not None:
    lines.append(f"--cpus-per-task={cpus}")
  if time is not None:
    lines.append(f"--time={time}")
  if array is not None:
    lines.append(f"--array=0-{array[0] - 1}%{array[1]}")
  lines += ["--requeue", "--open-mode=append", f"--signal=TERM@{grace}",
            *(f"--{option}" for option in options)]
  # What sbatch is told of CPUs, srun is not.
  srun = ["--kill-on-bad-exit=0", f"--wait={_LEAVE_S}",
          *([f"--cpus-per-task={cpus}"] if cpus is not None else [])]
  if isinstance(command, Path):
    what = _LINE.format(commands=shlex.quote(str(command)))
  else:
    what = _COMMAND.format(command=shlex.join(command))
  # The number of an array's last task is that of the whole array, too.
  job = "$SLURM_JOB_ID" if array is None else "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
  final = "|".join(map(str, (exits.DONE, *_FOR_GOOD)))
  return "\n".join([
    "#!/bin/bash", *(f"#SBATCH {line}" for line in lines), "",
    f"export {exits.STOPPED}={exits.AGAIN} PYTHONUNBUFFERED=1", *setup,
    what + _BODY.format(
      bad_input=exits.BAD_INPUT, newest=NEWEST, srun=" ".join(srun), final=final, job=job,
      restarts=restarts,
      there=" ".join(f"{k}) code={v};;" for k, v in _FOR_GOOD.items()),
      back=" ".join(f"{v}) code={k};;" for k, v in _FOR_GOOD.items()))])


def submit(text: str) -> str:
  """Gives a script to SLURM; returns the number of the job.

  Raises:
    ValueError: there is no sbatch here, or it refuses.
  """
  try:
    done = subprocess.run(["sbatch", "--parsable"], input=text, text=True, capture_output=True,
                          check=True)
  except FileNotFoundError as error:
    raise ValueError("there is no sbatch here; wanted a host that submits to SLURM.") from error
  except subprocess.CalledProcessError as error:
    raise ValueError(f"sbatch refused the script: {error.stderr.strip()}") from error
  return done.stdout.strip().split(";")[0]  # JOB or JOB;CLUSTER
