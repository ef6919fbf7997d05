"""Units done by workers of a Ray cluster, each with its own CPU or GPU; all see the same files.

Actors rather than a Ray Dataset: they keep tokenizers compiled from the first unit to the last, and
documents stream through a bounded number of calls. A worker that is lost is started again, and its
unit done again, with the same bytes.
"""

import os
from collections.abc import Iterator
from typing import Any

from omnijax.data import encode, media, tokenise
from omnijax.data.tokenise import DocumentsUnit, MediaUnit, Work

_AHEAD = 2  # units given to each worker at a time


class Worker:
  """An actor: tokenizers, and what is done with them."""

  def __init__(self, work: Work, tokenizers: encode.Tokenizers):
    self._work, self._tokenizers = work, tokenizers

  def do(self, unit: MediaUnit | DocumentsUnit) -> int:
    """Does a unit; returns its items."""
    if isinstance(unit, DocumentsUnit):
      tokenise.tokenise_documents(self._work, self._tokenizers.text,
                                  self._tokenizers.frame_rate, unit)
      return len(unit.items)
    decode = tokenise.decoder(self._work, self._tokenizers, unit.kind)
    with media.pool(0) as pool:
      tokenise.tokenise_media(self._work, self._tokenizers, unit, pool(unit.media, decode))
    return len(unit.media)


class Ray:
  """An engine of `prepare`: on the cluster of RAY_ADDRESS, else on one started here.

  Args:
    work: what all units have in common.
    tokenizers: of all modalities.
    processes: workers; None or 0 is one for each GPU of the cluster, or each CPU if it has none.

  Raises:
    ValueError: Ray is not installed, or files are not where all workers see them.
  """

  def __init__(self, work: Work, tokenizers: encode.Tokenizers, processes: int | None):
    try:
      import ray
    except ImportError as error:
      raise ValueError("--engine ray needs Ray; install the extra `ray`.") from error
    self._ray: Any = ray
    # Workers run in other folders than this one.
    root = work.store.path("") if "://" in work.store.root else os.path.abspath(work.store.root)
    store = type(work.store)(root)
    self._work = Work(store, work.out.absolute(), work.image_size)
    self._tokenizers, self._processes = tokenizers, processes

  def __enter__(self) -> "Ray":
    ray = self._ray
    self._mine = not ray.is_initialized()
    if self._mine:
      ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    have = ray.cluster_resources()
    gpus, cpus = int(have.get("GPU", 0)), int(have.get("CPU", 1))
    count = self._processes or gpus or cpus
    actor = ray.remote(num_cpus=1, num_gpus=1 if gpus >= count else 0, max_restarts=-1,
                       max_task_retries=-1)(Worker)
    tokenizers = ray.put(self._tokenizers)
    self._workers = [actor.remote(self._work, tokenizers) for _ in range(count)]
    return self

  def __exit__(self, *error: object) -> None:
    for worker in self._workers:
      self._ray.kill(worker)
    if self._mine:
      self._ray.shutdown()

  def media(self, units: list[MediaUnit]) -> Iterator[int]:
    """Does them wherever a worker is free."""
    return self._do(iter(units))

  def documents(self, units: Iterator[DocumentsUnit]) -> Iterator[int]:
    """Does them wherever a worker is free."""
    return self._do(units)

  def _do(self, units: Iterator[Any]) -> Iterator[int]:
    free = self._workers * _AHEAD
    at_work: dict[Any, Any] = {}
    more = True
    while more or at_work:
      while more and free:
        unit = next(units, None)
        more = unit is not None
        if more:
          worker = free.pop()
          at_work[worker.do.remote(unit)] = worker
      if at_work:
        done, _ = self._ray.wait(list(at_work), num_returns=1)
        free.append(at_work.pop(done[0]))
        yield self._ray.get(done[0])
