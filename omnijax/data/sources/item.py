"""What every source yields: documents as they were found, and what is wrong with the others."""

import dataclasses


class Bad(Exception):
  """An item that can't be used: a short kind to count by, and what exactly is wrong."""

  def __init__(self, kind: str, detail: str):
    super().__init__(kind, detail)
    self.kind, self.detail = kind, detail

  def __str__(self) -> str:
    return f"{self.kind}: {self.detail}"


@dataclasses.dataclass(frozen=True)
class RawPart:
  """A part as it was found.

  `value` is a text, or the name under which a `store.Store` opens a picture or a recording.
  Audio may have a `transcript`; the seconds at which its words begin, as `timed` (second, words);
  and the name of what was heard meanwhile, `listen`.
  """

  kind: int
  role: int
  value: str
  transcript: str | None = None
  timed: tuple[tuple[float, str], ...] | None = None
  listen: str | None = None

  @property
  def media(self) -> tuple[str, ...]:
    """Names of all that has to be opened."""
    if not self.kind:
      return ()
    return (self.value,) if self.listen is None else (self.value, self.listen)


@dataclasses.dataclass(frozen=True)
class Item:
  """One document: its number from 1, its id, and its parts or what is wrong.

  `group` names what must not be told apart when some documents are held out; else that is the id.
  """

  line: int
  id: str
  parts: tuple[RawPart, ...] | Bad
  group: str = ""
