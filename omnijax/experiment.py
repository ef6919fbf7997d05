"""Experiments: Python files with `run() -> Run`, and changes of their fields by name."""

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import json
import numbers
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omnijax import config as config_lib

T = TypeVar("T")


def load(path: Path) -> config_lib.Run:
  """The run that an experiment file describes; that of a `.json` is as `config.to_json` wrote it.

  Raises:
    ValueError: no such file, no `run` in it, or `run()` doesn't return a Run; or the JSON is of no
      run.
  """
  if path.suffix == ".json" and path.is_file():
    return _resolved(path)
  run = module(path).run()
  if not isinstance(run, config_lib.Run):
    raise ValueError(f"run() of {path} returned {type(run).__name__}; wanted omnijax.config.Run.")
  return run


def _resolved(path: Path) -> config_lib.Run:
  try:
    values = json.loads(path.read_text("utf-8"))
    if not isinstance(values, dict):
      raise ValueError(f"it is a {type(values).__name__} and no object")
    return config_lib.from_json(json.dumps(values))
  except ValueError as error:
    raise ValueError(f"{path} does not describe a run: {error}; wanted what training writes as "
                     "config.json into the directory of a run.") from error


def module(path: Path) -> types.ModuleType:
  """An experiment file as a module, which has a function `run`.

  Raises:
    ValueError: no such file, or no `run` in it.
  """
  if not path.is_file():
    raise ValueError(f"there is no experiment file {path}; wanted a Python file with "
                     "`run() -> omnijax.config.Run`, such as experiments/quickstart.py.")
  spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
  if spec is None or spec.loader is None:
    raise ValueError(f"{path} is no Python file; wanted one with `run() -> omnijax.config.Run`.")
  loaded = importlib.util.module_from_spec(spec)
  # An experiment may import the ones beside it, by either name. Last, so that it hides nothing.
  folder = path.resolve().parent
  sys.path += [str(p) for p in (folder, folder.parent) if str(p) not in sys.path]
  spec.loader.exec_module(loaded)
  if not callable(getattr(loaded, "run", None)):
    raise ValueError(f"{path} has no function `run`; wanted `run() -> omnijax.config.Run`.")
  return loaded


def override(default: T, arguments: Sequence[str], prog: str) -> T:
  """A dataclass with fields replaced by arguments such as `--optim.peak-lr 3e-4`.

  Raises:
    ValueError: an unknown field (the nearest known one is named) or a value that doesn't fit.
    SystemExit: `--help`, after printing every field with its default.
  """
  import tyro  # here, because its import takes longer than the rest of the command line

  known = list(flags(default))
  if not {"-h", "--help"} & set(arguments):
    for argument in arguments:
      flag = argument.split("=")[0].replace("_", "-")
      if argument.startswith("--") and flag not in known:
        near = difflib.get_close_matches(flag, known, 1, 0.0)
        raise ValueError(f"unknown field {argument.split('=')[0]}; did you mean {near[0]}? "
                         f"`{prog} --help` lists all.")
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      return tyro.cli(type(default), default=default, args=list(arguments), prog=prog)
  except SystemExit as stop:
    if not stop.code:
      raise
    raise ValueError(f"{_sentence(said.getvalue())} (`{prog} --help` lists all fields).") from None


def flags(value: Any, prefix: str = "--") -> Iterator[str]:
  """The names that the fields of nested dataclasses have on the command line."""
  for field in dataclasses.fields(value):
    name, inner = prefix + field.name.replace("_", "-"), getattr(value, field.name)
    if dataclasses.is_dataclass(inner):
      yield from flags(inner, f"{name}.")
    else:
      yield name


def changed(run: config_lib.Run, settings: Mapping[str, Any]) -> config_lib.Run:
  """A run with some fields, or whole sections, replaced; all at once, since some need each other.

  Args:
    run: the run.
    settings: by dotted name, such as optim.peak_lr or data.tasks.draw.

  Raises:
    ValueError: an unknown field (the nearest known one is named) or a value that doesn't fit.
  """
  return _changed(run, {name: fitting(run, name, value) for name, value in settings.items()})


def _changed(value: Any, settings: Mapping[str, Any]) -> Any:
  parts: dict[str, Any] = {}
  for name, new in settings.items():
    first, _, rest = name.partition(".")
    parts.setdefault(first, {})[rest] = new
  return dataclasses.replace(value, **{
    k: v[""] if "" in v else _changed(getattr(value, k), v) for k, v in parts.items()})


def fitting(run: config_lib.Run, name: str, value: Any) -> Any:
  """A value as a field of a run has it: 1 for a number of 1.0, a tuple for a list.

  Raises:
    ValueError: there is no such field, or the value is of another kind.
  """
  at: Any = run
  *sections, last = name.split(".")
  for section in sections:
    at = getattr(at, section, None)
  hints = typing.get_type_hints(type(at)) if dataclasses.is_dataclass(at) else {}
  if last not in hints:
    known = [flag.removeprefix("--").replace("-", "_") for flag in flags(run)]
    near = difflib.get_close_matches(name, known, 1, 0.0)
    raise ValueError(f"a run has no field {name!r}; did you mean {near[0]!r}?")
  return _fitting(value, hints[last], name)


def _fitting(value: Any, hint: Any, name: str) -> Any:
  inner = typing.get_args(hint)
  if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
    many = inner[1:] == (...,)
    if many or len(inner) == len(value):
      return tuple(_fitting(v, inner[0 if many else i], name) for i, v in enumerate(value))
  elif typing.get_origin(hint) is typing.Literal:
    if value in inner:
      return value
  elif hint in (int, float):
    kind = numbers.Integral if hint is int else numbers.Real
    if isinstance(value, kind) and not isinstance(value, bool):
      return hint(value)
  elif isinstance(hint, type) and isinstance(value, hint):
    return value
  wanted = ("one of " + ", ".join(map(repr, inner)) if typing.get_origin(hint) is typing.Literal
            else getattr(hint, "__name__", str(hint)) if not inner else str(hint))
  raise ValueError(f"{name} is {value!r}; wanted {wanted}.")


def _sentence(box: str) -> str:
  """What a framed message of tyro's says: its lines between the title and the next rule."""
  lines = [re.sub(r"[\u2500-\u257f]|-{5,}", "", line).strip() for line in box.splitlines()]
  body = lines[next(i for i, line in enumerate(lines) if line) + 1:]  # without the title
  first = next(i for i, line in enumerate(body) if line)
  last = next((i for i, line in enumerate(body[first:], first) if not line), len(body))
  text = " ".join(body[first:last]).rstrip(".")
  return re.sub(r"^Error parsing (?!--)[\w.]+: ", "", text)
