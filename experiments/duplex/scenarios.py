"""What a live model is tested with: the user's side alone, by voices that are never trained on.

Each kind asks one thing of the model: to answer; to wait while somebody thinks; to stop and answer
when interrupted; to go on when it isn't. The voices take turns, so that all of them are heard.

Shapes: T samples at 16 kHz.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from experiments.digits.voices import LANGUAGES
from experiments.duplex import dialogues, phrases, recordings, sounds, talk
from experiments.duplex.recordings import FRAME, RATE
from experiments.duplex.talk import Asker, Talk

KINDS = ("answer", "pause", "interruption", "backchannel", "noise")
AFTER = (1.0, 2.2)  # s after a count question has ended: the answer is about a word or three in
_LOW = 5  # counts from digits under this take three seconds or more
_ROOM, _ROOM_OF_COUNT = 3.5, 6.5  # s after the last question


@dataclasses.dataclass(frozen=True)
class Scenario:
  """The user's stream, its events in samples, and the background's dB under the speech, or None."""

  user_T: np.ndarray
  events: list[dict[str, Any]]
  background: float | None


def scenario(seed: int, kind: str, number: int) -> Scenario:
  """Scenario `number` of a kind."""
  if kind not in KINDS:
    raise ValueError(f"no scenario {kind!r}; want one of {', '.join(KINDS)}")
  rng = np.random.default_rng([seed, 2, KINDS.index(kind), number])
  told = Talk(recordings.load("heldout"), rng, disguised=False)
  who = _turn(told.bank, number, asks=kind != "answer")
  last = _PLAYS[kind](told, who)
  room = _ROOM_OF_COUNT if last["op"] == "count" else _ROOM
  frames = talk.ceil_frame(max(last["end"], told.free) + int(room * RATE))
  user_T = np.zeros(max(frames, int(8 * RATE / FRAME)) * FRAME, np.float32)
  for start, wave_T in told.heard:
    user_T[start : start + len(wave_T)] += wave_T
  under = float(rng.uniform(20, 40)) if number % 2 else None
  if under is not None:
    level = float(np.median([sounds.rms(wave_T) for _, wave_T in told.heard]))
    user_T += dialogues.background(rng, len(user_T)) * level * sounds.decibels(-under)
  user_T *= min(1.0, 0.98 / float(np.abs(user_T).max()))
  events = sorted(told.events, key=lambda event: event["start"])
  return Scenario(user_T, events, under if under is None else round(under, 1))


def _turn(bank: recordings.Bank, number: int, asks: bool) -> Asker:
  """The voice whose turn it is, languages taking turns too."""
  language = LANGUAGES[number % len(LANGUAGES)]
  names = [v for some in bank.voices[language].values() for v in some
           if bank.asks(language, v) or not asks]
  return Asker(language, names[number // len(LANGUAGES) % len(names)], 0.0, None)


def _ask(told: Talk, start: int, who: Asker, op: str, digit: int | None = None,
         pause: int | None = None, hesitates: bool = False) -> dict[str, Any]:
  digit = int(told.rng.integers(10)) if digit is None else digit
  pause = told.between(0.03, 0.12) if pause is None else pause
  return told.question(start, who, op, digit, pause=pause, hesitates=hesitates)


def _answer(told: Talk, who: Asker) -> dict[str, Any]:
  ops = (*phrases.OPS, phrases.BARE)
  op = ops[told.rng.integers(len(ops))] if told.bank.asks(who.language, who.voice) else phrases.BARE
  return _ask(told, told.between(0.5, 2), who, op)


def _pause(told: Talk, who: Asker) -> dict[str, Any]:
  op = phrases.OPS[told.rng.integers(len(phrases.OPS))]
  return _ask(told, told.between(0.5, 2), who, op, pause=told.between(0.6, 1.6),
              hesitates=told.chance(0.5))


def _count(told: Talk, who: Asker) -> dict[str, Any]:
  return _ask(told, told.between(0.5, 2), who, "count", int(told.rng.integers(_LOW)))


def _interruption(told: Talk, who: Asker) -> dict[str, Any]:
  first = _count(told, who)
  onset = first["end"] + told.between(*AFTER)
  # Not a bare digit: said into a count, that is no more a question than a back-channel is.
  asked = _ask(told, onset, who, ("after", "before")[told.rng.integers(2)])
  told.note("interruption", onset, asked["end"])
  return asked


def _backchannel(told: Talk, who: Asker) -> dict[str, Any]:
  first = _count(told, who)
  told.put("backchannel", first["end"] + told.between(*AFTER), told.backchannel(who))
  return first


def _noise(told: Talk, who: Asker) -> dict[str, Any]:
  first = _count(told, who)
  told.put("noise", first["end"] + told.between(*AFTER), told.burst(who))
  return first


_PLAYS = {"answer": _answer, "pause": _pause, "interruption": _interruption,
          "backchannel": _backchannel, "noise": _noise}
