"""Where a run's time goes, from its first start on, over all its starts: goodput.jsonl.

Buckets are those of Google's ml-goodput-measurement, as far as there is such a thing here. Time is
always in exactly one bucket, so that they add up to the wall's.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BUCKETS = {
  "start": "until the first thing below: imports, tokenizers, records, finding each other",
  "restore": "reading a checkpoint, or making the first state",
  "compile": "the first step of each start, most of which is the compiler's",
  "data": "standing still for a batch",
  "step": "steps that are part of what the run is now",
  "save": "standing still for a checkpoint",
  "eval": "losses on held-out data",
  "sample": "writing samples",
  "end": "after the last step",
  "wasted": "steps that were run again, since no checkpoint had them",
  "down": "between one start's last sign of life and the next start",
}
_EVERY = 5.0  # seconds, at most, that a process's sudden end leaves unaccounted


class Ledger:
  """Adds to the file what happens, as it happens.

  Args:
    path: of the file; None keeps nothing.
    begun: when the process began, in seconds since the epoch.
    clock: what time it is.
  """

  def __init__(self, path: Path | None, begun: float | None = None,
               clock: Callable[[], float] = time.time):
    self._clock = clock
    self._file = None
    if path is not None:
      self._attempt = 1 + max((line["attempt"] for line in _lines(path)), default=0)
      self._file = path.open("a")
    self._bucket, self._seconds = "start", dict.fromkeys(BUCKETS, 0.0)
    self._since = self._flushed = begun if begun is not None else clock()
    self._first = self._done = 0

  def enter(self, bucket: str) -> None:
    """From now on time is this bucket's."""
    now = self._clock()
    self._seconds[self._bucket] += now - self._since
    self._bucket, self._since = bucket, now
    if now - self._flushed > _EVERY:
      self.flush()

  def at(self, step: int) -> None:
    """The run has so many steps; fewer than before if it went back."""
    if step < self._done:
      self.flush()
      self._first = step
    self._done = step

  def begin(self, step: int) -> None:
    """The first step of this start."""
    self._first = self._done = step

  def flush(self) -> None:
    """Writes a line of what happened since the last one."""
    now = self._clock()
    self._seconds[self._bucket] += now - self._since
    self._since = now
    if self._file is not None:
      spent = {k: v for k, v in self._seconds.items() if v}
      self._file.write(json.dumps({"attempt": self._attempt, "from": self._flushed, "to": now,
                                   "first": self._first, "done": self._done, "seconds": spent})
                       + "\n")
      self._file.flush()
    self._flushed, self._first = now, self._done
    self._seconds = dict.fromkeys(BUCKETS, 0.0)

  def close(self) -> None:
    if self._file is not None:
      self.flush()
      self._file.close()
      self._file = None


def began() -> float:
  """When this process began, in seconds since the epoch."""
  try:  # Linux
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
  except (OSError, ValueError, IndexError):
    return time.time()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
  for line in path.read_text("utf-8").splitlines() if path.exists() else ():
    try:
      yield json.loads(line)
    except ValueError:  # cut off by the process's end
      continue


def report(run_dir: Path) -> dict[str, Any]:
  """Seconds of each bucket, which add up to the wall's, the share of steps, and starts.

  Raises:
    FileNotFoundError: the run has no such file.
  """
  path = run_dir / "goodput.jsonl"
  lines = list(_lines(path))
  if not lines:
    raise FileNotFoundError(f"no {path}; name the directory of a run that has been trained.")
  seconds = dict.fromkeys(BUCKETS, 0.0)
  for before, after in zip(lines, lines[1:], strict=False):
    seconds["down"] += max(0.0, after["from"] - before["to"])
  kept = float("inf")  # the first step that a later line runs again
  for line in reversed(lines):
    ran = line["done"] - line["first"]
    again = max(0, line["done"] - max(line["first"], kept)) / ran if ran > 0 else 0.0
    for bucket, spent in line["seconds"].items():
      wasted = spent * again if bucket == "step" else 0.0
      seconds["wasted"] += wasted
      seconds[bucket] += spent - wasted
    kept = min(kept, line["first"])
  wall = lines[-1]["to"] - lines[0]["from"]
  return {"wall_s": wall, "goodput": seconds["step"] / wall if wall else 0.0,
          "starts": lines[-1]["attempt"], "steps": lines[-1]["done"], "seconds": seconds}
