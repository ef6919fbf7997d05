"""Batches made ready beside the loop."""

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from omnijax.job.preemption import Preemption


class Ahead:
  """Batches, taken in a thread so that the loop can look up while it waits for one."""

  def __init__(self, batches: Iterator[Any]):
    self._queue: queue.Queue[Any] = queue.Queue(1)
    self._closed = threading.Event()
    self.waited = 0.0  # seconds, for the last one
    self._thread = threading.Thread(target=self._take, args=(batches,), name="data", daemon=True)
    self._thread.start()

  def _take(self, batches: Any) -> None:
    item: Any = None
    try:
      for item in batches:
        if not self._put(item):
          return
      self._put(EOFError("the data ended"))
    except BaseException as error:
      self._put(error)
    finally:
      batches.close()

  def _put(self, item: Any) -> bool:
    while not self._closed.is_set():
      with contextlib.suppress(queue.Full):
        self._queue.put(item, timeout=0.1)
        return True
    return False

  def next(self, preemption: Preemption) -> Any:
    """The next batch; None if meanwhile the job was asked to stop, which one process may heed."""
    start = time.perf_counter()
    while True:
      with contextlib.suppress(queue.Empty):
        item = self._queue.get(timeout=0.2)
        break
      # Of several, some may be in the step that this one has no data for yet.
      if jax.process_count() == 1 and preemption.reached():
        return None
    self.waited = time.perf_counter() - start
    if isinstance(item, BaseException):
      raise item
    return item

  def close(self) -> None:
    self._closed.set()
    self._thread.join(5)
