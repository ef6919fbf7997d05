"""What a process arranges for itself before work begins: its end, its memory, its log, a port."""

import ctypes
import importlib.util
import logging
import os
import signal
import socket
import sys

from omnijax.job import exits

# Options of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)
_LAUNCHER = "OMNIJAX_LAUNCHER"


def dies_with_me() -> dict[str, str]:
  """Variables for the environment of an `omnijax` that is to be killed when this process ends.

  To Linux the thread that starts it is its parent: it is killed when that thread ends, too.
  """
  return {_LAUNCHER: str(os.getpid())}


def die_with_parent() -> None:
  """On Linux: this process is killed when the one that started it ends, in whatever way."""
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def die_with_launcher() -> None:
  """On Linux: this process is killed when the one that set `dies_with_me` for it ends.

  Raises:
    Again: that process is gone already.
  """
  launcher = os.environ.pop(_LAUNCHER, None)  # what this process starts has another parent
  if launcher is None or sys.platform != "linux":
    return
  die_with_parent()
  if str(os.getppid()) != launcher:
    raise exits.Again(f"{_LAUNCHER} says that process {launcher} started this one, but its parent "
                      f"is {os.getppid()}: the launcher is gone, or something stands between.")


def keep_memory() -> None:
  """Where XLA computes on the CPU, glibc keeps freed memory instead of giving it back to Linux.

  A step's buffers are otherwise mapped anew, page by page: a fifth of a small model's step. Must
  come before threads get arenas of their own, where large blocks are always mapped. Not where an
  accelerator's plugin is installed: the host then has better uses for many arenas.
  """
  if any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu")):
    return
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
  if mallopt is not None:
    for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
      mallopt(option, value)


class _ToStderr(logging.Handler):
  """To what sys.stderr is at the time; logging's own keeps the first one, which may be closed."""

  def emit(self, record: logging.LogRecord) -> None:
    print(self.format(record), file=sys.stderr, flush=True)


def log_to_stderr() -> None:
  """What omnijax has to say goes to stderr, bare; of other libraries, warnings."""
  log = logging.getLogger("omnijax")
  if not log.handlers:
    handler = _ToStderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
  log.setLevel(logging.INFO)
  log.propagate = False


def free_port() -> int:
  """A TCP port of this machine that nobody listens on."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]
