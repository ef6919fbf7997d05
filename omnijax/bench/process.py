"""A side of a benchmark in a process of its own, which is idle while the other one works.

Threads that wait for work spin for a while, and two runtimes in one process share a heap: each side
gets a process. Nothing heavy is imported here, since memory is arranged first.
"""

import importlib
import multiprocessing
import traceback
from multiprocessing.connection import Connection
from typing import Any

from omnijax import host


class Side:
  """A child process with an object of class `Side` of a module, whose methods are called by name.

  Args:
    module: where the class is.
    args: of the class.
  """

  def __init__(self, module: str, *args: Any):
    context = multiprocessing.get_context("spawn")
    self._pipe, there = context.Pipe()
    self._process = context.Process(target=_serve, args=(there, module), daemon=True)
    self._process.start()
    there.close()
    self._args = args

  def start(self) -> None:
    """Makes the object, which compiles its step."""
    self._pipe.send(self._args)
    self._answer()

  def __getattr__(self, name: str) -> Any:
    def call(*args: Any) -> Any:
      self._pipe.send((name, args))
      return self._answer()
    return call

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.join()

  def _answer(self) -> Any:
    try:
      value = self._pipe.recv()
    except EOFError:
      self._process.join()
      raise RuntimeError(f"the process of a side ended with {self._process.exitcode}; out of "
                         "memory?") from None
    if isinstance(value, Exception):
      raise value
    return value


def _serve(pipe: Connection, module: str) -> None:
  host.keep_memory()
  side: Any = None
  while True:
    try:
      got = pipe.recv()
    except EOFError:
      return
    try:
      if side is None:
        side = importlib.import_module(module).Side(*got)
        pipe.send(None)
      else:
        name, args = got
        pipe.send(getattr(side, name)(*args))
    except ValueError as error:
      pipe.send(error)
    except Exception:  # Raised again on the other side, with where it happened here.
      pipe.send(RuntimeError(traceback.format_exc()))
