"""Trials that Optuna asks for, and those that it gives up: ask and tell, with a journal on disk.

A trial of Optuna's is one of ours, as the manifest says. Optuna is told how one ended before the
manifest is, so that a sweep that is killed in between tells it once more and no time less.
"""

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna import distributions
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from omnijax import config as config_lib
from omnijax.sweep import space as space_lib
from omnijax.sweep.figures import PARTS, Objective
from omnijax.sweep.manifest import Entry, Manifest

JOURNAL = "optuna.log"
_NEEDS = {"gp": ("torch", "scipy"), "cmaes": ("cmaes",)}
_SAME = 20  # answers in a row that are no new trial, until Optuna is asked no more
_STATES = {"done": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


class Study:
  """A source of trials.

  Args:
    manifest: of the sweep.
    objective: what is made small, or large.
    space: what Optuna chooses from; None leaves it to prune the trials that the manifest lists.
    base: what all trials share, and what they differ in, as JSON values; of another base is
      another study.
    sampler: one of arguments.SAMPLERS, or "" where there is no space.
    pruner: one of arguments.PRUNERS, or "" to prune nothing.
    trials: of this study, those of earlier calls included.
    seed: of the sampler.

  Raises:
    ValueError: the sampler lacks a library.
  """

  def __init__(self, manifest: Manifest, objective: Objective, *, space: space_lib.Space | None,
               base: Any, sampler: str, pruner: str, trials: int, seed: int):
    self._manifest, self._objective, self._space = manifest, objective, space
    self._trials, self._seed, self._sampler = trials, seed, sampler
    for library in _NEEDS.get(sampler, ()):
      if importlib.util.find_spec(library) is None:
        raise ValueError(f"the sampler {sampler} needs {library}; `pip install {library}` brings "
                         "it.")
    self._fields = {k: _distribution(v) for k, v in space.fields.items()} if space else {}
    self._exhausted = False  # until more is known
    self._looked: dict[str, int] = {}  # at the curve of a trial, when so many parts were done
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    runs = [e.trial.run for e in manifest.listed] if space is None else [space.run]
    steps = max(run.train.steps for run in runs)
    self._study = optuna.create_study(
      study_name=config_lib.fingerprint([base, objective.name]), load_if_exists=True,
      storage=_storage(manifest.root / JOURNAL), pruner=_pruner(pruner, steps),
      direction="maximize" if objective.higher else "minimize")
    self._make_sampler(0)
    self._reconcile()

  @property
  def name(self) -> str:
    return self._study.study_name

  def _make_sampler(self, number: int) -> None:
    if self._sampler:
      with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        self._study.sampler = _sampler(self._sampler, self._seed, number, self._trials)

  def _reconcile(self) -> None:
    """Lists the trials of this study, and ends those of Optuna's that came to nothing."""
    mine = {e.number: e for e in self._manifest.listed + self._manifest.left
            if e.study == self.name}
    for frozen in self._study.get_trials(deepcopy=False):
      entry = mine.get(frozen.number)
      if entry is None:
        if frozen.state == TrialState.RUNNING:  # killed before it was written down
          self._study.tell(frozen.number, state=TrialState.FAIL)
        continue
      if self._space is not None:
        self._manifest.add(self._run(self._space, frozen.params))

  def more(self) -> Entry | None:
    if self._space is None or self._exhausted or len(self._mine()) >= self._trials:
      return None
    for _ in range(_SAME):
      entry = self._ask(self._space)
      if entry is not None:
        return entry
    self._exhausted = True
    return None

  def _mine(self) -> list[Entry]:
    return [e for e in self._manifest.listed if e.study == self.name]

  def _ask(self, space: space_lib.Space) -> Entry | None:
    """A trial that there was none like before; None if there was."""
    self._make_sampler(len(self._study.get_trials(deepcopy=False)))
    asked = self._study.ask(self._fields)
    run = self._run(space, asked.params)
    entry = self._manifest.get(run)
    if entry is not None and entry.study == self.name and entry.listed:
      known = entry.state in ("done", "pruned") and entry.value is not None
      self._study.tell(asked, entry.value if known else None,
                       state=TrialState.COMPLETE if known else TrialState.FAIL)
      return None
    entry = self._manifest.add(run)
    entry.study, entry.number = self.name, asked.number
    asked.set_user_attr("id", entry.trial.id)  # for people who look at the journal
    self._manifest.write()
    return entry

  def _run(self, space: space_lib.Space, params: Mapping[str, Any]) -> config_lib.Run:
    return space.make({k: _value(space.fields[k], params[k]) for k in self._fields})

  def hopeless(self, entry: Entry) -> bool:
    if isinstance(self._study.pruner, optuna.pruners.NopPruner):
      return False
    part = entry.trial.steps * PARTS // entry.trial.run.train.steps
    if part == self._looked.get(entry.trial.id, 0):
      return False
    self._looked[entry.trial.id] = part
    points = self._objective.curve(entry.trial)
    frozen = self._running(entry)
    trial = optuna.Trial(self._study, frozen._trial_id)
    for step, value in points:
      if step not in frozen.intermediate_values:
        trial.report(value, step)
    return trial.should_prune()

  def _running(self, entry: Entry) -> optuna.trial.FrozenTrial:
    """The trial of Optuna's, a new one if it has none, or one that failed before."""
    known = entry.study == self.name and entry.number >= 0
    frozen = self._study.get_trials(deepcopy=False)[entry.number] if known else None
    if frozen is None or frozen.state != TrialState.RUNNING:
      if frozen is not None:
        self._study.enqueue_trial(frozen.params)
      entry.study, entry.number = self.name, self._study.ask(self._fields).number
      self._manifest.write()
    return self._study.get_trials(deepcopy=False)[entry.number]

  def ended(self, entry: Entry) -> None:
    entry.value, self._exhausted = self._objective.value(entry.trial), False
    self._tell(entry)

  def _tell(self, entry: Entry) -> None:
    """Tells how a trial ended, unless that was told before."""
    state = _STATES[entry.state]
    if entry.state == "done" and entry.value is None:  # it is no number
      state = TrialState.FAIL
    if entry.study == self.name and entry.number >= 0:
      if self._study.get_trials(deepcopy=False)[entry.number].state == state:
        return
    self._study.tell(self._running(entry).number, state=state,
                     values=entry.value if state == TrialState.COMPLETE else None)


def _storage(path: Path) -> JournalStorage:
  """The journal, which a sudden end may have left locked, or with half a line; it is ours alone."""
  for lock in path.parent.glob(f"{path.name}.lock*"):
    lock.unlink()
  if path.exists() and not (text := path.read_bytes()).endswith(b"\n"):
    with path.open("r+b") as file:
      file.truncate(text.rfind(b"\n") + 1)
  return JournalStorage(JournalFileBackend(str(path)))


def _sampler(name: str, seed: int, number: int, trials: int) -> optuna.samplers.BaseSampler:
  """The sampler of one trial.

  Args:
    name: one of arguments.SAMPLERS.
    seed: of the study.
    number: of the trial: a sampler that is made anew must not draw the first trial again.
    trials: of the study, a quarter of which are drawn at random.
  """
  own, first = seed + number, min(10, max(2, trials // 4))
  make: Mapping[str, Callable[[], optuna.samplers.BaseSampler]] = {
    "tpe": lambda: optuna.samplers.TPESampler(seed=own, n_startup_trials=first, constant_liar=True),
    "gp": lambda: optuna.samplers.GPSampler(seed=own, n_startup_trials=first),
    "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=own, n_startup_trials=first,
                                                  warn_independent_sampling=False),
    # The seed is which sequence; where in it the study is, it has in its journal.
    "qmc": lambda: optuna.samplers.QMCSampler(scramble=True, seed=seed,
                                              warn_independent_sampling=False),
    "random": lambda: optuna.samplers.RandomSampler(seed=own)}
  return make[name]()


def _pruner(name: str, steps: int) -> optuna.pruners.BasePruner:
  """The pruner; none before a tenth of the steps."""
  first = max(1, steps // 10)
  make: Mapping[str, Callable[[], optuna.pruners.BasePruner]] = {
    "": optuna.pruners.NopPruner,
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=first),
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=first),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=first, max_resource=steps)}
  return make[name]()


def _distribution(values: tuple[Any, ...] | space_lib.Range) -> distributions.BaseDistribution:
  if isinstance(values, space_lib.Integers):
    return distributions.IntDistribution(values.low, values.high)
  if isinstance(values, space_lib.Uniform | space_lib.LogUniform):
    log = isinstance(values, space_lib.LogUniform)
    return distributions.FloatDistribution(values.low, values.high, log=log)
  plain = values if _plain(values) else tuple(range(len(values)))
  return distributions.CategoricalDistribution(plain)


def _value(values: tuple[Any, ...] | space_lib.Range, chosen: Any) -> Any:
  """What the run gets for a value that Optuna chose."""
  if isinstance(values, tuple):
    return chosen if _plain(values) else values[chosen]
  return chosen if isinstance(values, space_lib.Integers) else space_lib.rounded(chosen)


def _plain(values: tuple[Any, ...]) -> bool:
  """Whether Optuna can have the values themselves, and not only which of them."""
  return all(isinstance(v, str | int | float) for v in values)
