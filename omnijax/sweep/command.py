"""What `omnijax sweep` does."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omnijax import config as config_lib
from omnijax import experiment as experiment_lib
from omnijax.data import records
from omnijax.job import exits, lock
from omnijax.sweep import driver, engine, results
from omnijax.sweep import space as space_lib
from omnijax.sweep import trial as trial_lib
from omnijax.sweep.display import Display
from omnijax.sweep.figures import Objective
from omnijax.sweep.manifest import Manifest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """What the command line says beside experiment and fields; see its help."""

  dir: Path
  engine: str = "local"
  jobs: int | None = None
  devices: int | None = None
  cpus: int | None = None
  optuna: str = ""  # a sampler
  pruner: str = ""
  trials: int | None = None
  seed: int | None = None
  objective: str | None = None
  restarts: int = 2

  def __post_init__(self) -> None:
    for name in ("jobs", "devices", "cpus", "trials"):
      if (value := getattr(self, name)) is not None and value < 1:
        raise ValueError(f"--{name} is {value}; wanted 1 or more.")
    if self.restarts < 0:
      raise ValueError(f"--restarts is {self.restarts}; wanted 0 or more.")
    if self.trials is not None and not self.optuna:
      raise ValueError("--trials is how many Optuna asks for, and has no effect without --optuna.")
    if self.seed is not None and not self.optuna:
      raise ValueError("--seed is of Optuna's choices, and has no effect without --optuna.")
    if self.cpus is not None and self.engine == "local":
      raise ValueError("--cpus has no effect with --engine local; every trial may use all.")


def run(path: Path, fields: Sequence[str], options: Options, prog: str) -> None:
  """Runs a sweep to its end, or what is left of it.

  Args:
    path: of an experiment with `sweep()`.
    fields: arguments that change fields of all its runs.
    options: everything else.
    prog: the command, for messages.

  Raises:
    ValueError: no sweep in the experiment, or it can't be run so.
    SystemExit: some trials failed.
    Again, KeyboardInterrupt: it was stopped; the same command goes on.
  """
  swept = changed(load(path), fields, prog)
  if options.engine == "local":  # elsewhere data may lie elsewhere
    _check_data([swept.run] if isinstance(swept, space_lib.Space) else swept)
  with contextlib.ExitStack() as stack:
    root = _directory(options.dir)
    stack.callback(lock.Lock(root, "swept", "--dir").close)
    manifest = Manifest(root)
    source, objective = _source(manifest, swept, options)
    runner = _engine(options, manifest.root)
    stack.callback(runner.close)
    manifest.begin(runner.found)
    title = f"sweep of {path.stem}"
    try:
      with Display(objective) as show:
        _tell(manifest, show, options)
        # SLURM starts trials again by itself.
        restarts = 0 if options.engine == "slurm" else options.restarts
        driver.Driver(manifest, runner, source, show, restarts=restarts).run()
    finally:
      if manifest.listed:
        results.write(manifest, objective, title)
  if failed := [e for e in manifest.listed if e.state == "failed"]:
    print(f"omnijax: {len(failed)} trials failed; the same command tries them again",
          file=sys.stderr)
    raise SystemExit(exits.OTHER)


def load(path: Path) -> space_lib.Space | list[config_lib.Run]:
  """What the `sweep()` of an experiment gives: a space, or its runs.

  Raises:
    ValueError: there is none, or it gives something else.
  """
  module = experiment_lib.module(path)
  if not callable(getattr(module, "sweep", None)):
    raise ValueError(f"{path} has no function `sweep`; wanted `sweep()` that gives Runs, such as "
                     'omnijax.sweep.space.grid(run(), {"optim.peak_lr": (1e-3, 3e-3)}).')
  found: Any = module.sweep()
  if isinstance(found, space_lib.Space):
    return found
  runs = list(found) if isinstance(found, Iterable) else [found]
  if bad := [r for r in runs if not isinstance(r, config_lib.Run)]:
    raise ValueError(f"sweep() of {path} gave {type(bad[0]).__name__}; wanted Runs.")
  if not runs:
    raise ValueError(f"sweep() of {path} gave no run.")
  return runs


def changed(swept: space_lib.Space | list[config_lib.Run], fields: Sequence[str], prog: str
            ) -> space_lib.Space | list[config_lib.Run]:
  """The same with fields of all runs changed by arguments such as `--train.steps 30`.

  Raises:
    ValueError: an unknown field, a value that doesn't fit, or a field that the sweep is over.
  """
  if not fields:
    return swept
  runs = [swept.run] if isinstance(swept, space_lib.Space) else swept
  made = experiment_lib.override(runs[0], fields, prog)
  given = [f.split("=")[0].removeprefix("--").replace("-", "_") for f in fields
           if f.startswith("--")]
  flat = config_lib.flat(made)
  new = {name: flat[name] for name in given}
  over = swept.fields if isinstance(swept, space_lib.Space) else results.differences(runs)
  for name in given:
    if name == "name" or any(name == k or name.startswith(f"{k}.") for k in over):
      raise ValueError(f"--{name} is what the runs of the sweep differ in; leave it out.")
  out = [experiment_lib.changed(r, new) for r in runs]
  return swept.of(out[0]) if isinstance(swept, space_lib.Space) else out


def _directory(root: Path) -> Path:
  try:
    root.mkdir(parents=True, exist_ok=True)
    return root.resolve()
  except OSError as error:
    raise ValueError(f"{root} can't be written ({error.strerror}); wanted a directory for the "
                     "sweep: change --dir or its permissions.") from error


def _source(manifest: Manifest, swept: space_lib.Space | list[config_lib.Run], options: Options
            ) -> tuple[driver.Source, Objective]:
  """Puts all trials that are known into the manifest; where others come from, if they do."""
  if not options.optuna:
    runs = list(swept)
    objective = Objective(options.objective, runs)
    for run_ in runs:
      manifest.add(run_)
    if not options.pruner:
      return driver.Listed(objective), objective
    space, trials = None, len(runs)
    base: Any = ["listed", sorted({r.train.steps for r in runs})]
  else:
    if not isinstance(swept, space_lib.Space):
      raise ValueError("--optuna chooses from what the sweep is over, which a list of Runs doesn't "
                       "say; let sweep() return space.grid(...) or space.random(...).")
    space = swept
    objective = Objective(options.objective, [space.run])
    over = {k: repr(v) for k, v in space.fields.items()}
    base = [trial_lib.decisive(space.run, chosen=True), over]
    trials = options.trials or space.trials or len(list(space))
  from omnijax.sweep import study

  return study.Study(manifest, objective, space=space, base=base, sampler=options.optuna,
                     pruner=options.pruner, trials=trials, seed=options.seed or 0), objective


def _engine(options: Options, root: Path) -> engine.Engine:
  if options.engine == "local":
    return engine.Local(options.jobs, options.devices)
  if options.engine == "slurm":
    from omnijax.sweep import slurm

    return slurm.Slurm(root, options.jobs, options.devices, options.cpus, options.restarts,
                       waits=bool(options.optuna))
  from omnijax.sweep import ray_engine

  return ray_engine.Ray(options.jobs, options.devices, options.cpus or 1)


def _check_data(runs: Sequence[config_lib.Run]) -> None:
  """Raises ValueError for records that are not there: every trial would find that out by itself."""
  for path in dict.fromkeys(p for r in runs for p in (*r.data.sources, *r.data.heldout)):
    records.Records(path)


def _tell(manifest: Manifest, show: Display, options: Options) -> None:
  """How a sweep begins, or goes on."""
  entries = manifest.listed
  done = sum(e.trial.finished for e in entries)
  show.say(f"{options.dir}: {len(entries)} trials"
           + (f", {done} of them done before" if done else "")
           + (f", chosen by {options.optuna}" if options.optuna else ""))
  if manifest.left:
    show.say(f"no longer in the sweep, and kept: {', '.join(e.trial.id for e in manifest.left)}")
