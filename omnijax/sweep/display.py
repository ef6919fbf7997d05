"""How a sweep stands: a live table on a terminal, lines elsewhere."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from omnijax.sweep import trial as trial_lib
from omnijax.sweep.figures import Objective
from omnijax.sweep.manifest import Entry, Manifest

_LINE_S = 30.0  # between lines about progress where there is no terminal
_ROWS = 20  # of running trials, at most


class Display:
  """Shows what happens to a sweep, on stderr.

  Args:
    objective: whose best value is shown.
  """

  def __init__(self, objective: Objective):
    self._console = Console(stderr=True, highlight=False, soft_wrap=True)
    self._objective = objective
    self._live = Live(console=self._console, auto_refresh=False, transient=True)
    self._lined = time.monotonic()
    self._shown = 0.0

  def __enter__(self) -> "Display":
    if self._console.is_terminal:
      self._live.start()
    return self

  def __exit__(self, *_: object) -> None:
    if self._console.is_terminal:
      self._live.stop()

  def say(self, text: str) -> None:
    self._console.print(text, markup=False)

  def update(self, manifest: Manifest) -> None:
    now = time.monotonic()
    if self._console.is_terminal and now - self._shown > 1:
      self._shown = now
      self._live.update(self._table(manifest), refresh=True)
    elif not self._console.is_terminal and now - self._lined > _LINE_S:
      self._lined = now
      running = [e for e in manifest.listed if e.state == "running"]
      steps = "; ".join(f"{e.trial.id} {self._progress(e)}" for e in running[:_ROWS])
      self.say(f"{self._summary(manifest)}  {steps}")

  def _table(self, manifest: Manifest) -> Group:
    table = Table.grid(padding=(0, 2))
    running = [e for e in manifest.listed if e.state == "running"]
    for entry in running[:_ROWS]:
      total = entry.trial.run.train.steps
      table.add_row(Text(entry.trial.id, overflow="ellipsis", no_wrap=True),
                    ProgressBar(total, entry.trial.steps, width=24), self._progress(entry))
    more = f"and {len(running) - _ROWS} more" if len(running) > _ROWS else ""
    return Group(table, Text(f"{more}\n{self._summary(manifest)}".strip()))

  def _progress(self, entry: Entry) -> str:
    """Steps, loss, and the time that is left, of a running trial."""
    lines, total = trial_lib.recent(entry.trial.dir / "metrics.jsonl"), entry.trial.run.train.steps
    if not lines:
      return f"0/{total}  starts"
    done = lines[-1]["step"] + 1
    left = f"{_clock((total - done) * _pace(lines))} left" if done < total else "ends"
    return f"{done}/{total}  loss {lines[-1]['loss']:.3f}  {left}"

  def _summary(self, manifest: Manifest) -> str:
    entries = manifest.listed
    counts = {state: sum(e.state == state for e in entries)
              for state in ("done", "pruned", "failed", "running", "waiting")}
    values = [e.value for e in entries if e.state == "done" and e.value is not None]
    pick = max if self._objective.higher else min
    best = f"  best {self._objective.name} {pick(values):.4g}" if values else ""
    told = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    return f"{len(entries)} trials: {told}{best}{self._left(entries)}"

  def _left(self, entries: list[Entry]) -> str:
    """The time that is left, by the pace of the trials that are running."""
    running = [trial_lib.recent(e.trial.dir / "metrics.jsonl") for e in entries
               if e.state == "running"]
    paces = [_pace(lines) for lines in running if lines]
    todo = sum(max(0, e.trial.run.train.steps - e.trial.steps) for e in entries
               if e.state in ("running", "waiting"))
    if not paces:
      return ""
    return f"  {_clock(todo * statistics.mean(paces) / len(running))} left"


def _pace(lines: Sequence[dict[str, Any]]) -> float:
  """Seconds of a step; of those that compile, one is not typical."""
  return statistics.median(line["step_s"] for line in lines)


def _clock(seconds: float) -> str:
  hours, minutes = divmod(int(seconds) // 60, 60)
  return f"{hours}:{minutes:02d}:{int(seconds) % 60:02d}" if hours else (
    f"{minutes}:{int(seconds) % 60:02d}")
