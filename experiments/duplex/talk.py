"""What a dialogue is made with: two streams, what lies on them, and the record of it.

A stream is 16 kHz. The user's sounds begin anywhere; the assistant's words begin with a frame of
80 ms. Times are samples from the start of the dialogue until they are written, then seconds.

Shapes: T samples.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np

from experiments.digits.voices import LANGUAGES
from experiments.duplex import phrases, recordings, sounds
from experiments.duplex.recordings import FRAME, RATE
from omnijax.tokenizers import clips

REACTION = 0.17  # s; who is interrupted stops at the first frame that begins this long after
# Some stop a few frames later: what was missed can be made up for.
LATE, LATE_FRAMES = 0.15, 3
LEAST = 2  # frames of a word that are said, or the word isn't begun
_FADE = RATE // 100


def ceil_frame(sample: int) -> int:
  """The first frame that begins at a sample or after it."""
  return -(-sample // FRAME)


@dataclasses.dataclass(frozen=True)
class Asker:
  """A user: a voice in a language, how loud (dB), and the seed of a disguise, None for none."""

  language: str
  voice: str
  level: float
  disguise: int | None


@dataclasses.dataclass
class Word:
  """A word of the assistant: its first frame, what it is, and the frame that it is cut at."""

  frame: int
  language: str
  digit: int
  stop: int | None = None

  @property
  def wave(self) -> np.ndarray:
    """What is heard of it."""
    wave_T = recordings.assistant()[self.language, self.digit]
    if self.stop is None:
      return wave_T
    room = (self.stop - self.frame) * FRAME
    return wave_T if len(wave_T) <= room else sounds.faded(wave_T[:room], _FADE)

  @property
  def end(self) -> int:
    """The sample after its last."""
    return self.frame * FRAME + len(self.wave)


class Talk:
  """A dialogue in the making; one random generator decides everything.

  Args:
    bank: whose recordings the user speaks with.
    rng: of this dialogue.
    disguised: whether voices are changed into others, as in training.
  """

  def __init__(self, bank: recordings.Bank, rng: np.random.Generator, disguised: bool):
    self.bank, self.rng, self.disguised = bank, rng, disguised
    self.heard: list[tuple[int, np.ndarray]] = []
    self.words: list[Word] = []
    self.events: list[dict[str, Any]] = []
    self.cuts: list[tuple[int, list[dict[str, Any]]]] = []  # (frame, parts) put in there
    self.free = 0  # the user makes no sound from here on

  def mark(self) -> tuple:
    """What `back` needs to forget all that comes after this."""
    return (list(self.heard), list(self.words), copy.deepcopy(self.events), list(self.cuts),
            self.free)

  def back(self, mark: tuple) -> None:
    """As it was."""
    self.heard, self.words, self.events, self.cuts, self.free = mark

  def chance(self, share: float) -> bool:
    """True with that probability."""
    return bool(self.rng.random() < share)

  def between(self, low: float, high: float) -> int:
    """Samples, evenly between so many seconds."""
    return int(self.rng.uniform(low, high) * RATE)

  def asker(self, language: str, voice: str | None = None, asks: bool = False) -> Asker:
    """Somebody who speaks a language: that voice if it does, else any.

    asks: one who has the carriers.
    """
    kinds = self.bank.voices[language]
    if voice is None or (language, voice) not in self.bank.digits:
      # Kinds of voice by the square root of their number: neither drowned nor worn out.
      names = [k for k in kinds if not asks or k != "person"]
      weights = np.sqrt([len(kinds[k]) for k in names])
      while True:
        kind = names[self.rng.choice(len(names), p=weights / weights.sum())]
        voice = kinds[kind][self.rng.integers(len(kinds[kind]))]
        if not asks or self.bank.asks(language, voice):
          break
    disguise = None
    if self.disguised and self.chance(0.75):
      disguise = int(self.rng.integers(2**31))
    return Asker(language, voice, self.rng.uniform(-10, 6) if self.disguised else 0.0, disguise)

  def sound(self, who: Asker, wave_T: np.ndarray, level: float = 0.0) -> np.ndarray:
    """A recording as that user says it, so many dB louder."""
    if who.disguise is not None:
      loud = sounds.rms(wave_T)
      wave_T = clips.disguise(wave_T, np.random.default_rng(who.disguise)).astype(np.float32)
      wave_T = wave_T * (loud / sounds.rms(wave_T))
    return wave_T * sounds.decibels(who.level + level)

  def put(self, event: str, start: int, wave_T: np.ndarray, **about: Any) -> int:
    """The user sounds; returns the end."""
    self.heard.append((start, wave_T))
    end = start + len(wave_T)
    self.free = max(self.free, end)
    self.note(event, start, end, **about)
    return end

  def note(self, event: str, start: int, end: int, **about: Any) -> dict[str, Any]:
    """Records what happens from one sample to another."""
    self.events.append({"event": event, "start": start, "end": end, **about})
    return self.events[-1]

  def phrase(self, who: Asker, use: str) -> np.ndarray:
    """A hesitation or back-channel of a user, by another who has one if this one hasn't."""
    said = self.bank.said
    voice = who.voice
    if (who.language, voice, use) not in said:
      others = self.bank.others[who.language, use]
      voice = others[self.rng.integers(len(others))]
    some = said[who.language, voice, use]
    return some[sorted(some)[self.rng.integers(len(some))]]

  def question(self, start: int, who: Asker, op: str, digit: int, *, pause: int,
               hesitates: bool = False, noisy: bool = False, restarts: bool = False
               ) -> dict[str, Any]:
    """Somebody asks; returns the event.

    Args:
      start: sample at which it begins.
      who: asks.
      op: one of phrases.OPS or BARE.
      digit: asked about.
      pause: samples between carrier and digit, made longer if a hesitation doesn't fit.
      hesitates: whether there is one.
      noisy: whether a noise comes in the pause.
      restarts: whether the carrier is begun twice.
    """
    bank, rng, at = self.bank, self.rng, start
    if op != phrases.BARE:
      carrier_T = self.sound(who, bank.said[who.language, who.voice, "carrier"][op])
      if restarts:
        part_T = sounds.faded(carrier_T[: int(len(carrier_T) * rng.uniform(0.35, 0.7))], 400)
        self.heard.append((at, part_T))
        at += len(part_T) + self.between(0.1, 0.6)
      self.heard.append((at, carrier_T))
      at += len(carrier_T)
      inside_T = self.sound(who, self.phrase(who, "hesitation"), rng.uniform(-6, 0)) \
        if hesitates else None
      if inside_T is None and noisy:
        inside_T = self.burst(who)
      if inside_T is not None:
        pause = max(pause, len(inside_T) + int(0.2 * RATE))
        late = int(rng.integers(int(0.05 * RATE), pause - len(inside_T) - int(0.05 * RATE)))
        self.put("hesitation" if hesitates else "noise", at + late, inside_T)
      if pause >= 0.3 * RATE:
        self.note("pause", at, at + pause)
      at += pause
    takes = bank.digits[who.language, who.voice][digit]
    digit_T = self.sound(who, takes[rng.integers(len(takes))])
    self.heard.append((at, digit_T))
    self.free = at + len(digit_T)
    answer = [recordings.word(who.language, d) for d in phrases.answer(op, digit)]
    return self.note("question", start, self.free, language=who.language, voice=who.voice,
                     kind=bank.kinds[who.voice], op=op, digit=digit, answer=answer)

  def burst(self, who: Asker) -> np.ndarray:
    """A noise about as loud as a user."""
    kind = sounds.BURSTS[self.rng.integers(len(sounds.BURSTS))]
    level = -25 + who.level + self.rng.uniform(-12, 4)
    wave_T = sounds.burst(self.rng, kind) * sounds.decibels(level)
    return wave_T * min(1.0, 0.9 / float(np.abs(wave_T).max()))  # clicks are all peak

  def backchannel(self, who: Asker) -> np.ndarray:
    """A sign of attention, softer than the user's questions.

    A voice says few: in training it is often somebody else's, mostly in another disguise, and at
    times a hesitation or a murmur, lest it be known by those few.
    """
    use = "backchannel"
    if self.disguised:
      other = self.asker(str(self.rng.choice(LANGUAGES))) if self.chance(0.5) else who
      disguise = int(self.rng.integers(2**31)) if self.chance(0.75) else None
      who = dataclasses.replace(other, level=who.level, disguise=disguise)
      use = str(self.rng.choice(["backchannel", "hesitation", "murmur"], p=[0.5, 0.25, 0.25]))
    wave_T = self._murmur(who) if use == "murmur" else self.phrase(who, use)
    return self.sound(who, wave_T, self.rng.uniform(-12, -3))

  def _murmur(self, who: Asker) -> np.ndarray:
    """A sound of somebody's voice that is no word: a piece of a digit's later part, either way."""
    takes = self.bank.digits[who.language, who.voice][int(self.rng.integers(10))]
    wave_T = takes[self.rng.integers(len(takes))]
    first = int(len(wave_T) * self.rng.uniform(0.25, 0.5))
    piece_T = wave_T[first : first + self.between(0.15, 0.5)]
    fade = len(piece_T) // 8
    back_T = sounds.faded(sounds.faded(piece_T, fade)[::-1], fade)
    return back_T if self.chance(0.5) else back_T[::-1]

  def answer(self, frame: int, language: str, digits: tuple[int, ...], event: dict[str, Any]
             ) -> int:
    """The assistant says digits from a frame on, a frame and a bit between them.

    Returns the sample at which it ends; the event gets the times.
    """
    event["answer_start"] = frame * FRAME
    event["said"] = len(digits)
    return self._say(frame, [Word(frame, language, digit) for digit in digits], event)

  def _say(self, frame: int, words: list[Word], event: dict[str, Any]) -> int:
    for word in words:
      word.frame = frame
      frame = ceil_frame(word.end) + 1
    self.words += words
    event["answer_end"] = words[-1].end
    return words[-1].end

  def hold(self, onset: int, end: int, event: dict[str, Any]) -> None:
    """Who takes a sound of the user for an interruption stops, and goes on when it is over.

    With the word after the one that was cut. So it is learnt that a mistake can be made up for.
    Sounds that are over before are let pass, and so is an answer that is nearly over.
    """
    stop, first = ceil_frame(onset + int(REACTION * RATE)), event["answer_start"] // FRAME
    speaks = any(first <= w.frame <= stop - LEAST and w.end > stop * FRAME for w in self.words)
    if speaks and stop * FRAME < end and stop - self.words[-1].frame < LEAST:
      on = ceil_frame(end) + 1
      self._say(on, self._cut(stop, first), event)
      self.note("held", stop * FRAME, on * FRAME)

  def _cut(self, stop: int, first: int) -> list[Word]:
    """Ends the answer that begins at frame `first` at another; returns the words not begun."""
    rest = [w for w in self.words if w.frame >= first and stop - w.frame < LEAST]
    self.words = self.words[: len(self.words) - len(rest)]
    for word in self.words:
      if word.frame >= first and word.stop is None:
        word.stop = stop
    return rest

  def interrupt(self, onset: int, event: dict[str, Any]) -> int:
    """Cuts the answer of an event short because the user speaks; returns the frame it stops at."""
    late = int(self.rng.integers(1, LATE_FRAMES + 1)) if self.chance(LATE) else 0
    stop = ceil_frame(onset + int(REACTION * RATE)) + late
    first = event["answer_start"] // FRAME
    self._cut(stop, first)
    event["said"] = sum(w.frame >= first for w in self.words)
    event["answer_end"] = self.words[-1].end
    event["stop"] = stop * FRAME
    return stop
