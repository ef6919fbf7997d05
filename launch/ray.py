"""Processes on workers of Ray Train's JaxTrainer, started again as their exit codes say.

  python -m launch ray --workers 2 -- experiments/quickstart.py --run-dir runs/quickstart
  python -m launch ray --address auto --topology v6e:4x4 -- EXPERIMENT --run-dir /shared/runs/first

What follows `--` is what `omnijax train` takes. It runs in this directory on every node, which all
must see, as they must the run's. Ray reserves hosts, GPUs or whole TPU slices, and waits for them;
each of its workers starts one process. When a process or a worker is lost all are started again,
until so many starts in a row brought no new checkpoint; 2 and 42 are never tried again. SIGTERM and
Ctrl-C are passed on, every process saves and ends; so it does when Ray drains a node of the job,
which then goes on elsewhere. Needs the extra `ray` here and on every node.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

from launch import local, tpu
from omnijax import host
from omnijax.arguments import Parser
from omnijax.job import exits

_POLL_S = 1.0  # between a process's questions to the desk
_DRAIN_S = 5.0  # between questions to Ray whether it drains a node; its own are as often


class Desk:
  """An actor of one try: what processes tell and are told.

  Args:
    leave_s: for the others to end by themselves after the first did.
  """

  def __init__(self, leave_s: float):
    self._leave_s = leave_s
    self._codes: dict[int, int] = {}
    self._running: set[int] = set()
    self._signal, self._drained = 0, False
    self._deadline = float("inf")

  def runs(self, index: int) -> int:
    """A process runs; returns the signal that it should have got by now, or 0."""
    self._running.add(index)
    return signal.SIGKILL if time.monotonic() > self._deadline else self._signal

  def ended(self, index: int, code: int) -> None:
    """A process ended with an exit code."""
    self._running.discard(index)
    self._codes[index] = code
    self._deadline = min(self._deadline, time.monotonic() + self._leave_s)

  def send(self, number: int) -> bool:
    """A signal to all; returns whether any process runs."""
    self._signal = number
    return bool(self._running)

  def drain(self) -> None:
    """Ray takes a node away soon: all save and end, to go on elsewhere."""
    self._signal, self._drained = signal.SIGTERM, True

  def report(self) -> tuple[dict[int, int], bool]:
    """Exit codes of those that have ended, and whether a node was drained."""
    return self._codes, self._drained


def member(config: dict[str, Any]) -> None:
  """One process of the job; runs in a thread of each of Ray's workers until the process ended."""
  import ray
  from ray import train
  from ray.train import collective
  from ray.util import tpu as ray_tpu

  desk = config["desk"]
  index, count = train.get_context().get_world_rank(), train.get_context().get_world_size()
  address = ray.util.get_node_ip_address()
  first, port = collective.broadcast_from_rank_zero((address, host.free_port()))
  variables = local.place(f"{first}:{port}", count, index, config["devices"])
  if config["platforms"]:
    variables["JAX_PLATFORMS"] = config["platforms"]
  if config["slices"] > 1:  # Ray numbers the workers slice by slice
    variables |= ray_tpu.get_tpu_coordinator_env_vars(
      first, config["slices"], index // (count // config["slices"]))
  command = [sys.executable, "-m", "omnijax.cli", "train", *config["train"]]
  if not os.path.isdir(config["cwd"]):
    print(f"[{index}] there is no directory {config['cwd']} on {address}; start the job in one "
          "that all nodes see, or by `ray job submit --working-dir .`", flush=True)
    ray.get(desk.ended.remote(index, exits.BAD_INPUT))
    return
  process, pump = local.spawn(command, index, variables, cwd=config["cwd"])
  threading.Thread(target=_watch, args=(desk,), daemon=True).start()
  sent = 0
  while True:
    number = ray.get(desk.runs.remote(index))
    if number != sent:
      process.send_signal(number)
      sent = number
    try:
      process.wait(_POLL_S)
      break
    except subprocess.TimeoutExpired:
      continue
  pump.join(5)
  ray.get(desk.ended.remote(index, process.returncode))


def _watch(desk: Any) -> None:
  """Tells the desk when Ray drains a node of the job. All workers ask together."""
  from ray import train

  while train.get_preemption_info() is None:
    time.sleep(_DRAIN_S)
  desk.drain.remote()


class Gang:
  """The processes of one try: one on each worker of a trainer.

  Args:
    config: of `member`, without a desk.
    scaling: Ray's ScalingConfig.
  """

  def __init__(self, config: dict[str, Any], scaling: Any):
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    self._desk = ray.remote(num_cpus=0, scheduling_strategy=here)(Desk).remote(local.LEAVE_S)
    self._count = scaling.num_workers
    self._asked, self._error = 0, None
    # Not in the main thread, where Ray would take Ctrl-C for itself.
    self._thread = threading.Thread(target=self._fit, args=(config, scaling), daemon=True)
    self._thread.start()

  def _fit(self, config: dict[str, Any], scaling: Any) -> None:
    from ray import train
    from ray.train.v2 import jax

    try:
      with tempfile.TemporaryDirectory() as nothing:  # Ray wants a place for checkpoints of its own
        # JaxConfig's defaults: Ray neither joins the workers nor takes their accelerators.
        jax.JaxTrainer(
          member, train_loop_config=config | {"desk": self._desk}, jax_config=jax.JaxConfig(),
          scaling_config=scaling, run_config=train.RunConfig(
            storage_path=nothing, failure_config=train.FailureConfig(
              max_failures=0, max_preemption_failures=0))).fit()
    except Exception as error:
      self._error = error

  def send(self, number: int) -> None:
    """A signal to all that are left; may be called within a signal's handler."""
    self._asked = number

  def wait(self) -> list[int]:
    """Exit codes of all, once all have ended; -9 of those that went with their worker."""
    import ray
    from ray import train

    told = False
    while self._thread.is_alive():
      self._thread.join(0.2)
      if self._asked and not told:
        told = True
        if not ray.get(self._desk.send.remote(self._asked)):
          break  # Ray has no workers for the job yet
    if isinstance(self._error, train.WorkerGroupError):  # Ray has told it at length
      _say(f"Ray lost the workers of processes {sorted(self._error.worker_failures)}")
    elif isinstance(self._error, (train.TrainingFailedError, ray.exceptions.RayError)):
      _say(str(self._error))
    elif self._error is not None:
      raise self._error
    codes, drained = ray.get(self._desk.report.remote())
    ended = [codes.get(i, -signal.SIGKILL) for i in range(self._count)]
    if drained and not self._asked:
      _say("Ray drains a node of the job, which goes on elsewhere")
      return [exits.AGAIN if c == exits.DONE else c for c in ended]
    return ended


def _say(text: str) -> None:
  print(f"launch: {text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> int:
  """Runs a job to its end; returns its exit code."""
  parser, args = _arguments(argv)
  # Ray reads these when it is imported. Equal lines of processes are not noise; each is shown.
  os.environ.setdefault("RAY_DEDUP_LOGS", "0")
  os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
  try:
    import ray
  except ModuleNotFoundError:
    parser.error('ray is not installed; wanted for this engine: pip install "omnijax[ray]"')
  try:
    scaling = scale(args)
  except ValueError as error:
    parser.error(str(error))
  address = args.address or os.environ.get("RAY_ADDRESS") or "local"
  try:
    if address == "local":
      ray.init("local", num_cpus=scaling.num_workers)
    else:
      ray.init(address)
  except ConnectionError as error:
    parser.error(f"there is no Ray cluster at {address}: {error}")
  if address == "local":  # others may grow
    got = ray.cluster_resources()
    for name, wanted in scaling.total_resources.items():
      if got.get(name, 0) < wanted:
        parser.error(f"{wanted:g} {name} are wanted and this machine has {got.get(name, 0):g}; "
                     "--address says where a cluster is")
  platforms = "tpu,cpu" if args.topology else "cuda,cpu" if args.gpus else None
  config = {"train": args.train, "cwd": os.getcwd(), "devices": args.devices,
            "platforms": platforms, "slices": args.slices}
  return local.run(lambda: Gang(config, scaling), args.restarts, local.run_dir(args.train))


def _arguments(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
  parser = Parser(prog="python -m launch ray", description=__doc__)
  parser.add_argument("--workers", type=int, metavar="N", help="of Ray, with a process of the job "
                      "each (default: the hosts of --topology, else 1)")
  parser.add_argument("--gpus", type=int, metavar="N", help="of each worker")
  tpu.add(parser, required=False)
  parser.add_argument("--address", metavar="HOST:PORT", help="of a cluster, or `auto` on one of "
                      "its nodes (default: RAY_ADDRESS, else a Ray of this machine and job)")
  local.arguments(parser)
  args = parser.parse_args(argv)
  for name, least in (("workers", 1), ("gpus", 1), ("devices", 1), ("slices", 1), ("restarts", 0)):
    if getattr(args, name) is not None and getattr(args, name) < least:
      parser.error(f"--{name} must be {least} or more")
  if sum(x is not None for x in (args.gpus, args.topology, args.devices)) > 1:
    parser.error("--gpus, --topology and --devices exclude each other")
  if args.topology is None and args.slices > 1:
    parser.error("--slices has no effect without --topology")
  return parser, args


def scale(args: argparse.Namespace) -> Any:
  """Ray's ScalingConfig of what was asked for.

  Raises:
    ValueError: an unknown chip or shape, or a number of workers that doesn't fit it.
  """
  from ray import train
  from ray.util import tpu as ray_tpu

  if args.topology is None:
    each = {"CPU": 1.0} | ({"GPU": float(args.gpus)} if args.gpus else {})
    return train.ScalingConfig(num_workers=args.workers or 1, use_gpu=bool(args.gpus),
                               resources_per_worker=each)
  made = tpu.parse(args.topology, args.slices)
  kind = f"TPU-{made.kind.type.replace('tpu', 'v').upper()}"  # as Ray's nodes have it
  hosts, each = ray_tpu.get_tpu_worker_resources(made.topology, kind, num_slices=made.slices)
  if args.workers not in (None, hosts):
    raise ValueError(f"--workers is {args.workers}; {made.slices} of {args.topology} have {hosts} "
                     "hosts. Leave --workers out.")
  return train.ScalingConfig(num_workers=hosts, use_tpu=True, topology=made.topology,
                             accelerator_type=kind, resources_per_worker=each)
