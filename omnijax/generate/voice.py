"""One side of a dialogue: what a row has said and heard, frame by frame, and what it must forget.

At every frame the row takes the position whose sound is just being played, with the codes of what
was heard meanwhile, and writes the next one. So what is heard bears on what is said one frame
later; the codec's delay and, where acoustic codes lag, theirs come on top.

Q codebooks  G = 2Q
"""

import collections
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from omnijax import vocab as vocab_lib
from omnijax.data.documents import Streams
from omnijax.generate.grammar import Layout
from omnijax.generate.writing import Frames, Words

_QUIET = 6  # frames for which it is silent at least, when it was told to be
_APART = 12  # frames without a word, after which the next one begins a new utterance


class Position(NamedTuple):
  """A position of the dialogue as it lies in the stream."""

  tick: int  # the frame after which it was written; -1 and less before anything was heard
  number: int
  main: int
  codes_Q: np.ndarray  # that it says
  heard_Q: np.ndarray


class Again(NamedTuple):
  """How a row is to read again what it was: the length it goes back to, and what follows."""

  length: int
  streams: Streams  # the last position is the one before which the row stands


class Voice:
  """The state of a dialogue outside of the model.

  Args:
    layout: vocabulary and delays.
    text: the text tokenizer.
    silence_Q: codes of silence.
    kept: positions that are remembered, at most.
  """

  def __init__(self, layout: Layout, text: Any, silence_Q: np.ndarray, kept: int):
    self.layout, self._silence_Q = layout, silence_Q
    self._nothing_Q = np.full(layout.vocab.codebooks, layout.vocab.no_code, np.int32)
    self._log = collections.deque[Position](maxlen=kept)
    self._length = 0  # positions in the row's cache
    self._next: Position | None = None  # before which the row stands, if it is of the dialogue
    self._number = 0  # of that position, whatever it is
    self._ticks = 0  # frames heard
    self._frames = Frames(layout)
    self._heard = collections.deque[np.ndarray](maxlen=layout.acoustic_delay + 1)
    self._words, self._gap, self._spoke = Words(text), 0, False
    self._quiet = 0  # frames for which it must be silent; less than 0 is until it hears something
    self.waits = 0  # steps that it takes before the next frame can be heard

  def opening(self, start: Streams) -> Streams:
    """What the row reads first: the beginning of a document in which it is the assistant's turn."""
    return self._speech(start, len(start.main) - 1)

  def insertion(self, said: Streams, after: np.ndarray) -> Streams:
    """What the row reads in the middle, in place of the position before which it stands.

    Args:
      said: a document of turns, at whose end it is the assistant's.
      after: codes [Q] of the position that is replaced: those that lag still belong to the sound,
        as do those of what was heard last.
    """
    lag = self.layout.acoustic_delay
    heard = self._heard[-1] if self._heard else self._nothing_Q
    late_G = np.concatenate([self._nothing_Q[:1], after[1:], self._nothing_Q[:1], heard[1:]])
    end = Streams(
      np.array([vocab_lib.AUDIO_END], np.int32),
      np.array([vocab_lib.AUDIO if lag else vocab_lib.TEXT], np.int8),
      np.full((1, 3), self._number, np.int32), np.zeros(1, np.float32),
      np.zeros(1 if lag else 0, np.int32),
      late_G[None][: 1 if lag else 0],
      np.zeros((1 if lag else 0, len(after)), np.float32))
    rest = dataclasses.replace(  # without BOS, counted on
      said, main=said.main[1:], modality=said.modality[1:],
      position=said.position[1:] + self._number, weight=said.weight[1:],
      frame_at=said.frame_at - 1)
    return self._speech(_joined(end, rest), self._length + len(rest.main))

  def _speech(self, streams: Streams, length: int) -> Streams:
    """The same with SPEAK at its end, before which the row will stand."""
    n = len(streams.main) - 1
    last = streams.position[n]
    out = dataclasses.replace(
      streams, main=np.insert(streams.main, n, vocab_lib.SPEAK),
      modality=np.insert(streams.modality, n, vocab_lib.TEXT),
      position=np.concatenate([streams.position, last[None] + 1]),
      weight=np.insert(streams.weight, n, 0.0))
    self._log.clear()
    self._frames, self._next = Frames(self.layout), None
    self._heard.clear()
    self._length, self._number = length + 1, int(last[0])
    self.waits = 1 + self.layout.text_delay
    return out

  def hears(self, codes_Q: np.ndarray, loud: bool) -> np.ndarray:
    """Codes [Q] for the position before which the row stands, from those of the next frame heard.

    loud: whether there is something to be heard in it.
    """
    self._heard.append(np.asarray(codes_Q, np.int32))
    if self._quiet < 0 and loud:
      self._quiet = 0
    lags = len(self._heard) > self.layout.acoustic_delay
    late_Q = self._heard[0] if lags else self._nothing_Q
    return np.concatenate([self._heard[-1][:1], late_Q[1:]])

  @property
  def quiet(self) -> bool:
    """Whether it may say nothing now."""
    return self._quiet != 0

  def hush(self) -> None:
    """It says nothing more until it hears something."""
    self._quiet = _QUIET

  def take(self, main: int, codes_Q: np.ndarray, heard_Q: np.ndarray | None
           ) -> tuple[np.ndarray | None, str]:
    """Notes the position that was written after the one before it was taken.

    Args:
      main, codes_Q: the new position.
      heard_Q: what `hears` gave for the one before; None where the row was to wait.

    Returns:
      codes [Q] of the frame of sound that is whole now, if one is; and words that begin.
    """
    if self._next is not None:
      heard = self._nothing_Q if heard_Q is None else heard_Q
      self._log.append(self._next._replace(heard_Q=heard))
    self._length += self._next is not None
    self._number += 1
    waited, self.waits = self.waits > 0, max(self.waits - 1, 0)
    # Waiting positions lie before the first frame, one for each frame of delay.
    tick = self._ticks - 1 - self.waits if waited else self._ticks
    self._next = Position(tick, self._number, main, np.asarray(codes_Q, np.int32), self._nothing_Q)
    whole_Q = self._frames.take(self._next.codes_Q)
    text = self._word(main)
    if not waited:
      self._ticks += 1
      self._quiet = -1 if self._quiet == 1 else max(self._quiet - 1, -1) if self._quiet else 0
    return whole_Q, text

  def _word(self, main: int) -> str:
    """Characters of a piece of a word; between words lies time, and a space where none is written.
    """
    piece = main - self.layout.vocab.text_start
    if piece < 0:
      self._gap += 1
      self._spoke &= self._gap < _APART
      return self._words.rest() if self._gap == 1 else ""
    delta = self._words.take(piece)
    if self._gap and self._spoke and delta and not delta[0].isspace():
      delta = f" {delta}"
    self._gap, self._spoke = 0, self._spoke or bool(delta)
    return delta

  def forget(self, frame: int) -> Again | None:
    """Makes silence of the sound from a frame on, which the other side never heard.

    What was heard stays. What lies before the newest insertion can't be changed.

    Args:
      frame: number of the first frame, as they came.

    Returns:
      What the row is to do about it; None if nothing of what is forgotten was more than silence.
    """
    if self._next is None:
      return None
    lead, lag = self.layout.text_delay, self.layout.acoustic_delay
    no_code, log = self.layout.vocab.no_code, [*self._log, self._next]

    def silent(p: Position) -> Position:
      unheard = np.arange(len(p.codes_Q)) > 0  # acoustic codes
      unheard = np.where(unheard, p.tick >= frame, p.tick + lag >= frame)
      codes_Q = np.where(unheard & (p.codes_Q != no_code), self._silence_Q, p.codes_Q)
      main = vocab_lib.PAD if p.tick + lead + lag >= frame else p.main
      return p._replace(main=main, codes_Q=codes_Q.astype(np.int32))

    new = [silent(p) for p in log]
    changed = [i for i, (a, b) in enumerate(zip(log, new, strict=True))
               if a.main != b.main or (a.codes_Q != b.codes_Q).any()]
    if not changed:
      return None
    first = changed[0]
    self._log.clear()
    self._log.extend(new[:-1])
    self._next = new[-1]
    return Again(self._length - len(self._log) + first, self._streams(new[first:]))

  def _streams(self, positions: list[Position]) -> Streams:
    """Positions of the dialogue as a stream, with an end behind them."""
    n, Q = len(positions), len(self._nothing_Q)
    main = np.array([*[p.main for p in positions], vocab_lib.EOS], np.int32)
    number = np.array([*[p.number for p in positions], positions[-1].number + 1], np.int32)
    frames = np.stack([np.concatenate([p.codes_Q, p.heard_Q]) for p in positions])
    modality = np.where(np.arange(n + 1) < n, vocab_lib.AUDIO, vocab_lib.TEXT).astype(np.int8)
    return Streams(main, modality, np.repeat(number[:, None], 3, 1), np.zeros(n + 1, np.float32),
                   np.arange(n, dtype=np.int32), frames, np.zeros((n, Q), np.float32))


def _joined(a: Streams, b: Streams) -> Streams:
  """One stream after the other."""
  cat = lambda name: np.concatenate([getattr(a, name), getattr(b, name)])
  whole = {f.name: cat(f.name) for f in dataclasses.fields(Streams)}
  whole["frame_at"] = np.concatenate([a.frame_at, b.frame_at + len(a.main)])
  return Streams(**whole)
