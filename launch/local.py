"""Processes on this machine, started again as their exit codes say.

  python -m launch local --processes 2 -- experiments/quickstart.py --run-dir runs/quickstart

What follows `--` is what `omnijax train` takes. When a process ends with 0 all have; 2 and 42 mean
that the same again would fail again; with anything else all are started again, after a pause that
grows, until so many starts in a row brought no new checkpoint. SIGTERM and Ctrl-C are passed on:
every process saves and ends. On Linux no process outlives this one, however it ends.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from omnijax import host
from omnijax.job import exits

_LEAVE_S = 30  # for the others to end by themselves after the first did


class Gang:
  """The processes of one try.

  Args:
    command: of each process.
    processes: how many.
    devices: virtual devices of each where jax runs on the CPU; None leaves it to jax.
    env: variables beside this process's own.
    echo: whether their output is shown, each line with the number of its process.
  """

  def __init__(self, command: Sequence[str], processes: int, *, devices: int | None = None,
               env: Mapping[str, str] | None = None, echo: bool = True):
    where = f"127.0.0.1:{host.free_port()}"
    self.lines: list[list[str]] = [[] for _ in range(processes)]
    self.members, self._pumps = [], []
    for i in range(processes):
      mine = {"JAX_COORDINATOR_ADDRESS": where, "JAX_COORDINATOR_BIND_ADDRESS": where,
              "JAX_NUM_PROCESSES": str(processes), "JAX_PROCESS_ID": str(i),
              "PYTHONUNBUFFERED": "1"} | host.dies_with_me()
      if devices is not None:
        mine |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
      member = subprocess.Popen(command, env=os.environ | mine | dict(env or {}), text=True,
                                errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
      pump = threading.Thread(target=self._pump, args=(i, member, echo), daemon=True)
      pump.start()
      self.members.append(member)
      self._pumps.append(pump)

  def _pump(self, index: int, member: subprocess.Popen, echo: bool) -> None:
    assert member.stdout is not None
    for line in member.stdout:
      self.lines[index].append(line.rstrip("\n"))
      if echo:
        print(f"[{index}] {line}", end="", flush=True)

  def send(self, number: int) -> None:
    """A signal to all that are left."""
    for member in self.members:
      if member.poll() is None:
        member.send_signal(number)

  def wait(self) -> list[int]:
    """Exit codes of all, once all have ended; who doesn't follow the first is killed."""
    deadline = None
    while any(m.poll() is None for m in self.members):
      if deadline is None and any(m.poll() is not None for m in self.members):
        deadline = time.monotonic() + _LEAVE_S
      if deadline is not None and time.monotonic() > deadline:
        self.send(signal.SIGKILL)
      time.sleep(0.05)
    for member, pump in zip(self.members, self._pumps, strict=True):
      pump.join(5)
      if member.stdout is not None:
        member.stdout.close()
    return [m.returncode for m in self.members]


def verdict(codes: Sequence[int]) -> int | None:
  """The code that a job ends with, or None if it should be started again."""
  for final in (exits.BAD_INPUT, exits.NEVER, exits.INTERRUPTED):
    if final in codes:
      return final
  return exits.DONE if not any(codes) else None


def _newest(run_dir: Path | None) -> int:
  steps = (run_dir / "checkpoints").glob("*") if run_dir is not None else ()
  return max((int(p.name) for p in steps if p.name.isdigit()), default=-1)


def main(argv: Sequence[str]) -> int:
  """Runs a job to its end; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m launch local", description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--processes", type=int, default=1, metavar="N",
                      help="of the job (default: %(default)s)")
  parser.add_argument("--devices", type=int, metavar="N",
                      help="virtual CPU devices of each process (default: whatever jax finds)")
  parser.add_argument("--restarts", type=int, default=5, metavar="N",
                      help="in a row without a new checkpoint (default: %(default)s)")
  parser.add_argument("train", nargs="+", metavar="-- EXPERIMENT --run-dir DIR ...",
                      help="what `omnijax train` takes")
  args = parser.parse_args(argv)
  if args.processes < 1 or args.restarts < 0 or (args.devices or 1) < 1:
    parser.error("--processes and --devices must be 1 or more, --restarts 0 or more")
  given = dict(zip(args.train, args.train[1:], strict=False))
  run_dir = Path(given["--run-dir"]) if "--run-dir" in given else None
  return _run([sys.executable, "-m", "omnijax.cli", "train", *args.train], args, run_dir)


def _run(command: list[str], args: argparse.Namespace, run_dir: Path | None) -> int:
  asked, gang, tries = [], None, 0

  def stop(number: int, _: object) -> None:
    asked.append(number)
    if gang is not None:
      gang.send(signal.SIGTERM)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, stop)
  while True:
    before = _newest(run_dir)
    gang = Gang(command, args.processes, devices=args.devices)
    codes = gang.wait()
    code = verdict(codes)
    if code is not None or asked:
      return code if code is not None else exits.AGAIN
    tries = 1 if _newest(run_dir) > before else tries + 1
    told = ", ".join(f"{i}: {c}" for i, c in enumerate(codes))
    if tries > args.restarts:
      print(f"launch: processes ended with {told}; {tries} starts brought no new checkpoint",
            file=sys.stderr)
      return exits.AGAIN
    pause = min(2 ** (tries - 1), 60)
    print(f"launch: processes ended with {told}; again in {pause} s (start {tries} of "
          f"{args.restarts} without a new checkpoint)", file=sys.stderr, flush=True)
    for _ in range(pause * 10):
      if asked:
        return exits.AGAIN
      time.sleep(0.1)
