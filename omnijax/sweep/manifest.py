"""The trials of a sweep, and what has become of each: manifest.json."""

import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from omnijax import config as config_lib
from omnijax.sweep import trial as trial_lib

FILE, TRIALS = "manifest.json", "trials"
State = Literal["waiting", "running", "done", "pruned", "failed"]


@dataclasses.dataclass
class Entry:
  """A trial and its state.

  listed: whether it is in the sweep now, and not only in an earlier one of this directory.
  starts: how often it was started.
  why: it failed.
  value: of the objective, once it is done or pruned.
  study, number: which trial of which of Optuna's studies it is.
  """

  trial: trial_lib.Trial
  listed: bool = True
  state: State = "waiting"
  starts: int = 0
  why: str = ""
  value: float | None = None
  study: str = ""
  number: int = -1


class Manifest:
  """All trials that a sweep's directory has had, those of the sweep as it is now first.

  Args:
    root: the directory.
  """

  def __init__(self, root: Path):
    self.root = root
    self._entries: dict[str, Entry] = {}
    for value in _read(root / FILE):
      folder = root / TRIALS / value["id"]
      if not (folder / trial_lib.EXPERIMENT).exists():  # somebody removed it
        continue
      run = config_lib.from_json((folder / trial_lib.EXPERIMENT).read_text("utf-8"))
      kept = {f.name: value[f.name] for f in dataclasses.fields(Entry) if f.name in value}
      entry = Entry(trial_lib.Trial(run, folder), **kept | {"listed": False})
      self._entries[entry.trial.id] = entry

  def add(self, run: config_lib.Run) -> Entry:
    """The entry of a run, which may have been there before.

    Raises:
      ValueError: another run of the sweep has its name, or is the same.
    """
    trial = trial_lib.make(run, self.root / TRIALS)
    before = self._entries.pop(trial.id, None)
    if twin := next((e for e in self.listed if e.trial.run.name == run.name), None):
      differ = ", ".join(differences([twin.trial.run, run])) or "nothing"
      raise ValueError(f"two runs of the sweep are named {run.name!r}; they differ in {differ}: "
                       "give each a name of its own.")
    if before is not None and before.listed:
      raise ValueError(f"the run {run.name!r} is in the sweep twice.")
    if before is not None:
      _check_same(before.trial, trial)
    entry = dataclasses.replace(before or Entry(trial), trial=trial, listed=True)
    trial.write()
    self._entries[trial.id] = entry
    return entry

  def begin(self, found: Collection[str]) -> None:
    """Makes states those of now: what failed is tried again, and what ran has ended.

    found: ids of trials that are running all the same.
    """
    for entry in self.listed:
      if entry.trial.id in found:
        entry.state = "running"
      elif entry.state in ("running", "failed"):
        entry.state = "waiting"
    self.write()

  def get(self, run: config_lib.Run) -> Entry | None:
    """The entry of a run, if there is one."""
    return self._entries.get(trial_lib.make(run, self.root / TRIALS).id)

  @property
  def listed(self) -> list[Entry]:
    """Of the sweep as it is now, in its order."""
    return [e for e in self._entries.values() if e.listed]

  @property
  def left(self) -> list[Entry]:
    """No longer in the sweep; their directories stay."""
    return [e for e in self._entries.values() if not e.listed]

  def __getitem__(self, trial_id: str) -> Entry:
    return self._entries[trial_id]

  def write(self) -> None:
    """Writes the file, whole or not at all."""
    entries = self.listed + self.left
    settings = differences([e.trial.run for e in entries])
    values = []
    for i, e in enumerate(entries):
      plain = {f.name: getattr(e, f.name) for f in dataclasses.fields(Entry) if f.name != "trial"}
      values.append({"id": e.trial.id, "name": e.trial.run.name,
                     "settings": {k: v[i] for k, v in settings.items()}, **plain})
    trial_lib.replace(self.root / FILE, json.dumps({"trials": values}, indent=1) + "\n")


def _check_same(before: trial_lib.Trial, now: trial_lib.Trial) -> None:
  """Raises ValueError for a trial whose settings were others, by what were defaults then."""
  then, new = trial_lib.decisive(before.run), trial_lib.decisive(now.run)
  if differ := [f"{k} was {then.get(k)!r} and is {new[k]!r}" for k in new if then.get(k) != new[k]]:
    raise ValueError(f"{now.dir} has been run by a version with other defaults: "
                     f"{', '.join(differ)}; set them in the experiment, or use another --dir.")


def differences(runs: Sequence[config_lib.Run]) -> dict[str, list[Any]]:
  """Fields in which runs differ, by dotted name, with the value of each run; names are left out."""
  flat = [config_lib.flat(run) for run in runs]
  names = dict.fromkeys(k for values in flat for k in values if k != "name")
  columns = {k: [values[k] for values in flat] for k in names}
  return {k: column for k, column in columns.items() if any(v != column[0] for v in column)}


def _read(path: Path) -> list[dict[str, Any]]:
  if not path.exists():
    return []
  try:
    return json.loads(path.read_text("utf-8"))["trials"]
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{path} is no manifest of a sweep ({error}); use another --dir.") from error
