"""SIGTERM to any process of a job: all stop at the same place, with everything saved."""

import os
import signal

_EARLY: list[int] = []


def hold_early() -> None:
  """From now on until `obey_early` SIGTERM is only noted: nothing can be saved yet."""
  signal.signal(signal.SIGTERM, lambda number, _: _EARLY.append(number))


def obey_early() -> None:
  """Sends SIGTERM again, to what jax has put in its place meanwhile."""
  if _EARLY:
    os.kill(os.getpid(), signal.SIGTERM)


class Preemption:
  """Whether it is time to stop; without `processes.join` it never is.

  All processes must ask at the same places in the same order, and often: between steps, between
  batches of an evaluation.
  """

  def __init__(self) -> None:
    self._asked, self._reached = 0, False

  def reached(self) -> bool:
    """True from the place on that the processes have agreed on after a SIGTERM to one of them."""
    import jax  # here, as `hold_early` is wanted before jax is there

    if not self._reached and jax.distributed.is_initialized():
      from jax.experimental import multihost_utils

      self._asked += 1
      self._reached = multihost_utils.reached_preemption_sync_point(self._asked)
    return self._reached
