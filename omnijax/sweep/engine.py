"""Who runs trials: the interface, and processes of this machine."""

import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from omnijax import host
from omnijax.job import exits
from omnijax.sweep import trial as trial_lib

# Of a job that the sweep itself is a process of: a trial is a job of its own.
_NOT_MINE = ("JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_BIND_ADDRESS", "JAX_NUM_PROCESSES",
             "JAX_PROCESS_ID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
_MEMORY = 0.9  # of a GPU, for all trials that share it


class Engine(Protocol):
  """Runs the commands of trials; each writes its output to its directory's output.txt."""

  room: int  # how many trials it takes at once
  found: frozenset[str]  # ids of trials that an earlier sweep left running

  def start(self, trials: Sequence[trial_lib.Trial]) -> None:
    """Starts them; there is room."""

  def ended(self) -> Mapping[str, int | None]:
    """Those that ended since the last call: id -> exit code, -N for signal N, None if it never ran.
    """

  def stop(self, trial_ids: Iterable[str]) -> None:
    """Asks them to save and end, as SIGTERM does."""

  def kill(self) -> None:
    """Ends all at once, saved or not."""

  def close(self) -> None:
    """Ends what is left, and lets go of what it holds."""


class Local:
  """Processes of this machine, which don't outlive this one.

  Where jax finds GPUs each trial has one of its own, or `devices` of them; with more jobs than that
  they share.

  Args:
    jobs: trials at once; by default one, or as many as there are GPUs for.
    devices: of each trial: GPUs where there are some, else virtual devices of the CPU.

  Raises:
    ValueError: there are fewer GPUs than one trial is to have.
  """

  found: frozenset[str] = frozenset()

  def __init__(self, jobs: int | None = None, devices: int | None = None):
    found, each = gpus(), devices or 1
    if found and each > len(found):
      raise ValueError(f"--devices is {each}, and jax finds {len(found)} GPUs here; lower it.")
    self._groups = [",".join(found[i : i + each])
                    for i in range(0, len(found) - each + 1, each)] if found else []
    self.room = jobs or len(self._groups) or 1
    self._cpus = None if found else devices
    self._running: dict[str, tuple[subprocess.Popen, int]] = {}

  def start(self, trials: Sequence[trial_lib.Trial]) -> None:
    for trial in trials:
      taken = {slot for _, slot in self._running.values()}
      slot = next(i for i in range(self.room) if i not in taken)
      with (trial.dir / trial_lib.OUTPUT).open("ab") as output:
        # A session of its own: what a terminal sends to its foreground is passed on by us.
        process = subprocess.Popen(trial.command, env=self._env(slot), stdout=output,
                                   stderr=subprocess.STDOUT, start_new_session=True)
      self._running[trial.id] = process, slot

  def _env(self, slot: int) -> dict[str, str]:
    env = environment(dict(os.environ)) | host.dies_with_me()
    if self._groups:
      sharing = -(-self.room // len(self._groups))
      env["CUDA_VISIBLE_DEVICES"] = self._groups[slot % len(self._groups)]
      if sharing > 1:
        env.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{_MEMORY / sharing:.3f}")
    return env | virtual(self._cpus)

  def ended(self) -> dict[str, int]:
    codes = {i: p.poll() for i, (p, _) in self._running.items()}
    out = {i: code for i, code in codes.items() if code is not None}
    for trial_id in out:
      del self._running[trial_id]
    return out

  def stop(self, trial_ids: Iterable[str]) -> None:
    for trial_id in trial_ids:
      if trial_id in self._running:
        self._running[trial_id][0].send_signal(signal.SIGTERM)

  def kill(self) -> None:
    for process, _ in self._running.values():
      process.kill()

  def close(self) -> None:
    self.kill()
    for process, _ in self._running.values():
      process.wait()


def environment(env: dict[str, str]) -> dict[str, str]:
  """Of a trial: without what would make it a process of another job."""
  kept = {k: v for k, v in env.items() if k not in _NOT_MINE}
  return kept | {"PYTHONUNBUFFERED": "1", exits.STOPPED: str(exits.AGAIN)}


def virtual(devices: int | None) -> dict[str, str]:
  """Variables for so many devices of the CPU; None leaves it to jax."""
  if devices is None:
    return {}
  return {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}


def gpus() -> list[str]:
  """The GPUs that jax would use in a process started from here, as CUDA names them."""
  wanted = os.environ.get("JAX_PLATFORMS", "cuda")
  if not {"cuda", "gpu"} & set(wanted.split(",")) or not _plugin():
    return []
  visible = os.environ.get("CUDA_VISIBLE_DEVICES")
  if visible is not None:
    return [name for name in visible.split(",") if name and name != "-1"]
  tool = shutil.which("nvidia-smi")
  if tool is None:
    return []
  listed = subprocess.run([tool, "--list-gpus"], capture_output=True, text=True)
  found = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
  return [str(i) for i in range(len(found))]


def _plugin() -> bool:
  return any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13))
