"""Looks for the variant of a run that trains the most positions a second on a slice.

Variants differ in the mesh, in rows at once and micro-batches, in what is kept for the backward
pass and in the blocks of attention. Those that can't be laid out or can't fit are left out; of the
others the most promising are compiled, one after another, each correcting what is promised of those
like it.
"""

import dataclasses
import itertools
import json
import math
import os
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from omnijax import config as config_lib
from omnijax import experiment as experiment_lib
from omnijax import sharding
from omnijax import vocab as vocab_lib
from omnijax.plan import promise as promise_lib
from omnijax.plan.child import Refused
from omnijax.plan.chips import RESERVED, Slice

_MADE = "Written by `omnijax plan --search`, which may write it again."
_MOST_TENSOR = 8
_LONG = 32_768  # positions of a row from which on devices may share one
_DOUBT = 1.25  # how much more than a chip's memory a promise must be, to be left out unseen

Settings = dict[str, Any]  # flat names of fields -> values, such as model.remat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Try:
  """A compiled variant."""

  settings: Settings
  outcome: str  # fits, does not fit, or failed
  why: str  # it failed, or what would make it fit
  hbm_gib: float  # 0 if it failed
  step_s: float  # 0 if it failed or is too large to be compiled
  tokens_per_s: float  # of a chip
  mfu: float
  took: float  # seconds of compiling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """What a search saw."""

  tries: list[Try]  # the best first
  dropped: dict[str, int]  # variants that were not compiled, by why

  @property
  def best(self) -> Try | None:
    return self.tries[0] if self.tries and self.tries[0].outcome == "fits" else None


def variants(run: config_lib.Run, where: Slice, fixed: Sequence[str] = ()
             ) -> Iterator[config_lib.Run | str]:
  """Variants of a run for a slice, or why one can't be laid out.

  Args:
    run: the run.
    where: the slice.
    fixed: sections or fields that stay, such as mesh or data.rows.
  """
  free = lambda name: name not in fixed and name.split(".")[0] not in fixed
  m, d = run.model, run.data
  choices: dict[str, Sequence[Any]] = {
    "mesh": list(_meshes(run, where)) if free("mesh") else [_whole(run.mesh, where)],
    "data.rows": sorted({d.rows * n // 2 for n in (1, 2, 4, 8)}) if free("data.rows") else [d.rows],
    "optim.accumulate": (1, 2, 4) if free("optim.accumulate") else [run.optim.accumulate],
    # Which names to save is nothing to be enumerated.
    "model.remat": [r for r in _literals(config_lib.Model, "remat") if r != "names"]
                   if free("model.remat") and m.remat != "names" else [m.remat],
    # Not below what kernels are known to be fast at: the estimates know no cost of small blocks.
    "model.attention_blocks": sorted({m.attention_blocks, (1024, 1024), (1024, 2048), (2048, 1024)})
                              if free("model.attention_blocks") else [m.attention_blocks],
  }
  for values in itertools.product(*choices.values()):
    settings = dict(zip(choices, values, strict=True))
    try:
      made = experiment_lib.changed(run, settings)
      shape = sharding.mesh_shape(made.mesh, where.chips)
      mesh: Any = jax.sharding.AbstractMesh(shape, sharding.AXES)
      sharding.check_divides(made, mesh)
      if any(d.positions // made.mesh.context % min(b, d.positions // made.mesh.context)
             for b in made.model.attention_blocks):
        raise ValueError("model.attention_blocks don't divide a device's positions")
    except ValueError as error:
      yield str(error)
    else:
      yield made


def _literals(cls: type, name: str) -> Sequence[Any]:
  """The values that a field may have."""
  return typing.get_args(typing.get_type_hints(cls)[name])


def _whole(mesh: config_lib.Mesh, where: Slice) -> config_lib.Mesh:
  return config_lib.Mesh(**dict(zip(sharding.AXES, sharding.mesh_shape(mesh, where.chips),
                                    strict=True)))


def _meshes(run: config_lib.Run, where: Slice) -> Iterator[config_lib.Mesh]:
  """Meshes of all devices of a slice, along axes that the run can use."""
  n, given = where.chips, run.mesh
  most = config_lib.Mesh(
    data=n, fsdp=n, tensor=max(_MOST_TENSOR, given.tensor),
    context=n if run.data.positions >= _LONG else max(1, given.context),
    expert=max(1, run.model.experts))
  limits = [getattr(most, axis) for axis in sharding.AXES]
  divisors = [i for i in range(1, n + 1) if n % i == 0]
  for sizes in itertools.product(*([i for i in divisors if i <= limit] for limit in limits)):
    if math.prod(sizes) == n and sizes[0] % where.slices == 0 and _lies(sizes, where):
      yield config_lib.Mesh(**dict(zip(sharding.AXES, sizes, strict=True)))


def _lies(sizes: Sequence[int], where: Slice) -> bool:
  """Whether each axis can be some dims of the torus as a whole, as jax lays meshes out."""
  wanted = (sizes[0] // where.slices, *sizes[1:])
  sides = [*where.shape, where.chip.devices]
  for owners in itertools.product(range(len(wanted)), repeat=len(sides)):
    made = [1] * len(wanted)
    for owner, side in zip(owners, sides, strict=True):
      made[owner] *= side
    if tuple(made) == wanted:
      return True
  return False


def settings_of(run: config_lib.Run) -> Settings:
  """What variants differ in, as plain values."""
  mesh = {f"mesh.{k}": v for k, v in dataclasses.asdict(run.mesh).items()}
  return mesh | {"data.rows": run.data.rows, "optim.accumulate": run.optim.accumulate,
                 "model.remat": run.model.remat,
                 "model.attention_blocks": list(run.model.attention_blocks)}


def run_of(run: config_lib.Run, tried: Try) -> config_lib.Run:
  """The variant of a run that was tried."""
  blocks = tuple(tried.settings["model.attention_blocks"])
  return experiment_lib.changed(run, tried.settings | {"model.attention_blocks": blocks})


def search(run: config_lib.Run, vocab: vocab_lib.Vocab, where: Slice,
           attempt: Callable[[config_lib.Run, str], dict[str, Any]], *, tries: int, log: Path,
           fixed: Sequence[str] = (), document: int | None = None) -> Found:
  """Compiles the most promising variants of a run.

  Args:
    run: the run.
    vocab: its id space.
    where: the slice.
    attempt: (variant, what is going on) -> figures of its plan, as `Plan.as_json` gives.
    tries: the most to compile, those in the log included.
    log: what is compiled is written to, and never compiled again.
    fixed: sections or fields that stay.
    document: as `attempt` takes it; a log of another is refused.

  Raises:
    ValueError: no variant can be laid out or fit, or the log is of another search.
  """
  key = config_lib.fingerprint([dataclasses.asdict(run), where.name, where.slices, document,
                                sorted(fixed)])
  done = _read(log, key)
  count = promise_lib.parameters(run, vocab)
  left, settings, dropped = {}, {}, {}
  for made in variants(run, where, fixed):
    if isinstance(made, str):
      dropped[made] = dropped.get(made, 0) + 1
    else:
      plain = settings_of(made)
      left[name_of(plain)], settings[name_of(plain)] = made, plain
  if not left:
    raise ValueError(f"no variant of {run.name} can be laid out on {where.name}: "
                     f"{next(iter(dropped), 'there is none')}")
  promises = {name: promise_lib.promise(made, vocab, where, count) for name, made in left.items()}
  most = where.chip.hbm * (1 - RESERVED)
  first = name_of(settings_of(experiment_lib.changed(run, {"mesh": _whole_or_given(run, where)})))
  while True:
    seen = {name_of(t.settings) for t in done}
    rates = {}
    known = [(t, promises[name_of(t.settings)]) for t in done if name_of(t.settings) in promises]
    doubt = 1.0 if any(t.hbm_gib for t in done) else _DOUBT
    for name, made in left.items():
      seconds, size = _corrected(promises[name], settings[name], known)
      if name not in seen and size <= most * doubt:
        rates[name] = made.data.rows * made.data.positions / seconds / where.chips
    if len(done) >= tries or not rates:
      break
    name = first if first in rates and not done else max(rates, key=lambda n: rates[n])
    took = sum(t.took for t in done) / len(done) if done else 0.0
    eta = f", about {took * (tries - len(done)) / 60:.0f} min left" if done else ""
    done.append(_attempt(left[name], attempt, f"try {len(done) + 1} of {tries}{eta}: {name}"))
    _write(log, key, done)
  if not done:
    least = min(p.bytes for p in promises.values()) / 2**30
    raise ValueError(f"no variant of {run.name} fits {where.name}: the least takes about "
                     f"{least:.1f} GiB of a chip; use more chips.")
  tried = sum(name in left for name in seen)
  if rates:
    dropped["promises less"] = len(rates)
  if len(left) - tried > len(rates):
    dropped["would take too much memory"] = len(left) - tried - len(rates)
  order = sorted(done, key=lambda t: (t.outcome != "fits", -t.tokens_per_s))
  return Found(tries=order, dropped=dropped)


def _whole_or_given(run: config_lib.Run, where: Slice) -> config_lib.Mesh:
  try:
    return _whole(run.mesh, where)
  except ValueError:  # it is for another slice
    return run.mesh


def _attempt(made: config_lib.Run, attempt: Callable[[config_lib.Run, str], dict[str, Any]],
             what: str) -> Try:
  begun = time.monotonic()
  try:
    f, outcome, why = attempt(made, what), "fits", ""
    if not f["fits"]:
      outcome, why = "does not fit", "; ".join(f["advice"])
  except (Refused, ValueError) as error:
    f, outcome, why = {}, "failed", str(error)
  return Try(settings=settings_of(made), outcome=outcome, why=why, hbm_gib=f.get("hbm_gib", 0.0),
             step_s=f.get("step_s_estimate", 0.0),
             tokens_per_s=f.get("tokens_per_s_per_chip", 0.0), mfu=f.get("mfu_estimate", 0.0),
             took=time.monotonic() - begun)


def _corrected(promised: promise_lib.Promise, mine: Settings,
               known: Sequence[tuple[Try, promise_lib.Promise]]) -> tuple[float, float]:
  """Seconds and bytes as promised, times what the most similar compiled ones came out at."""
  alike = [sum(mine[k] == v for k, v in t.settings.items()) for t, _ in known]

  def factor(ratios: Sequence[float]) -> float:
    best = max((n for n, ratio in zip(alike, ratios, strict=True) if ratio > 0), default=0)
    near = [ratio for n, ratio in zip(alike, ratios, strict=True) if ratio > 0 and n == best]
    return sum(near) / len(near) if near else 1.0

  seconds = factor([t.step_s / p.seconds for t, p in known])
  others = factor([(t.hbm_gib * 2**30 - p.state) / p.others if t.hbm_gib else 0.0
                   for t, p in known])
  return promised.seconds * seconds, promised.state + promised.others * others


def name_of(settings: Settings) -> str:
  """Settings as one line, which no others have; axes of one device are left out."""
  return " ".join(f"{k} {v if not isinstance(v, list) else ' '.join(map(str, v))}"
                  for k, v in settings.items() if not (k.startswith("mesh.") and v == 1))


def check_free(out: Path) -> None:
  """That an experiment may be written: there is none, or a search has written it.

  Raises:
    ValueError: it is no Python file, or one that no search has written.
  """
  if out.suffix != ".py":
    raise ValueError(f"--search {out} is no Python file; wanted a new experiment, such as "
                     f"{out.with_suffix('.py')}.")
  if out.exists() and _MADE not in out.read_text("utf-8"):
    raise ValueError(f"--search would write over {out}, which no search has written; give it "
                     "another name.")


def _read(log: Path, key: str) -> list[Try]:
  if not log.exists():
    return []
  try:
    held = json.loads(log.read_text("utf-8"))
  except ValueError:
    held = None
  if not isinstance(held, dict) or not {"of", "tries"} <= set(held):
    raise ValueError(f"{log} is no log of a search, which goes there; move it away, or give "
                     "--search another name.")
  if held["of"] != key:
    raise ValueError(f"{log} holds tries of another run, slice or choice of fixed fields; move it "
                     "away, or give --search another name.")
  return [Try(**t) for t in held["tries"]]


def _write(log: Path, key: str, done: Sequence[Try]) -> None:
  part = log.with_suffix(".part")
  tries = [dataclasses.asdict(t) for t in done]
  part.write_text(json.dumps({"of": key, "tries": tries}, indent=1) + "\n", "utf-8")
  part.replace(log)


def experiment(path: Path, out: Path, base: config_lib.Run, best: config_lib.Run, why: str) -> str:
  """Source of an experiment: the one in `path`, whose run is base, changed to be another.

  Args:
    path: of the experiment.
    out: where the source will be written.
    base: what `path` gives.
    best: the run to be.
    why: the docstring.
  """
  here = os.path.relpath(path.resolve(), out.resolve().parent)
  return f'''"""{why}

{_MADE}
"""

import dataclasses
from pathlib import Path

from omnijax import config, experiment


def run() -> config.Run:
  base = experiment.load(Path(__file__).parent / {here!r})
  return {_source("base", base, best)}
'''


def _source(name: str, old: Any, new: Any) -> str:
  """An expression that makes one dataclass of another, called by its name."""
  parts = []
  for field in dataclasses.fields(old):
    was, now = getattr(old, field.name), getattr(new, field.name)
    if was != now:
      inner = dataclasses.is_dataclass(was)
      value = _source(f"{name}.{field.name}", was, now) if inner else repr(now)
      parts.append(f"{field.name}={value}")
  if not parts:
    return name
  return f"dataclasses.replace(\n    {name}, " + ",\n    ".join(parts) + ")"
