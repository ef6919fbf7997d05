"""The figures of trials, from what they wrote: objectives, curves, and a row of a table each."""

import difflib
import math
import statistics
from collections.abc import Sequence
from typing import Any

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.job import goodput
from omnijax.sweep import trial as trial_lib
from omnijax.sweep.manifest import Entry

LOSSES = ("loss", *(f"loss/{k}" for k in vocab_lib.MODALITIES))
PHYSICAL = ("bits_per_byte", "bits_per_pixel", "bits_per_second")
_PARTS = ("loss/first_codebook", "loss/monologue_pad")
_SPEED = ("tokens_per_s", "mfu")
NAMES = (*LOSSES, *_PARTS, *PHYSICAL, *_SPEED,
         *(f"eval/{k}" for k in (*LOSSES, *_PARTS, *PHYSICAL)))
_LAST = 10  # a loss of training is a mean over the last n-th of the steps
PARTS = 20  # of a trial, after each of which it may be pruned


class Objective:
  """The figure that trials are compared by.

  Args:
    name: one of NAMES; None takes eval/loss where every run is evaluated, else loss.
    runs: of the sweep.

  Raises:
    ValueError: there is no such figure, or a run won't have it.
  """

  def __init__(self, name: str | None, runs: Sequence[config_lib.Run]):
    blind = [r.name for r in runs if not (r.eval.every and r.data.heldout)]
    self.name = name or ("loss" if blind else "eval/loss")
    if self.name not in NAMES:
      near = difflib.get_close_matches(self.name, NAMES, 1, 0.0)
      raise ValueError(f"there is no figure {self.name!r} to compare by; did you mean {near[0]!r}? "
                       f"All are {', '.join(NAMES)}.")
    if self.heldout and blind:
      raise ValueError(f"{self.name} is of held-out data, and {blind[0]!r} has none or is never "
                       "evaluated; set data.heldout and eval.every.")
    self.higher = self.name in _SPEED  # is better

  @property
  def heldout(self) -> bool:
    return self.name.startswith("eval/")

  def curve(self, trial: trial_lib.Trial) -> list[tuple[int, float]]:
    """The value after so many steps: of each evaluation, or means over stretches of training."""
    if self.heldout:
      return [(step, y) for step, y in curve(trial, self.name) if y is not None]
    size = max(1, trial.run.train.steps // PARTS)
    means, held = [], []
    for step, y in curve(trial, self.name):
      held.append(y)
      if step % size == 0:
        means.append((step, _mean(held)))
        held = []
    return [(step, y) for step, y in means if y is not None]

  def value(self, trial: trial_lib.Trial) -> float | None:
    """What it has come to."""
    return final(trial, self.name)


def curve(trial: trial_lib.Trial, name: str) -> list[tuple[int, float | None]]:
  """A figure after so many steps, of those that the trial is to have."""
  file, done = ("eval.jsonl", 0) if name.startswith("eval/") else ("metrics.jsonl", 1)
  points = [(line["step"] + done, line.get(name)) for line in trial_lib.lines(trial.dir / file)]
  return [p for p in points if p[0] <= trial.run.train.steps]


def final(trial: trial_lib.Trial, name: str) -> float | None:
  """A figure at the end: of the last evaluation; of training a mean over the last steps.

  Speeds are medians over all steps. None if there is none, or it is no number.
  """
  values = [y for _, y in curve(trial, name)]
  if name.startswith("eval/"):
    return _mean(values[-1:])
  if name in _SPEED:
    known = [y for y in values if y is not None]
    return statistics.median(known) if known else None
  return _mean(values[-max(1, trial.run.train.steps // _LAST):])


def _mean(values: Sequence[float | None]) -> float | None:
  known = [y for y in values if y is not None]
  mean = sum(known) / len(known) if known else math.nan
  return mean if math.isfinite(mean) else None


def row(entry: Entry, objective: Objective) -> dict[str, Any]:
  """A line of the table of results; figures that a trial has none of are None."""
  trial = entry.trial
  try:
    account = goodput.report(trial.dir)
  except FileNotFoundError:
    account = {"wall_s": 0.0, "starts": 0, "seconds": {"down": 0.0}}
  starts = max(entry.starts, account["starts"])  # SLURM starts again what we started once
  return {"id": trial.id, "name": trial.run.name, "state": entry.state,
          "objective": objective.value(trial), "steps": min(trial.steps, trial.run.train.steps),
          "starts": starts, "seconds": round(account["wall_s"] - account["seconds"]["down"], 1),
          **{name: final(trial, name) for name in NAMES}, "why": entry.why}


def ranked(entries: Sequence[Entry], objective: Objective) -> list[Entry]:
  """The best first; then those that were not run to their end; then those without a value."""
  def key(entry: Entry) -> tuple[bool, bool, float]:
    value = objective.value(entry.trial)
    if value is None:
      return True, True, 0.0
    return False, entry.state != "done", -value if objective.higher else value

  return sorted(entries, key=key)


def incomparable(entries: Sequence[Entry], objective: Objective) -> str:
  """Why the objective isn't the same quantity for all; nothing if it is."""
  weights = {e.trial.run.loss for e in entries}
  if objective.name.removeprefix("eval/") == "loss" and len(weights) > 1:
    return (f"{objective.name} is weighted by loss.*, which differs between trials, so it says "
            "little; compare by one modality, such as --objective "
            f"{objective.name}/{vocab_lib.MODALITIES[0]}")
  steps = {e.trial.run.train.steps for e in entries}
  return f"trials have different lengths: {sorted(steps)} steps" if len(steps) > 1 else ""
