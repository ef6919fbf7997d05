"""SIGTERM to any process of a job: all stop at the same place, with everything saved."""

import jax


class Preemption:
  """Whether it is time to stop; without `processes.join` it never is.

  All processes must ask at the same places in the same order, and often: between steps, between
  batches of an evaluation.
  """

  def __init__(self) -> None:
    self._asked, self._reached = 0, False

  def reached(self) -> bool:
    """True from the place on that the processes have agreed on after a SIGTERM to one of them."""
    if not self._reached and jax.distributed.is_initialized():
      from jax.experimental import multihost_utils

      self._asked += 1
      self._reached = multihost_utils.reached_preemption_sync_point(self._asked)
    return self._reached
