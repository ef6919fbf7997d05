"""Spoken dialogues with interruptions: dialogue i of a split is a pure function of (seed, i).

A user asks about digits and the assistant says the answer, as soon as the question has ended. Who
is counting stops when a new question comes, and goes on through back-channels and noises, at times
after having stopped until they were over. Some dialogues are interrupted by what is typed or shown
instead.

Shapes: T samples at 16 kHz.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from experiments.digits import unpack
from experiments.digits.voices import LANGUAGES
from experiments.duplex import phrases, recordings, sounds, talk
from experiments.duplex.recordings import FRAME, RATE
from experiments.duplex.talk import Asker, Talk

SPLITS = ("train", "heldout")
MOST_FRAMES = 600  # 48 s
LEAST_FRAMES = 500
PARTED_FRAMES = 528  # with room for what is typed and shown: some 95 positions at most
PARTED = 0.15  # of the dialogues
INTERRUPTED, ACKNOWLEDGED, DISTURBED = 0.60, 0.70, 0.25  # of counts, counts, answers
HELD = 0.2  # of the back-channels and noises in a count
OPS = {"after": 0.19, "before": 0.19, "count": 0.45, "bare": 0.17}


@dataclasses.dataclass(frozen=True)
class Dialogue:
  """Two streams of equal length, in whole frames, and what is in them.

  words: of the assistant; cuts: (frame, parts) that come in between, pictures as pixels [32, 32];
  events: as `Talk` notes them, in samples.
  """

  user_T: np.ndarray
  assistant_T: np.ndarray
  words: list[talk.Word]
  cuts: list[tuple[int, list[dict[str, Any]]]]
  events: list[dict[str, Any]]


def dialogue(seed: int, split: str, number: int) -> Dialogue:
  """One dialogue of a split, "train" or "heldout"."""
  if split not in SPLITS:
    raise ValueError(f"no split {split!r}; want one of {', '.join(SPLITS)}")
  rng = np.random.default_rng([seed, SPLITS.index(split), number])
  told = Talk(recordings.load(split), rng, disguised=split == "train")
  frames = _Script(told, split, parted=told.chance(PARTED)).run()
  return render(told, frames)


class _Script:
  """Decides what happens next."""

  def __init__(self, told: Talk, split: str, parted: bool):
    self.talk, self.rng, self.split, self.parted = told, told.rng, split, parted
    self.limit = PARTED_FRAMES if parted else MOST_FRAMES
    self.polyglot = told.chance(0.4)
    self.same_disguise = told.chance(0.5)
    self.who = told.asker(self._language())

  def run(self) -> int:
    """Plays until the time is up; returns the frames."""
    told, end, failed = self.talk, 0, 0
    exchanges = int(self.rng.integers(1, 3))  # until something is typed or shown
    wanted = int(self.rng.integers(2, 5)) if self.parted else 0
    while failed < 6 and not (self.parted and len(told.cuts) == wanted and exchanges <= 0):
      mark = told.mark()
      if self.parted and exchanges <= 0:
        end_now = self._injected(end)
        exchanges = int(self.rng.integers(1, 3))
      else:
        end_now = self._exchanges(self._gap(end))
        exchanges -= 1
      if talk.ceil_frame(max(end_now, told.free) + RATE) > self.limit:
        told.back(mark)
        failed += 1
        if self.parted and len(told.cuts) >= 2:
          break
      else:
        end = end_now
    frames = talk.ceil_frame(max(end, told.free) + told.between(0.5, 1.0))
    return frames if self.parted else max(frames, LEAST_FRAMES)

  def _language(self) -> str:
    return LANGUAGES[self.rng.integers(len(LANGUAGES))]

  def _next_asker(self, changing: float) -> Asker:
    """Mostly the same user; at times in another language, at times somebody else."""
    told, who = self.talk, self.who
    if told.chance(changing):
      self.who = told.asker(who.language)
    elif self.polyglot and told.chance(0.35):
      other = told.asker(self._language(), who.voice)
      same = other.voice == who.voice
      self.who = dataclasses.replace(other, level=who.level, disguise=who.disguise if same
                                     else other.disguise)
    asker = dataclasses.replace(self.who, level=self.who.level + self.rng.normal(0, 1.0))
    if not self.same_disguise and asker.disguise is not None:
      asker = dataclasses.replace(asker, disguise=int(self.rng.integers(2**31)))
    return asker

  def _gap(self, end: int) -> int:
    """Silence after an answer, at times with something in it that calls for no reaction."""
    told = self.talk
    at = max(end, told.free)
    if not end:
      return told.between(0.5, 2.0)
    if told.chance(0.15):
      at = told.put("backchannel", at + told.between(0.1, 1.0), told.backchannel(self.who))
    if told.chance(0.15):
      at = told.put("noise", at + told.between(0.1, 1.0), told.burst(self.who))
    return at + (told.between(3, 6) if told.chance(0.08) else
                 told.between(0.4, 3.0 if told.chance(0.3) else 1.4))

  def _ask(self, start: int, changing: float, *, interrupts: bool = False) -> dict[str, Any]:
    """A question; one that interrupts isn't a bare digit, which might be a back-channel."""
    told, rng = self.talk, self.rng
    who = self._next_asker(changing)
    if interrupts and not told.bank.asks(who.language, who.voice):
      other = told.asker(who.language, asks=True)
      self.who = who = dataclasses.replace(other, level=who.level)
    op = list(OPS)[rng.choice(len(OPS), p=list(OPS.values()))]
    while interrupts and op == phrases.BARE:
      op = list(OPS)[rng.choice(len(OPS), p=list(OPS.values()))]
    if not told.bank.asks(who.language, who.voice):
      op = phrases.BARE
    pause = rng.random()
    length = told.between(0.02, 0.15) if pause < 0.5 else \
      told.between(0.3, 1.6) if pause < 0.93 else told.between(1.6, 3.0)
    paused = pause >= 0.5
    return told.question(start, who, op, int(rng.integers(10)), pause=length,
                         hesitates=paused and told.chance(0.45), noisy=paused and told.chance(0.15),
                         restarts=told.chance(0.06))

  def _exchanges(self, start: int) -> int:
    """A question and its answer, and those that interrupt; returns the end of the last."""
    event = self._ask(start, 0.08)
    return self._answered(event, talk.ceil_frame(event["end"]))

  def _answered(self, event: dict[str, Any], frame: int) -> int:
    """The answer to an event from a frame on, and what happens during it."""
    told = self.talk
    digits = phrases.answer(event["op"], event["digit"])
    end = told.answer(frame, event["language"], digits, event)
    onset = None
    if event["op"] == "count" and told.chance(INTERRUPTED):
      onset = int(self.rng.integers((frame + 3) * FRAME, end - int(0.2 * RATE)))
    while event["op"] == "count" and told.chance(ACKNOWLEDGED):
      self._aside("backchannel", told.backchannel(self.who), event, onset)
    if told.chance(DISTURBED):
      self._aside("noise", told.burst(self.who), event, onset)
    if onset is None:
      return event["answer_end"]
    stop = told.interrupt(onset, event)
    asked = self._ask(onset, 0.12, interrupts=True)
    told.note("interruption", onset, asked["end"], stop=stop * FRAME)
    return self._answered(asked, talk.ceil_frame(asked["end"]))

  def _aside(self, kind: str, wave_T: np.ndarray, event: dict[str, Any], onset: int | None) -> None:
    """The user sounds during the answer to an event, if there is room before what interrupts it."""
    told = self.talk
    low = max(event["answer_start"], told.free + int(0.15 * RATE))
    high = event["answer_end"] if onset is None else onset - len(wave_T) - int(0.15 * RATE)
    if low < high:
      start = int(self.rng.integers(low, high))
      end = told.put(kind, start, wave_T)
      if told.chance(HELD):
        told.hold(start, end, event)

  def _injected(self, end: int) -> int:
    """Something is typed or shown; the assistant answers a frame into the part that follows."""
    told, rng = self.talk, self.rng
    last = told.cuts[-1][0] if told.cuts else 0
    at = talk.ceil_frame(max(end, told.free) + told.between(0.4, 1.5))
    at = max(at, last + int(rng.integers(38, 60)))
    language, digit = self._language(), int(rng.integers(10))
    if told.chance(0.5):
      parts: list[dict[str, Any]] = [{"text": language, "role": "user"},
                                     {"image": _picture(rng, self.split, digit), "role": "user"}]
      event, op, digits = "picture", "name", (digit,)
    else:
      op = list(OPS)[rng.choice(len(OPS), p=list(OPS.values()))]
      parts = [{"text": typed(language, op, digit), "role": "user"}]
      event, digits = "typed", phrases.answer(op, digit)
    told.cuts.append((at, parts))
    about = told.note(event, at * FRAME, at * FRAME, language=language, op=op, digit=digit,
                      answer=[recordings.word(language, d) for d in digits])
    if op == "name":
      return told.answer(at + 1, language, digits, about)
    return self._answered(about, at + 1)


def typed(language: str, op: str, digit: int) -> str:
  """A question in writing."""
  word = recordings.word(language, digit)
  if op == phrases.BARE:
    return word
  carrier = phrases.CARRIERS[language][op].text.replace("\u0301", "")
  return f"{carrier} {word}" + ("" if op == "count" else "?")


@functools.cache
def _pictures(split: str) -> tuple[np.ndarray, np.ndarray]:
  return unpack.images(split)


def _picture(rng: np.random.Generator, split: str, digit: int) -> np.ndarray:
  pixels, digits = _pictures(split)
  some = np.flatnonzero(digits == digit)
  take = int(rng.integers(3)) if split == "train" else 0
  return unpack.turned(pixels[some[rng.integers(len(some))]], take)


def render(told: Talk, frames: int, *, quiet: float = 0.5, echoes: float = 0.5) -> Dialogue:
  """The streams of a talk, so many frames.

  quiet, echoes: shares of dialogues without background, and with the assistant heard by itself.
  """
  samples, rng = frames * FRAME, told.rng
  user_T, assistant_T = np.zeros(samples, np.float32), np.zeros(samples, np.float32)
  speech = [wave_T for _, wave_T in told.heard]
  for start, wave_T in told.heard:
    user_T[start : start + len(wave_T)] += wave_T
  for word in told.words:
    assistant_T[word.frame * FRAME : word.end] += word.wave
  if not told.chance(quiet):
    level = float(np.median([sounds.rms(wave_T) for wave_T in speech]))
    user_T += background(rng, samples) * level * sounds.decibels(-rng.uniform(15, 40))
  if told.chance(echoes):
    user_T += sounds.echo(rng, assistant_T)
  user_T *= min(1.0, 0.98 / max(float(np.abs(user_T).max()), 1e-6))
  return Dialogue(user_T, assistant_T, told.words, told.cuts,
                  sorted(told.events, key=lambda event: event["start"]))


def background(rng: np.random.Generator, samples: int) -> np.ndarray:
  """What is heard all the time, RMS 1."""
  kind = rng.choice(["babble", *sounds.COLOURS])
  return sounds.babble(rng, _chatter(), samples) if kind == "babble" else \
    sounds.noise(rng, kind, samples)


@functools.cache
def _chatter() -> list[np.ndarray]:
  """What others say in the background, in either split: voices that are trained on."""
  said = recordings.load("train").digits.values()
  return [wave_T for digits in said for takes in digits.values() for wave_T in takes]
