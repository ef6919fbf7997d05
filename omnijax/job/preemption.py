"""SIGTERM to any process of a job: all stop at the same place, with everything saved."""

import functools
import os
import signal
from collections.abc import Callable

_EARLY: list[int] = []


def hold_early() -> None:
  """From now on until `obey_early` SIGTERM is only noted: nothing can be saved yet."""
  signal.signal(signal.SIGTERM, lambda number, _: _EARLY.append(number))


def obey_early() -> None:
  """Sends SIGTERM again, to what jax has put in its place meanwhile."""
  if _EARLY:
    os.kill(os.getpid(), signal.SIGTERM)


@functools.cache
def _ask() -> Callable[[int], bool]:
  """Jax's question whether it is time to stop, which is ours alone from now on.

  After a SIGTERM jax waits for the question with the number after the last one. orbax asks, too,
  with the step that it saves, also from a thread of its own: the number to wait for would have
  passed long before, and the SIGTERM be lost.
  """
  from jax.experimental import multihost_utils

  ask = multihost_utils.reached_preemption_sync_point
  multihost_utils.reached_preemption_sync_point = lambda step: False
  return ask


class Preemption:
  """Whether it is time to stop; without `processes.join` it never is.

  All processes must ask at the same places in the same order, and often: between steps, between
  batches of an evaluation.
  """

  def __init__(self) -> None:
    self._asked, self._reached, self._ask = 0, False, _ask()

  def reached(self) -> bool:
    """True from the place on that the processes have agreed on after a SIGTERM to one of them."""
    import jax  # here, as `hold_early` is wanted before jax is there

    if not self._reached and jax.distributed.is_initialized():
      self._asked += 1
      self._reached = self._ask(self._asked)
    return self._reached
