"""Texts that end an answer, found in a stream without showing any part of them."""

from collections.abc import Sequence


class Stops:
  """Text goes in as it comes, and comes out once it can't be the beginning of a stop."""

  def __init__(self, stops: Sequence[str]):
    self._stops, self._held = stops, ""
    self.met = False

  def feed(self, text: str) -> str:
    """What may be shown; after a stop nothing more is."""
    if self.met:
      return ""
    self._held += text
    found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
    if found:
      self.met = True
      return self._out(min(found))
    return self._out(len(self._held) - max(map(self._begun, self._stops), default=0))

  def rest(self) -> str:
    """What was held back, at the end."""
    return "" if self.met else self._out(len(self._held))

  def _begun(self, stop: str) -> int:
    """Characters at the end of what is held that a stop could begin with."""
    for n in range(min(len(stop) - 1, len(self._held)), 0, -1):
      if self._held.endswith(stop[:n]):
        return n
    return 0

  def _out(self, n: int) -> str:
    out, self._held = self._held[:n], self._held[n:]
    return out
