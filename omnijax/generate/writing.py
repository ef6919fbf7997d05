"""What a row writes in its turn, token by token, as events.

Q codebooks  D frames by which acoustic codes lag
"""

import collections
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from omnijax import vocab as vocab_lib
from omnijax.generate.events import Picture, Text
from omnijax.generate.grammar import Layout

_MOST = 32  # ids that are read together; a dialogue may go on for ever
_CONTEXT = 8  # of them that stay: two characters at least, even if each byte is an id


class Words:
  """Ids of text to its characters, as soon as they are whole."""

  def __init__(self, tokenizer: Any):
    self._tokenizer = tokenizer
    self._ids = list[int]()
    self._told = ""

  def take(self, token: int, *, end: bool = False) -> str:
    """What an id adds; bytes that may still become a character are kept until `end`."""
    self._ids.append(token)
    return self.rest() if end else self._new(whole=False)

  def rest(self) -> str:
    """What is left of the text, which begins anew."""
    out = self._new(whole=True)
    self._ids, self._told = [], ""
    return out

  def _new(self, whole: bool) -> str:
    text = self._tokenizer.decode(self._ids)
    # Of very many ids no bytes at the end still become a character.
    held = not whole and len(self._ids) <= 2 * _MOST and text.endswith("\ufffd")
    if held:
      text = text.rstrip("\ufffd")
    new = text[len(self._told):]
    self._told = max(text, self._told, key=len)
    if len(self._ids) > _MOST and not held:
      self._ids = self._ids[-_CONTEXT:]
      self._told = self._tokenizer.decode(self._ids)
    return new


class Frames:
  """Codes of a stream, in which acoustic codes lag the first, to the codes of whole frames."""

  def __init__(self, layout: Layout):
    self._layout = layout
    self._first = collections.deque[int]()

  def take(self, codes_Q: np.ndarray) -> np.ndarray | None:
    """The codes [Q] of the frame that is whole with these; None if none is."""
    no_code = self._layout.vocab.no_code
    if codes_Q[0] != no_code:
      self._first.append(int(codes_Q[0]))
    acoustic = self._layout.vocab.codebooks == 1 or codes_Q[-1] != no_code
    late = len(self._first) > self._layout.acoustic_delay or codes_Q[0] == no_code
    if not (self._first and acoustic and late):
      return None
    return np.concatenate([[self._first.popleft()], codes_Q[1:]]).astype(np.int32)


class Codes(NamedTuple):
  """The codes [Q] of a frame of sound, to be decoded where it stands among the events."""

  codes_Q: np.ndarray


class Over(NamedTuple):
  """The speech is over: what the decoder of sound has kept back comes out."""


Item = Text | Picture | Codes | Over


class Writing:
  """The automaton of a turn: positions in, events and frames of sound out."""

  def __init__(self, layout: Layout, tokenizers: Any):
    self._layout, self._tokenizers = layout, tokenizers
    self._words = Words(tokenizers.text)
    self._frames: Frames | None = None  # while it speaks
    self._left = 0  # positions of its tail
    self._sizes = list[int]()  # rows and columns of the picture that is being written
    self._codes = list[int]()
    self.written = 0

  def take(self, main: int, codes_Q: np.ndarray) -> Iterator[Item]:
    """What a position gives."""
    v = self._layout.vocab
    self.written += 1
    grid = vocab_lib.grid_of(main)
    if self._frames is not None:
      yield from self._speech(self._frames, main, codes_Q)
    elif main == vocab_lib.SPEAK:
      yield from self._rest(spoken=False)
      self._frames = Frames(self._layout)
    elif grid:
      yield from self._rest(spoken=False)
      self._sizes.append(grid[1])
    elif main >= v.image_start:
      self._codes.append(main - v.image_start)
      if len(self._codes) == self._sizes[0] * self._sizes[1]:
        yield Picture(self._pixels(np.array(self._codes, np.int32).reshape(self._sizes)))
        self._sizes, self._codes = [], []
    else:
      yield from self._text(self._words.take(main - v.text_start), spoken=False)

  def end(self) -> Iterator[Item]:
    """What was kept back when the turn ends, or is ended."""
    yield from self._rest(spoken=self._frames is not None)
    if self._frames is not None:
      yield Over()

  def _pixels(self, codes_hw: np.ndarray) -> np.ndarray:
    pixels_HWC = np.asarray(self._tokenizers.image.decode(codes_hw[None]))[0]
    return np.round(pixels_HWC * 255).astype(np.uint8)

  def _speech(self, frames: Frames, main: int, codes_Q: np.ndarray) -> Iterator[Item]:
    if main >= self._layout.vocab.text_start:
      yield from self._text(self._words.take(main - self._layout.vocab.text_start), spoken=True)
    whole_Q = frames.take(codes_Q)
    if whole_Q is not None:
      yield Codes(whole_Q)
    if main == vocab_lib.AUDIO_END:
      yield from self._rest(spoken=True)
      self._left = self._layout.ending
    if self._left:
      self._left -= 1
      if not self._left:
        self._frames = None
        yield Over()

  def _rest(self, *, spoken: bool) -> Iterator[Item]:
    yield from self._text(self._words.rest(), spoken=spoken)

  def _text(self, delta: str, *, spoken: bool) -> Iterator[Item]:
    if delta:
      yield Text(delta, spoken)
