"""Units done on this machine: decoded in processes, tokenised in this one."""

import contextlib
import itertools
from collections.abc import Iterator

from omnijax.data import encode, media, tokenise
from omnijax.data.tokenise import DocumentsUnit, MediaUnit, Work


class Local:
  """An engine of `prepare`.

  Args:
    work: what all units have in common.
    tokenizers: of all modalities.
    processes: that decode; 0 decodes in this one.
  """

  def __init__(self, work: Work, tokenizers: encode.Tokenizers, processes: int):
    self._work, self._tokenizers, self._processes = work, tokenizers, processes
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> "Local":
    self._pool = self._stack.enter_context(media.pool(self._processes))
    return self

  def __exit__(self, *error: object) -> None:
    self._stack.close()

  def media(self, units: list[MediaUnit]) -> Iterator[int]:
    """Does them one after another; their files are decoded ahead of that."""
    if not units:
      return
    decode = tokenise.decoder(self._work, self._tokenizers, units[0].kind)
    stream = self._pool([medium for unit in units for medium in unit.media], decode)
    for unit in units:
      tokenise.tokenise_media(self._work, self._tokenizers, unit,
                              itertools.islice(stream, len(unit.media)))
      yield len(unit.media)

  def documents(self, units: Iterator[DocumentsUnit]) -> Iterator[int]:
    """Does them one after another."""
    for unit in units:
      tokenise.tokenise_documents(self._work, self._tokenizers, unit)
      yield len(unit.items)
