"""Experiments: Python files with `run() -> Run`, and overrides of their fields by name."""

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import re
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omnijax import config as config_lib

T = TypeVar("T")


def load(path: Path) -> config_lib.Run:
  """The run that an experiment file describes.

  Raises:
    ValueError: no such file, no `run` in it, or `run()` doesn't return a Run.
  """
  run = module(path).run()
  if not isinstance(run, config_lib.Run):
    raise ValueError(f"run() of {path} returned {type(run).__name__}; wanted omnijax.config.Run.")
  return run


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


def _sentence(box: str) -> str:
  """What a framed message of tyro's says: its lines between the title and the next rule."""
  lines = [re.sub(r"[\u2500-\u257f]|-{5,}", "", line).strip() for line in box.splitlines()]
  body = lines[next(i for i, line in enumerate(lines) if line) + 1:]  # without the title
  first = next(i for i, line in enumerate(body) if line)
  last = next((i for i, line in enumerate(body[first:], first) if not line), len(body))
  text = " ".join(body[first:last]).rstrip(".")
  return re.sub(r"^Error parsing (?!--)[\w.]+: ", "", text)
