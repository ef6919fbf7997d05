"""Processes on this machine, started again as their exit codes say.

  python -m launch local --processes 2 -- experiments/quickstart.py --run-dir runs/quickstart

What follows `--` is what `omnijax train` takes. When a process ends with 0 all have; 2 and 42 mean
that the same again would fail again; with anything else all are started again, after a pause that
grows, until so many starts in a row brought no new checkpoint. SIGTERM and Ctrl-C are passed on:
every process saves and ends. On Linux no process outlives this one, however it ends.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from omnijax import host
from omnijax.job import exits, saved

LEAVE_S = 30  # for the others to end by themselves after the first did


def place(where: str, processes: int, index: int, devices: int | None) -> dict[str, str]:
  """Variables that give a process its place in a job.

  Args:
    where: HOST:PORT of process 0.
    processes: of the job.
    index: of this one.
    devices: virtual devices of each where jax runs on the CPU; None leaves it to jax.
  """
  variables = {"JAX_COORDINATOR_ADDRESS": where, "JAX_NUM_PROCESSES": str(processes),
               "JAX_PROCESS_ID": str(index)}
  if devices is not None:
    variables |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
  return variables


def spawn(command: Sequence[str], index: int, variables: Mapping[str, str], *,
          cwd: str | None = None,
          lines: list[str] | None = None) -> tuple[subprocess.Popen, threading.Thread]:
  """Starts a process of a job, which on Linux dies with the thread that calls this.

  Args:
    command: of the process.
    index: of the process in the job.
    variables: beside this process's own.
    cwd: where it starts; None is here.
    lines: gets what it says; None shows that, with the index before each line.

  Returns:
    The process, and the thread that reads what it says until it says no more.
  """
  env = os.environ | {"PYTHONUNBUFFERED": "1"} | host.dies_with_me() | variables
  # In a session of its own: a terminal's Ctrl-C is this process's to pass on.
  process = subprocess.Popen(command, env=env, cwd=cwd, text=True, errors="replace",
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, start_new_session=True)

  assert process.stdout is not None
  said = process.stdout

  def pump() -> None:
    with said:
      for line in said:
        if lines is not None:
          lines.append(line.rstrip("\n"))
          continue
        with contextlib.suppress(OSError):  # nobody reads it; what isn't read here would block
          print(f"[{index}] {line}", end="", flush=True)

  thread = threading.Thread(target=pump, daemon=True)
  thread.start()
  return process, thread


class Gang:
  """The processes of one try.

  Args:
    command: of each process.
    processes: how many.
    devices: virtual devices of each where jax runs on the CPU; None leaves it to jax.
    env: variables beside this process's own.
    echo: whether their output is shown, each line with the number of its process; else `lines`
      has the lines of each.
  """

  def __init__(self, command: Sequence[str], processes: int, *, devices: int | None = None,
               env: Mapping[str, str] | None = None, echo: bool = True):
    where = f"127.0.0.1:{host.free_port()}"
    self.lines: list[list[str]] = [[] for _ in range(processes)]
    self.members, self._pumps = [], []
    for i in range(processes):
      variables = place(where, processes, i, devices) | {"JAX_COORDINATOR_BIND_ADDRESS": where}
      member, pump = spawn(command, i, variables | dict(env or {}),
                           lines=None if echo else self.lines[i])
      self.members.append(member)
      self._pumps.append(pump)

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
        deadline = time.monotonic() + LEAVE_S
      if deadline is not None and time.monotonic() > deadline:
        self.send(signal.SIGKILL)
      time.sleep(0.05)
    for member, pump in zip(self.members, self._pumps, strict=True):
      with contextlib.suppress(ProcessLookupError):  # what it left behind would hold its output
        os.killpg(member.pid, signal.SIGKILL)
      pump.join(5)
    return [m.returncode for m in self.members]


def verdict(codes: Sequence[int]) -> int | None:
  """The code that a job ends with, or None if it should be started again."""
  for final in (exits.BAD_INPUT, exits.NEVER, exits.INTERRUPTED):
    if final in codes:
      return final
  return exits.DONE if not any(codes) else None


class Started(Protocol):
  """All processes of one try, wherever they run."""

  def send(self, number: int) -> None:
    """A signal to all that are left; may be called within a signal's handler."""

  def wait(self) -> list[int]:
    """Exit codes of all, once all have ended."""


def run(start: Callable[[], Started], restarts: int, directory: Path | None) -> int:
  """Starts a job's processes again while that helps; returns the job's exit code.

  Args:
    start: starts all of them.
    restarts: in a row without a new checkpoint.
    directory: of the run, where new checkpoints are looked for.
  """
  asked: list[int] = []
  started: list[Started] = []

  def stop(number: int, _: object) -> None:
    asked.append(number)
    for one in started:
      one.send(signal.SIGTERM)

  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
      signal.signal(number, stop)
  tries = 0
  newest = lambda: saved.newest(directory) if directory is not None else -1
  while True:
    before = newest()
    started[:] = [start()]
    if asked:  # while it started
      started[0].send(signal.SIGTERM)
    codes = started[0].wait()
    started.clear()
    code = verdict(codes)
    if code is not None or asked:
      return code if code is not None else exits.AGAIN
    tries = 1 if newest() > before else tries + 1
    told = ", ".join(f"{i}: {c}" for i, c in enumerate(codes))
    if tries > restarts:
      print(f"launch: processes ended with {told}; {tries} starts brought no new checkpoint",
            file=sys.stderr)
      return exits.AGAIN
    pause = min(2 ** (tries - 1), 60)
    print(f"launch: processes ended with {told}; again in {pause} s (start {tries} of "
          f"{restarts} without a new checkpoint)", file=sys.stderr, flush=True)
    for _ in range(pause * 10):
      if asked:
        return exits.AGAIN
      time.sleep(0.1)


def arguments(parser: argparse.ArgumentParser) -> None:
  """Adds what all engines take that start processes again."""
  parser.add_argument("--devices", type=int, metavar="N",
                      help="virtual CPU devices of each process (default: whatever jax finds)")
  parser.add_argument("--restarts", type=int, default=5, metavar="N",
                      help="in a row without a new checkpoint (default: %(default)s)")
  parser.add_argument("train", nargs="+", metavar="-- EXPERIMENT --run-dir DIR ...",
                      help="what `omnijax train` takes")


def run_dir(train: Sequence[str]) -> Path | None:
  """The --run-dir among what `omnijax train` takes."""
  parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  parser.add_argument("--run-dir", type=Path, nargs="?")  # `omnijax train` tells what is missing
  return parser.parse_known_args(train)[0].run_dir


def main(argv: Sequence[str]) -> int:
  """Runs a job to its end; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m launch local", description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--processes", type=int, default=1, metavar="N",
                      help="of the job (default: %(default)s)")
  arguments(parser)
  args = parser.parse_args(argv)
  if min(args.processes, 1 if args.devices is None else args.devices) < 1 or args.restarts < 0:
    parser.error("--processes and --devices must be 1 or more, --restarts 0 or more")
  command = [sys.executable, "-m", "omnijax.cli", "train", *args.train]
  return run(lambda: Gang(command, args.processes, devices=args.devices), args.restarts,
             run_dir(args.train))
