"""The processes of a job: they join, agree, and leave together."""

import contextlib
import ctypes
import functools
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from omnijax import host
from omnijax.job import exits, preemption

_JOIN_S = 45  # to wait for the others
_ENGINE_JOIN_S = 300  # where an engine starts each as it finds room for it, as jax itself waits
_CALL_S = 5  # before that, process 0 tells who didn't come
_HEARTBEAT_S = 7  # of silence until a process counts as lost
# Of engines that jax asks by itself; SLURM's and MPI's only with more than one process.
_ENGINES = ("TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS", "JOB_COMPLETION_INDEX")
_COUNTS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
_log = logging.getLogger("omnijax")


def join() -> None:
  """Joins the job's other processes; must come before anything else is asked of jax.

  They are found by JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and
  JAX_PROCESS_ID where all three are set, else as jax finds them itself (TPU slices, GKE, SLURM,
  MPI). Without any of these the job has one process. If not all processes come within a minute, or
  five where jax finds them, this one ends with 75. A process that has joined already stays as it
  is.

  Raises:
    ValueError: the variables don't fit.
  """
  if jax.distributed.is_initialized():
    return
  given = {k: os.environ.get(k) for k in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")}
  where = os.environ.get("JAX_COORDINATOR_ADDRESS")
  if where and all(given.values()):
    count, index = _integers(given)
    _initialize(where, count, index)
  elif any(os.environ.get(k) for k in _ENGINES) or any(
      int(os.environ.get(k) or 1) > 1 for k in _COUNTS) or _on_tpus():
    _initialize(None, None, None)
  else:
    # Even alone: this is what saves a step on SIGTERM. Nobody else can reach it.
    here = f"127.0.0.1:{host.free_port()}"
    _initialize(here, 1, 0, listen=here)
  preemption.obey_early()
  if jax.process_index() > 0:  # what all say, process 0 says
    for handler in _log.handlers:
      handler.setLevel(logging.WARNING)


def several() -> bool:
  """Whether this process has joined others."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def _on_tpus() -> bool:
  """Whether this host has TPUs: without Kubernetes nothing else tells of a slice's other hosts.

  On such a host, unless JAX_PLATFORMS says otherwise, jax names the platform when it is imported.
  """
  platforms = jax.config.values["jax_platforms"] or ""
  return "tpu" in platforms and not os.environ.get("TPU_SKIP_MDS_QUERY")


def _initialize(where: str | None, count: int | None, index: int | None, *,
                listen: str | None = None) -> None:
  seconds = _JOIN_S if where else _ENGINE_JOIN_S
  call = seconds - _CALL_S
  if listen is None:
    me = f"process {'?' if index is None else index} of {count or '?'}"
    _leave_on_abort(f"{me} waited {call} s in vain for the others at "
                    f"{where or 'the address of the engine'}; above, jax names the first that are "
                    "missing if process 0 is there; check that every process was started, their "
                    "number and the address")
  try:
    with _calling_the_roll(call):
      jax.distributed.initialize(where, count, index, coordinator_bind_address=listen,
                                 initialization_timeout=seconds,
                                 heartbeat_timeout_seconds=_HEARTBEAT_S,
                                 shutdown_timeout_seconds=_JOIN_S)
    _JOINED.append(True)
  except (RuntimeError, ValueError) as error:
    raise ValueError(f"this process ({index if index is not None else '?'} of "
                     f"{count if count is not None else '?'}) could not join the job at {where}: "
                     f"{error}; check the address, the number of processes, and that each was "
                     "started.") from error


@contextlib.contextmanager
def _calling_the_roll(seconds: int) -> Iterator[None]:
  """jax's service waits an hour and only then says who is missing; jax can't be told otherwise."""
  from jax._src import distributed

  lib = distributed._jax
  make = lib.get_distributed_runtime_service
  lib.get_distributed_runtime_service = functools.partial(make, cluster_register_timeout=seconds)
  try:
    yield
  finally:
    lib.get_distributed_runtime_service = make


def _integers(given: dict[str, str | None]) -> tuple[int, int]:
  try:
    count, index = (int(v or "") for v in given.values())
  except ValueError as error:
    raise ValueError(f"{given} must be whole numbers.") from error
  if not 0 <= index < count:
    raise ValueError(f"JAX_PROCESS_ID is {index} and JAX_NUM_PROCESSES {count}; wanted 0 or more "
                     "and less than that.")
  return count, index


_JOINED: list[bool] = []
_KEPT: list[Any] = []  # C calls it, Python must not forget it


def _leave_on_abort(missing: str) -> None:
  """jax aborts where it has lost the others, or never found them; here that is an ordinary exit.

  The handler runs in the thread that aborts, as a call, so that it may do what a call may.
  """
  def left(_: int) -> None:
    _log.error("lost the job's other processes (what jax says is above); the same command goes on "
               "from the newest checkpoint" if _JOINED else missing)
    leave(exits.AGAIN)

  handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(left)
  _KEPT.append(handler)
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
  libc.signal.restype = ctypes.c_void_p
  libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))


def leave(code: int) -> None:
  """Ends this process now, without waiting for the others as an ordinary exit would."""
  logging.shutdown()
  for worker in multiprocessing.active_children():  # of data, one of which may be stuck
    worker.kill()
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  os._exit(code)


def agree(mine: bool) -> bool:
  """Whether all processes say yes; every one must ask."""
  if jax.process_count() == 1:
    return mine
  from jax.experimental import multihost_utils

  return bool(np.all(multihost_utils.process_allgather(np.array([mine]))))


@contextlib.contextmanager
def computing() -> Iterator[None]:
  """Around what all processes compute together: another one's end is no fault of this one.

  Raises:
    Again: a collective failed, or a device did.
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    text = str(error)
    if "RESOURCE_EXHAUSTED" in text:
      raise
    lost = jax.process_count() > 1 and any(
      word in text for word in ("Gloo", "UNAVAILABLE", "DEADLINE", "CANCELLED", "heartbeat"))
    if lost or isinstance(error, jax.errors.JaxRuntimeError):
      raise exits.Again(f"{'another process is gone' if lost else 'a device failed'}: "
                        f"{' '.join(text.split())[:500]}") from error
    raise
