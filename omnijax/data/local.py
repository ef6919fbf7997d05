"""Units done here: files decoded and texts tokenised in processes, the rest in this one."""

import collections
import concurrent.futures.process
import itertools
import os
from collections.abc import Iterator

from omnijax.data import encode, media, tokenise
from omnijax.data.tokenise import DocumentsUnit, MediaUnit, Work

_MOST = 16  # processes, unless more are asked for


class Local:
  """An engine of `prepare`.

  Args:
    work: what all units have in common.
    tokenizers: of all modalities.
    processes: that decode, or tokenise texts; 0 is in this one, None chooses by cores and work.
  """

  def __init__(self, work: Work, tokenizers: encode.Tokenizers, processes: int | None):
    self._work, self._tokenizers, self._processes = work, tokenizers, processes

  def __enter__(self) -> "Local":
    return self

  def __exit__(self, *error: object) -> None:
    pass

  def media(self, units: list[MediaUnit]) -> Iterator[int]:
    """Does them one after another; their files are decoded ahead of that."""
    if not units:
      return
    names = [medium for unit in units for medium in unit.media]
    decode = tokenise.decoder(self._work, self._tokenizers, units[0].kind)
    with media.pool(self._count(len(names) > 2 * media.CHUNK)) as pool:
      stream = pool(names, decode)
      for unit in units:
        tokenise.tokenise_media(self._work, self._tokenizers, unit,
                                itertools.islice(stream, len(unit.media)))
        yield len(unit.media)

  def documents(self, units: Iterator[DocumentsUnit]) -> Iterator[int]:
    """Does them, a bounded number ahead of the one that is waited for."""
    first = list(itertools.islice(units, 2))
    units = itertools.chain(first, units)
    text, rate = self._tokenizers.text, self._tokenizers.frame_rate
    processes = self._count(len(first) > 1)
    if not processes:
      for unit in units:
        tokenise.tokenise_documents(self._work, text, rate, unit)
        yield len(unit.items)
      return
    with media.spawned(processes) as executor:
      submit = lambda unit: (unit, executor.submit(tokenise.tokenise_documents, self._work, text,
                                                   rate, unit))
      waiting = collections.deque(map(submit, itertools.islice(units, 2 * processes)))
      while waiting:
        unit, future = waiting.popleft()
        try:
          future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
          raise ValueError("a process that tokenises texts was killed, perhaps for memory, at or "
                           f"soon after line {unit.items[0].line}; use fewer processes.") from error
        waiting.extend(map(submit, itertools.islice(units, 1)))
        yield len(unit.items)

  def _count(self, much: bool) -> int:
    if self._processes is not None:
      return self._processes
    return max(1, min((os.cpu_count() or 2) - 1, _MOST)) if much else 0
