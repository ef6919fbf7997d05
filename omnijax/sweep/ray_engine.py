"""Trials on a cluster of Ray: a task each, with a process that ends with the task."""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ray

from omnijax import host
from omnijax.job import exits
from omnijax.sweep import engine
from omnijax.sweep import trial as trial_lib

# Of this process's variables, those that a trial elsewhere gets, too.
_PASSED = ("JAX_", "XLA_", "LIBTPU_", "OMNIJAX_", "PYTHONPATH")
_POLL_S = 0.2


class Ray:
  """Tasks of the cluster of RAY_ADDRESS, of one that runs on this machine, or of one made here.

  A trial has GPUs where the cluster has some and jax is not told to leave them alone, else CPUs.

  Args:
    jobs: trials at once; by default as many as the cluster has room for now.
    devices: of each trial: GPUs where there are some, else virtual devices of the CPU.
    cpus: of each trial.

  Raises:
    ValueError: the cluster has not enough for one trial.
  """

  found: frozenset[str] = frozenset()

  def __init__(self, jobs: int | None, devices: int | None, cpus: int):
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    have = ray.cluster_resources()
    platforms = os.environ.get("JAX_PLATFORMS", "cuda").split(",")
    gpus = (devices or 1) if have.get("GPU") and {"cuda", "gpu"} & set(platforms) else 0
    wanted = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
    room = int(min(have.get(kind, 0) / n for kind, n in wanted.items()))
    if room < 1:
      ray.shutdown()
      found = {kind: have.get(kind, 0) for kind in wanted}
      raise ValueError(f"the cluster has {found}, and a trial is to have {wanted}; lower --cpus or "
                       "--devices.")
    self.room = jobs or room
    self._virtual = engine.virtual(None if gpus else devices)
    self._task = ray.remote(_train).options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
    self._running: dict[str, tuple[ray.ObjectRef, Path]] = {}

  def start(self, trials: Sequence[trial_lib.Trial]) -> None:
    passed = {k: v for k, v in os.environ.items() if k.startswith(_PASSED)}
    env = engine.environment(passed) | self._virtual
    for trial in trials:
      output = trial.dir / trial_lib.OUTPUT
      self._running[trial.id] = self._task.remote(trial.command, env, os.getcwd(), output), output

  def ended(self) -> dict[str, int]:
    refs = [ref for ref, _ in self._running.values()]
    ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0) if refs else ([], [])
    out = {i: self._code(ref, output) for i, (ref, output) in self._running.items() if ref in ready}
    for trial_id in out:
      del self._running[trial_id]
    return out

  def _code(self, ref: Any, output: Path) -> int:
    try:
      return ray.get(ref)
    except ray.exceptions.RayError as error:  # its worker or its machine is gone, or it never began
      with output.open("a") as file:
        file.write(f"\nray: {type(error).__name__} {' '.join(str(error).split())}\n")
      return exits.AGAIN

  def stop(self, trial_ids: Iterable[str]) -> None:
    for trial_id in trial_ids:
      if trial_id in self._running:
        ray.cancel(self._running[trial_id][0], force=False)

  def kill(self) -> None:
    for ref, _ in self._running.values():
      ray.cancel(ref, force=True)

  def close(self) -> None:
    ray.shutdown()


def _train(command: Sequence[str], env: dict[str, str], folder: str, output: Path) -> int:
  """In a worker of Ray: runs a command, which gets SIGTERM when the task is cancelled."""
  with output.open("ab") as file:
    process = subprocess.Popen(command, env=os.environ | env | host.dies_with_me(), cwd=folder,
                               stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
  while (code := process.poll()) is None:
    try:
      time.sleep(_POLL_S)  # and not process.wait(), which Ray does not interrupt
    except KeyboardInterrupt:
      process.send_signal(signal.SIGTERM)
  return code
