"""Trials as arrays of jobs of SLURM, which starts them again itself.

Jobs outlive a sweep that is killed: the next one finds them by slurm.json, and waits for them.
"""

import json
import re
import shlex
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from omnijax.job import exits, sbatch
from omnijax.sweep import manifest
from omnijax.sweep import trial as trial_lib

_POLL_S = 5.0  # between questions to SLURM, at least
_MOST = 1000  # tasks of an array, by SLURM's default
_JOBS, _FOLDER = "slurm.json", "slurm"


class Slurm:
  """Submits arrays, from a host with sbatch; further options of it are taken from SBATCH_PARTITION,
  SBATCH_TIMELIMIT and its other variables.

  Args:
    root: directory of the sweep, which all nodes see.
    jobs: trials at once; by default as many as SLURM lets run.
    gpus: of each trial.
    cpus: of each process of a trial.
    restarts: of a trial, in a row without a new checkpoint.
    waits: whether trials are chosen one after another, so that not all are submitted at once.

  Raises:
    ValueError: trials are chosen one after another, and nobody says how many are at work.
  """

  def __init__(self, root: Path, jobs: int | None, gpus: int | None, cpus: int | None,
               restarts: int, waits: bool):
    if waits and jobs is None:
      raise ValueError("with --engine slurm, --optuna wants --jobs: of how many trials it may not "
                       "know the end of yet.")
    self._root, self._limit = root, jobs or _MOST
    self.room = self._limit if waits else _MOST
    self._gpus, self._cpus, self._restarts = gpus or 0, cpus, restarts
    self._jobs: dict[str, str] = {}  # id of a trial -> JOB_TASK
    self._asked = 0.0
    (root / _FOLDER).mkdir(exist_ok=True)
    queued = self._queued()
    if queued is None:
      raise ValueError("squeue fails here; wanted a host that submits to SLURM.")
    if (root / _JOBS).exists():
      known = json.loads((root / _JOBS).read_text("utf-8"))
      self._jobs = {i: job for i, job in known.items() if job in queued}
    self.found = frozenset(self._jobs)

  def start(self, trials: Sequence[trial_lib.Trial]) -> None:
    number = len(list((self._root / _FOLDER).glob("*.txt")))
    commands = self._root / _FOLDER / f"{number}.txt"
    commands.write_text("".join(shlex.join(t.command) + "\n" for t in trials), "utf-8")
    for i, trial in enumerate(trials):
      output = trial.dir / trial_lib.OUTPUT
      output.unlink(missing_ok=True)
      output.symlink_to(self._root / _FOLDER / f"{number}_{i}.out")
    job = sbatch.submit(sbatch.script(
      name=self._root.name, command=commands, array=(len(trials), min(self._limit, len(trials))),
      gpus=self._gpus, cpus=self._cpus, restarts=self._restarts,
      options=[f"output={self._root / _FOLDER}/{number}_%a.out"]))
    self._jobs |= {trial.id: f"{job}_{i}" for i, trial in enumerate(trials)}
    trial_lib.replace(self._root / _JOBS, json.dumps(self._jobs, indent=1) + "\n")

  def ended(self) -> dict[str, int | None]:
    if not self._jobs or time.monotonic() - self._asked < _POLL_S:
      return {}
    queued = self._queued()
    self._asked = time.monotonic()
    if queued is None:  # it is busy, or being restarted
      return {}
    out = {i: self._code(i) for i, job in self._jobs.items() if job not in queued}
    for trial_id in out:
      del self._jobs[trial_id]
    return out

  def _queued(self) -> set[str] | None:
    """The tasks that wait or run, as JOB_TASK; None if SLURM doesn't answer."""
    try:
      asked = subprocess.run(["squeue", "--me", "--array", "--noheader", "--format=%F_%K"],
                             text=True, capture_output=True)
    except FileNotFoundError:
      return None
    return set(asked.stdout.split()) if asked.returncode == 0 else None

  def _code(self, trial_id: str) -> int | None:
    """What the script says that it ended with, if it came to say it; None if it never began."""
    output = self._root / manifest.TRIALS / trial_id / trial_lib.OUTPUT
    if not output.exists():
      return None
    codes = re.findall(r"^launch: start .* ended with (\d+)", output.read_text("utf-8", "replace"),
                       re.M)
    return int(codes[-1]) if codes else exits.AGAIN

  def stop(self, trial_ids: Iterable[str]) -> None:
    jobs = [self._jobs[i] for i in trial_ids if i in self._jobs]
    if jobs:  # those that wait end at once; those that run save, and don't get into the queue again
      _try("scancel", "--state=PENDING", *jobs)
      _try("scontrol", "update", f"JobId={','.join(jobs)}", "Requeue=0")
      _try("scancel", "--signal=TERM", *jobs)

  def kill(self) -> None:
    if self._jobs:
      _try("scancel", *self._jobs.values())

  def close(self) -> None:
    pass


def _try(*command: str) -> None:
  subprocess.run(command, capture_output=True)  # what has ended meanwhile is no error
