"""One job at a time in a run directory."""

import datetime
import fcntl
import json
import os
import socket
from pathlib import Path


class Lock:
  """Held until closed, or until the process ends in whatever way.

  Args:
    run_dir: the directory.
    doing: what is done in it.
    option: by which the command is given another.

  Raises:
    ValueError: another process holds it.
  """

  def __init__(self, run_dir: Path, doing: str = "trained", option: str = "--run-dir"):
    self._file = (run_dir / "lock").open("a+")
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      self._file.seek(0)
      holder = _holder(self._file.read())
      self._file.close()
      raise ValueError(f"{run_dir} is being {doing} by {holder}; wait for it, stop it, or use "
                       f"another {option}.") from None
    self._file.truncate(0)
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    self._file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": now}))
    self._file.flush()

  def close(self) -> None:
    self._file.close()


def holder(run_dir: Path) -> str:
  """Who holds the lock of a directory; nothing if nobody does."""
  path = run_dir / "lock"
  if not path.exists():
    return ""
  with path.open("r+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      return _holder(file.read())
  return ""


def _holder(text: str) -> str:
  try:
    held = json.loads(text)
    return f"process {held['pid']} on {held['host']} since {held['since']}"
  except (ValueError, KeyError, TypeError):
    return "another process"
