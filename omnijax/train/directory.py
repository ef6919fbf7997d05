"""The directory of a run: what it holds, who may write it, and whether it is the same run."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from omnijax import config as config_lib
from omnijax.job import lock as lock_lib
from omnijax.train import events

log = logging.getLogger("omnijax")
COUNTED = "plan.npz"  # which rows of the data are where, so that a run goes on at once


@contextlib.contextmanager
def opened(run: config_lib.Run, run_dir: Path, change: bool) -> Iterator[Path]:
  """The run directory, self-describing and locked; one of another experiment or job is refused.

  With `change` the settings that may change in the course of a run may be others than before.

  Yields this process's log, whose last line is the error that ends the run, if one does.
  """
  index = jax.process_index()
  log_file = run_dir / (f"log.{index}.txt" if index else "log.txt")
  with contextlib.ExitStack() as stack:
    try:
      run_dir.mkdir(parents=True, exist_ok=True)
      path = run_dir / "config.json"
      if path.exists():
        _check_same(run, config_lib.from_json(path.read_text()), run_dir, change)
      if index == 0:
        stack.callback(lock_lib.Lock(run_dir).close)
        part = path.with_suffix(".part")
        part.write_text(config_lib.to_json(run))
        part.replace(path)
      handler = logging.FileHandler(log_file)
    except OSError as error:
      raise ValueError(f"the run directory {run_dir} can't be written ({error.strerror}); wanted a "
                       "writable directory: change --run-dir or its permissions.") from error
    stack.callback(_close, handler)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    stack.callback(log.removeHandler, handler)
    try:
      yield log_file
    except BaseException as error:
      with contextlib.suppress(OSError):
        handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, "%s: %s",
                                      (type(error).__name__, error), sys.exc_info()))
      raise


def _close(handler: logging.Handler) -> None:
  with contextlib.suppress(OSError):  # of a full disk, which has been told by then
    handler.close()


def _check_same(run: config_lib.Run, before: config_lib.Run, run_dir: Path, change: bool) -> None:
  differ, refused = events.settings(before, run), events.settings(before, run, refused=True)
  if refused or differ and not change:
    told = ", ".join(f"{k} was {was!r} and is now {now!r}" for k, (was, now) in
                     {**differ, **refused}.items())
    more = "" if refused else ", or --change to go on with the new ones"
    raise ValueError(f"{run_dir} holds another run: {told}; use a new --run-dir, or the first "
                     f"settings again{more}.")
