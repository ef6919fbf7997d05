"""Ends a process that makes no progress: a job that hangs costs more than one that starts again."""

import contextlib
import faulthandler
import logging
import sys
import threading
from pathlib import Path

from omnijax.job import exits, processes

_log = logging.getLogger("omnijax")


class Watchdog:
  """A thread that shows all stacks and ends the process when nothing is heard for so long.

  Time is counted in rounds of the thread, not by the clock: what was suspended is not stuck.

  Args:
    seconds: without a sign of life; 0 never ends anything.
    stacks: file that gets the stacks, too.
    tick: seconds of a round.
  """

  def __init__(self, seconds: float, stacks: Path | None = None, *, tick: float = 0.5):
    self._seconds, self._stacks, self._tick = seconds, stacks, tick
    self._waited, self._doing = 0.0, "start"
    self._stop = threading.Event()
    if seconds > 0:
      threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

  def alive(self, doing: str) -> None:
    """A sign of life: what is being done from now on."""
    self._doing, self._waited = doing, 0.0

  def close(self) -> None:
    self._stop.set()

  def _watch(self) -> None:
    while not self._stop.wait(self._tick):
      self._waited += self._tick
      if self._waited > self._seconds:
        self._end()

  def _end(self) -> None:
    _log.error("stuck: nothing happened for %.0f s in %s; where each thread is:", self._waited,
               self._doing)
    faulthandler.dump_traceback(sys.stderr)
    if self._stacks is not None:
      with contextlib.suppress(OSError), self._stacks.open("a") as file:
        faulthandler.dump_traceback(file)
    _log.error("stuck in %s for %.0f s; the same command goes on from the newest checkpoint, "
               "train.stuck_after_s changes the time", self._doing, self._waited)
    processes.leave(exits.STUCK)
