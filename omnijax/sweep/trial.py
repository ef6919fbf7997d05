"""A trial: a run of a sweep as its directory has it, and how far that says it is."""

import dataclasses
import functools
import json
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omnijax import config as config_lib
from omnijax.job import saved

EXPERIMENT, OUTPUT = "experiment.json", "output.txt"
_TAIL = 1 << 14  # bytes, which have some lines of metrics
_NAME = 80  # characters of a name that its directory shows


@dataclasses.dataclass(frozen=True)
class Trial:
  """A run, and its directory; the last part of that is its id."""

  run: config_lib.Run
  dir: Path

  @property
  def id(self) -> str:
    return self.dir.name

  @property
  def command(self) -> list[str]:
    """What trains it, or goes on to."""
    return [sys.executable, "-m", "omnijax.cli", "train", str(self.dir / EXPERIMENT), "--run-dir",
            str(self.dir)]

  @property
  def steps(self) -> int:
    """Steps that are done and written down."""
    lines = recent(self.dir / "metrics.jsonl")
    return lines[-1]["step"] + 1 if lines else 0

  @property
  def saved(self) -> int:
    """Steps that the newest whole checkpoint has; -1 without one."""
    return saved.newest(self.dir)

  @property
  def finished(self) -> bool:
    """Whether the last step is done and saved: exit codes don't tell."""
    return self.saved >= self.run.train.steps

  def write(self) -> None:
    """Writes what `command` trains."""
    self.dir.mkdir(parents=True, exist_ok=True)
    replace(self.dir / EXPERIMENT, config_lib.to_json(self.run))

  def why(self, code: int) -> str:
    """Why it ended with this code: the last line that it wrote, or the signal that killed it."""
    if code < 0:
      return f"killed by {signal.Signals(-code).name}"
    written = _tail(self.dir / OUTPUT).decode(errors="replace").split("\n")
    said = next((line.strip() for line in reversed(written) if line.strip()), "it said nothing")
    return said.removeprefix("omnijax: error: ")


def make(run: config_lib.Run, trials: Path) -> Trial:
  """The trial of a run among others: its id depends on its name and settings, on nothing else.

  Of settings, on those that aren't the default: a later version may have more of them.
  """
  word = re.sub(r"[^A-Za-z0-9._]+", "-", run.name).strip("-.")[:_NAME]
  return Trial(run, trials / f"{word}-{config_lib.fingerprint(decisive(run, chosen=True))[:8]}")


def decisive(run: config_lib.Run, *, chosen: bool = False) -> dict[str, Any]:
  """What the results of a run depend on, as plain values by dotted name.

  chosen: only what is not the default of its field.
  """
  left_out = {*config_lib.INCIDENTAL, *(_defaults(run, "") if chosen else ())}
  return {k: v for k, v in config_lib.flat(run).items() if k not in left_out}


def _defaults(value: Any, path: str) -> Iterator[str]:
  """Dotted names of the fields that have their default."""
  for field in dataclasses.fields(value):
    inner = getattr(value, field.name)
    if dataclasses.is_dataclass(inner):
      yield from _defaults(inner, f"{path}{field.name}.")
    elif inner == field.default:
      yield path + field.name


def recent(path: Path) -> list[dict[str, Any]]:
  """The last whole lines of a file of JSON lines, some of them."""
  return _parsed(_tail(path))


def lines(path: Path) -> Sequence[dict[str, Any]]:
  """All whole lines of a file of JSON lines, which may be growing."""
  try:
    found = path.stat()
  except FileNotFoundError:
    return ()
  return _lines(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _lines(path: Path, size: int, changed: int) -> Sequence[dict[str, Any]]:
  return _parsed(path.read_bytes())


def _parsed(text: bytes) -> list[dict[str, Any]]:
  out = []
  for line in text.split(b"\n"):
    try:
      value = json.loads(line)
    except ValueError:  # empty, cut off, or being written
      continue
    if isinstance(value, dict):
      out.append(value)
  return out


def _tail(path: Path) -> bytes:
  try:
    with path.open("rb") as file:
      file.seek(max(0, path.stat().st_size - _TAIL))
      return file.read()
  except FileNotFoundError:
    return b""


def replace(path: Path, text: str) -> None:
  """Writes a file so that it is there whole or not at all."""
  part = path.with_suffix(".part")
  part.write_text(text, "utf-8")
  part.replace(path)
