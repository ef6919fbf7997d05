"""What a sweep is over: fields of a run, and the values that they take. Experiments import this.

  from omnijax.sweep import space

  def sweep():
    return space.grid(run(), {"optim.peak_lr": (1e-3, 3e-3), "train.seed": (0, 1)})

A field may be a whole section (`"model": (SMALL, LARGE)`), for settings that hang together.
"""

import dataclasses
import itertools
import math
import random as random_lib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omnijax import config as config_lib
from omnijax import experiment

_DIGITS = 4  # of a number that is drawn: its name is then all of it
_TRIES = 100  # to draw what was not drawn before


@dataclasses.dataclass(frozen=True)
class Uniform:
  """A number from low to high, all alike."""

  low: float
  high: float

  def __post_init__(self) -> None:
    _check(self)

  def at(self, share: float) -> float:
    """The number that so large a share of all lies below; 0 <= share < 1."""
    return rounded(self.low + share * (self.high - self.low))


@dataclasses.dataclass(frozen=True)
class LogUniform:
  """A number from low to high whose logarithm is any alike, as suits learning rates."""

  low: float
  high: float

  def __post_init__(self) -> None:
    _check(self)
    if self.low <= 0:
      raise ValueError(f"LogUniform is from {self.low}; wanted more than 0.")

  def at(self, share: float) -> float:
    """The number that so large a share of all lies below; 0 <= share < 1."""
    return rounded(self.low * math.exp(share * math.log(self.high / self.low)))


@dataclasses.dataclass(frozen=True)
class Integers:
  """A whole number from low to high, both among them."""

  low: int
  high: int

  def __post_init__(self) -> None:
    _check(self)

  def at(self, share: float) -> int:
    """The number that so large a share of all lies below; 0 <= share < 1."""
    return self.low + int(share * (self.high - self.low + 1))


Range = Uniform | LogUniform | Integers


def _check(owner: Range) -> None:
  if not owner.low < owner.high:
    raise ValueError(f"{type(owner).__name__} is from {owner.low} to {owner.high}; wanted the "
                     "smaller number first.")


def rounded(value: float) -> float:
  """To as many digits as the name of a run shows."""
  return float(f"{value:.{_DIGITS}g}")


class Space:
  """Runs that differ in some fields: a grid, a random draw, or what Optuna asks for.

  Made by `grid` and `random`. Iterating gives its runs, each with a name of its own.

  Args:
    run: what they are variants of.
    fields: by dotted name, the values that a field takes: a sequence, or one of the ranges.
    trials: how many to draw at random; None is the grid.
    seed: of the draw.

  Raises:
    ValueError: a field that a run doesn't have, or a value that doesn't fit it.
  """

  def __init__(self, run: config_lib.Run, fields: Mapping[str, Sequence[Any] | Range],
               trials: int | None, seed: int):
    if not fields:
      raise ValueError("a sweep over no fields is one run; wanted such as "
                       '{"optim.peak_lr": (1e-3, 3e-3)}.')
    self.run = run
    self.fields = {name: _values(run, name, values) for name, values in fields.items()}
    self.trials = trials
    self._seed = seed

  def of(self, run: config_lib.Run) -> "Space":
    """The same of another run."""
    return Space(run, self.fields, self.trials, self._seed)

  def __iter__(self) -> Iterator[config_lib.Run]:
    drawn = self._grid() if self.trials is None else self._random(self.trials)
    return (self.make(dict(zip(self.fields, values, strict=True))) for values in drawn)

  def _grid(self) -> Iterator[tuple[Any, ...]]:
    values = {n: v for n, v in self.fields.items() if not isinstance(v, Range)}
    if ranges := sorted({*self.fields} - {*values}):
      raise ValueError(f"{', '.join(ranges)}: a grid wants values one by one, such as (1e-3, "
                       "3e-3); space.random draws from ranges.")
    return itertools.product(*values.values())

  def _random(self, trials: int) -> Iterator[tuple[Any, ...]]:
    draw, seen = random_lib.Random(self._seed), set()
    for _ in range(trials):
      for _ in range(_TRIES):
        values = tuple(v.at(draw.random()) if isinstance(v, Range) else draw.choice(v)
                       for v in self.fields.values())
        if values not in seen:
          break
      else:
        raise ValueError(f"{trials} runs were asked for, and after {len(seen)} {_TRIES} draws "
                         "brought nothing new; ask for fewer, or widen the ranges.")
      seen.add(values)
      yield values

  def make(self, values: Mapping[str, Any]) -> config_lib.Run:
    """The run with these values, named after them.

    Raises:
      ValueError: they don't fit together.
    """
    leaves = [n.rpartition(".")[2] for n in values]
    short = {n: leaf if leaves.count(leaf) == 1 else n
             for n, leaf in zip(values, leaves, strict=True)}
    told = ",".join(_told(self.run, n, v, short[n]) for n, v in values.items())
    try:
      made = experiment.changed(self.run, values)
      return dataclasses.replace(made, name=f"{self.run.name},{told}")
    except ValueError as error:
      raise ValueError(f"{self.run.name} with {told}: {error}") from error


def grid(run: config_lib.Run, fields: Mapping[str, Sequence[Any]]) -> Space:
  """Every combination of the values of some fields, the last field's first.

  Args:
    run: what they are variants of.
    fields: by dotted name, a sequence of values.

  Raises:
    ValueError: a field that a run doesn't have, or a value that doesn't fit it.
  """
  return Space(run, fields, None, 0)


def random(run: config_lib.Run, fields: Mapping[str, Sequence[Any] | Range], *, trials: int,
           seed: int = 0) -> Space:
  """So many runs with values drawn at random; with more trials the first ones stay the same.

  Args:
    run: what they are variants of.
    fields: by dotted name, a sequence of values, or Uniform, LogUniform, Integers.
    trials: how many.
    seed: of the draw.

  Raises:
    ValueError: a field that a run doesn't have, or a value that doesn't fit it.
  """
  if trials < 1:
    raise ValueError(f"{trials} trials were asked for; wanted 1 or more.")
  return Space(run, fields, trials, seed)


def _values(run: config_lib.Run, name: str, values: Any) -> tuple[Any, ...] | Range:
  if isinstance(values, Range):
    experiment.fitting(run, name, values.low)
    experiment.fitting(run, name, values.high)
    return values
  if isinstance(values, str) or not isinstance(values, Sequence) or not values:
    raise ValueError(f"{name} takes {values!r}; wanted its values, such as (1e-3, 3e-3), or "
                     "Uniform, LogUniform or Integers of omnijax.sweep.space.")
  out = tuple(experiment.fitting(run, name, v) for v in values)
  if twice := [v for v in out if out.count(v) > 1]:
    raise ValueError(f"{name} takes {twice[0]!r} twice; keep it once.")
  return out


def _told(run: config_lib.Run, name: str, value: Any, short: str) -> str:
  """A setting in the name of a run: name=value; of a section, what is other than in the run."""
  if not dataclasses.is_dataclass(value):
    return f"{short}={shown(value)}"
  mine, theirs = (config_lib.flat(v) for v in (value, getattr(run, name)))
  differ = [f"{k}={shown(v)}" for k, v in mine.items() if v != theirs.get(k)]
  return ",".join(differ) or f"{short}=same"


def shown(value: Any) -> str:
  """A value of a field as names and tables have it."""
  return "x".join(map(shown, value)) if isinstance(value, tuple | list) else str(value)
