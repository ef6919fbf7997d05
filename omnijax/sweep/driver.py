"""From a manifest of trials to one of results: starts them, starts them again, and stops them.

A trial has ended when its directory says so, whatever its exit code. One that ended before is
started again until so many starts in a row brought no new checkpoint, or until it says that the
same again would fail again; then the others go on without it.
"""

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from omnijax.job import exits, lock
from omnijax.sweep.engine import Engine
from omnijax.sweep.figures import Objective
from omnijax.sweep.manifest import Entry, Manifest, State

_POLL_S = 0.3
_HELD_S = 2.0  # until a directory that somebody trains in is looked at again
_PAUSE_S = 60.0  # at most, before another start


class Source(Protocol):
  """Where further trials come from, and who says that one isn't worth going on with."""

  def more(self) -> Entry | None:
    """A further trial of the manifest; None if there is none, or none until one ends."""

  def hopeless(self, entry: Entry) -> bool:
    """Whether a running trial is to be stopped for good."""

  def ended(self, entry: Entry) -> None:
    """What has become of a trial."""


class Listed:
  """All trials are known from the start, and each is run to its end.

  Args:
    objective: whose value each gets.
  """

  def __init__(self, objective: Objective):
    self._objective = objective

  def more(self) -> Entry | None:
    return None

  def hopeless(self, entry: Entry) -> bool:
    return False

  def ended(self, entry: Entry) -> None:
    entry.value = self._objective.value(entry.trial)


class Show(Protocol):
  """What people see of it."""

  def say(self, text: str) -> None:
    """One line about what happened."""

  def update(self, manifest: Manifest) -> None:
    """How it stands, some times a second."""


@dataclasses.dataclass
class _Begun:
  """What the driver knows of a trial beside the manifest."""

  before: int = -1  # steps of the newest checkpoint when it was started
  tries: int = 0  # starts in a row without a new one
  not_before: float = 0.0
  told: bool = False  # that somebody else trains in its directory


class Driver:
  """Runs a sweep.

  Args:
    manifest: its trials; kept up to date.
    engine: who runs them.
    source: of further trials.
    show: what people see.
    restarts: of a trial, in a row without a new checkpoint.
  """

  def __init__(self, manifest: Manifest, engine: Engine, source: Source, show: Show, *,
               restarts: int):
    self._manifest, self._engine, self._source, self._show = manifest, engine, source, show
    self._restarts = restarts
    self._begun: dict[str, _Begun] = {}
    self._pruned: set[str] = set()
    self._asked: list[int] = []  # signals
    self._wake = threading.Event()

  def run(self) -> None:
    """Until every trial has ended, or until asked to stop.

    Raises:
      KeyboardInterrupt: it was stopped by Ctrl-C, and all trials have saved.
      Again: by SIGTERM or a hang-up, the same.
    """
    passed_on = 0
    with self._signals():
      while True:
        self._collect()
        if self._asked:
          if not self._running():
            break
          if len(self._asked) > passed_on:
            passed_on = self._stop()
        else:
          self._start()
          if not self._running() and not self._waiting():
            break
          self._prune()
        self._show.update(self._manifest)
        self._wake.wait(_POLL_S)
    if signal.SIGINT in self._asked:
      raise KeyboardInterrupt
    if self._asked:
      raise exits.Again("stopped on request; the same command goes on")

  @contextlib.contextmanager
  def _signals(self) -> Iterator[None]:
    def note(number: int, _: object) -> None:
      self._asked.append(number)
      self._wake.set()

    before = {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
              if signal.getsignal(n) != signal.SIG_IGN}  # as under nohup
    try:
      yield
    except BaseException:
      self._engine.kill()
      raise
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)

  def _running(self) -> list[Entry]:
    return [e for e in self._manifest.listed if e.state == "running"]

  def _waiting(self) -> list[Entry]:
    return [e for e in self._manifest.listed if e.state == "waiting"]

  def _stop(self) -> int:
    """Passes on what was asked for; returns how often that was."""
    asked = len(self._asked)
    self._wake.clear()
    if asked == 1:
      self._show.say("stopping: trials save and end; once more kills them")
      self._engine.stop([e.trial.id for e in self._running()])
    else:
      self._engine.kill()
    return asked

  def _start(self) -> None:
    """Starts trials as long as there is room."""
    room, chosen = self._engine.room - len(self._running()), []
    while len(chosen) < room:
      entry = self._next()
      if entry is None:
        break
      if entry.trial.finished:
        self._end(entry, "done")
        continue
      begun = self._begun.setdefault(entry.trial.id, _Begun())
      if holder := lock.holder(entry.trial.dir):
        if not begun.told:
          self._show.say(f"{entry.trial.id}: waits for {holder}, which trains there")
        begun.told, begun.not_before = True, time.monotonic() + _HELD_S
        continue
      begun.before = entry.trial.saved
      entry.state, entry.starts, entry.why = "running", entry.starts + 1, ""
      chosen.append(entry)
      at = f" at step {begun.before}" if begun.before > 0 else ""
      self._show.say(f"{entry.trial.id}: starts{at}")
    if chosen:
      self._manifest.write()  # before: a start that is not written down would be one too few
      self._engine.start([e.trial for e in chosen])

  def _next(self) -> Entry | None:
    now = time.monotonic()
    # Those that failed come after those that had no try yet.
    free = [e for e in self._waiting() if self._of(e).not_before <= now]
    best = min(free, key=lambda e: self._of(e).tries, default=None)
    return best or self._source.more()

  def _of(self, entry: Entry) -> _Begun:
    return self._begun.get(entry.trial.id, _Begun())

  def _collect(self) -> None:
    """Takes note of the trials that ended."""
    for trial_id, code in self._engine.ended().items():
      entry, begun = self._manifest[trial_id], self._begun.setdefault(trial_id, _Begun())
      if code is None:
        entry.starts, code = entry.starts - 1, exits.AGAIN
      if entry.trial.finished:
        self._end(entry, "done")
      elif trial_id in self._pruned:
        self._end(entry, "pruned")
      elif self._asked:
        self._wait(entry, f"stopped at step {max(entry.trial.saved, 0)}")
      else:
        self._judge(entry, begun, code)

  def _judge(self, entry: Entry, begun: _Begun, code: int) -> None:
    """What follows from a trial's early end."""
    why = entry.trial.why(code)
    begun.tries = 1 if entry.trial.saved > begun.before else begun.tries + 1
    if code in (exits.BAD_INPUT, exits.NEVER) or begun.tries > self._restarts:
      entry.why = why
      self._end(entry, "failed")
      return
    pause = min(2.0 ** (begun.tries - 1), _PAUSE_S)
    begun.not_before = time.monotonic() + pause
    self._wait(entry, f"ended with {code} at step {entry.trial.steps} ({why}); again in "
                      f"{pause:.0f} s or later")

  def _wait(self, entry: Entry, text: str) -> None:
    entry.state = "waiting"
    self._manifest.write()
    self._show.say(f"{entry.trial.id}: {text}")

  def _end(self, entry: Entry, state: State) -> None:
    entry.state = state
    self._pruned.discard(entry.trial.id)
    self._source.ended(entry)
    self._manifest.write()
    self._show.say(f"{entry.trial.id}: {state}" + (f": {entry.why}" if entry.why else ""))

  def _prune(self) -> None:
    for entry in self._running():
      if entry.trial.id not in self._pruned and self._source.hopeless(entry):
        self._pruned.add(entry.trial.id)
        self._show.say(f"{entry.trial.id}: is stopped, as worse than others at step "
                       f"{entry.trial.steps}")
        self._engine.stop([entry.trial.id])
