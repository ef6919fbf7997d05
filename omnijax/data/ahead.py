"""Windows of a plan counted by several processes, and what was counted kept in a file.

Counting is what makes a row far on reachable; a hundred million documents take a minute of two
cores. A run keeps its counts beside its checkpoints, so that it goes on at once.
"""

import concurrent.futures
import functools
import io
import itertools
import logging
import multiprocessing
import os
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from omnijax import host
from omnijax.data.lengths import Lengths
from omnijax.data.plan import Plan

_log = logging.getLogger(__name__)
_EACH = 4  # windows that a process is given at a time
_MINE: list[Lengths] = []  # of this process, which only counts

Span = tuple[int, int]


class Source(Protocol):
  """What has a length index, and is cheap to send to another process, as `Records` are."""

  @property
  def lengths(self) -> Lengths: ...


def count(plan: Plan, sources: Sequence[Source], rows: int, processes: int) -> Iterator[int]:
  """Counts windows until so many rows are reached.

  Args:
    plan: what is counted, here.
    sources: of the plan.
    rows: to reach.
    processes: that count; 0 counts in this one.

  Yields:
    the rows that are reached.
  """
  if not processes:
    yield from plan.ahead(rows, lambda p, spans: (p.count(*span) for span in spans), 1)
    return
  # Spawned: JAX may be running threads here, which a fork would break.
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(processes, context, _begin, (list(sources),)) as pool:

    def counts(plan: Plan, spans: Sequence[Span]) -> Iterator[int]:
      chunks = [spans[i : i + _EACH] for i in range(0, len(spans), _EACH)]
      return itertools.chain.from_iterable(pool.map(functools.partial(_count, plan), chunks))

    yield from plan.ahead(rows, counts, 4 * _EACH * processes)


def _begin(sources: Sequence[Source]) -> None:
  host.die_with_parent()
  _MINE[:] = [source.lengths for source in sources]


def _count(plan: Plan, spans: Sequence[Span]) -> list[int]:
  plan.attach(_MINE)
  return [plan.count(*span) for span in spans]


def keep(plan: Plan, file: pathlib.Path, fingerprint: str) -> None:
  """Writes what is counted of a plan, whole or not at all."""
  content = io.BytesIO()
  np.savez(content, allow_pickle=False, fingerprint=np.array(fingerprint), **plan.counted())
  temporary = file.with_name(file.name + ".tmp")
  temporary.write_bytes(content.getvalue())
  os.replace(temporary, file)


def recall(plan: Plan, file: pathlib.Path, fingerprint: str) -> bool:
  """Takes over what `keep` wrote of the same data; whether there was any."""
  try:
    with np.load(io.BytesIO(file.read_bytes())) as value:
      same = str(value["fingerprint"]) == fingerprint
      found = {name: value[name] for name in ("places", "ends", "changes")} if same else None
  except FileNotFoundError:
    return False
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    _log.warning("%s can't be read (%s): its rows are counted again", file, error)
    return False
  if found is None:
    return False
  plan.recall(found)
  return True
