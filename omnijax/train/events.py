"""What happened to a run that its future depends on: saved with every checkpoint.

The batch of a step begins at a row of the plan: at `step * data.rows`, until something happens. An
event says from which row on batches are read from its step on. So a run that went back, or whose
mixture or batch size changed, still has an order of its data that only depends on the seed, the
settings, the step, and its events.
"""

from collections.abc import Sequence
from typing import Any

from omnijax import config as config_lib
from omnijax import experiment

Event = dict[str, Any]

# They may change at any time.
_FREE = (*config_lib.INCIDENTAL, "train.steps", "eval.every", "eval.batches")
# A change of these is an event of the run, if that is what is wanted.
_MAY_CHANGE = ("data", "loss", "optim")


def first_row(events: Sequence[Event], step: int, rows: int) -> int:
  """Of the plan, that the global batch after so many steps begins with."""
  if not events:
    return step * rows
  last = events[-1]
  return last["row"] + (step - last["step"]) * rows


def at(events: Sequence[Event], step: int, run: config_lib.Run
       ) -> tuple[list[Event], config_lib.Run, bool]:
  """The events and the settings under which the batch of a step was read.

  Args:
    events: all of a run, in their order.
    step: of the batch.
    run: the settings after all events.

  Returns:
    The events until then, the run with what changed later as it was before, and whether the records
    are still the same.
  """
  until = [e for e in events if e["step"] <= step]
  was: dict[str, Any] = {}
  for event in reversed(events[len(until) :]):
    was |= {name: old for name, (old, _) in event.get("settings", {}).items()}
  same = was.pop("records", None) is None
  return until, experiment.changed(run, {k: v for k, v in was.items() if v is not None}), same


def went_back(events: Sequence[Event], step: int, done: int, rows: int) -> Event:
  """From a step to an earlier one, leaving out what was read between them."""
  return {"kind": "went back", "step": step, "from": done, "row": first_row(events, done, rows)}


def changed(events: Sequence[Event], step: int, before: config_lib.Run, now: config_lib.Run,
            records: Sequence[str]) -> Event | None:
  """Settings that are others from a step on; None if none is.

  Args:
    events: until then.
    step: of the checkpoint.
    before, now: the run as it was saved, and as it is to go on.
    records: fingerprints of the data then and now.
  """
  differ: dict[str, Any] = settings(before, now)
  if records[0] != records[1] and not any(name.startswith("data.") for name in differ):
    differ["records"] = list(records)
  if not differ:
    return None
  return {"kind": "changed", "step": step, "row": first_row(events, step, before.data.rows),
          "settings": differ}


def settings(before: config_lib.Run, now: config_lib.Run, *, refused: bool = False
             ) -> dict[str, list[Any]]:
  """Old and new value of settings that differ: of those that may change, or of all others."""
  old, new = (config_lib.flat(run) for run in (before, now))
  return {k: [old.get(k), new.get(k)] for k in {**old, **new}
          if k not in _FREE and old.get(k) != new.get(k)
          and (k.split(".")[0] in _MAY_CHANGE) != refused}
