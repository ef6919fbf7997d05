"""All recordings that the dialogues are made of, by language and voice."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib

import numpy as np
import soundfile
import soxr

from experiments.digits import unpack
from experiments.digits.voices import LANGUAGES, WORDS
from experiments.duplex import phrases

DATA = pathlib.Path(__file__).parent / "data"
RATE = unpack.RATE
FRAME = 1280  # samples, 80 ms

# Of all training voices the one whose ten digits the packaged judge of speech hears best after the
# packaged codec with four codebooks; where one voice is good in several languages, that one.
ASSISTANT = {"en": "kokoro-bm_fable", "es": "kokoro-zm_yunjian", "fr": "kokoro-pm_alex",
             "it": "kokoro-pm_alex", "ru": "kokoro-pm_alex"}


@dataclasses.dataclass(frozen=True)
class Bank:
  """The recordings of a split: waves float32 at 16 kHz.

  digits: (language, voice) to {digit: [takes]}; said: (language, voice, use) to {phrase: wave}, use
  one of "carrier", "hesitation", "backchannel"; kinds: of each voice.
  """

  digits: dict[tuple[str, str], dict[int, list[np.ndarray]]]
  said: dict[tuple[str, str, str], dict[str, np.ndarray]]
  kinds: dict[str, str]

  def asks(self, language: str, voice: str) -> bool:
    """Whether a voice has all the carriers; people have none."""
    return len(self.said.get((language, voice, "carrier"), ())) == len(phrases.OPS)

  @functools.cached_property
  def voices(self) -> dict[str, dict[str, list[str]]]:
    """For each language, the voices of each kind that can ask for every digit."""
    found: dict[str, dict[str, list[str]]] = {language: {} for language in LANGUAGES}
    for (language, voice), digits in sorted(self.digits.items()):
      if len(digits) == 10:
        found[language].setdefault(self.kinds[voice], []).append(voice)
    return found

  @functools.cached_property
  def others(self) -> dict[tuple[str, str], list[str]]:
    """For (language, use), the voices that have such a phrase."""
    found: dict[tuple[str, str], list[str]] = {}
    for language, voice, use in sorted(self.said):
      found.setdefault((language, use), []).append(voice)
    return found


@functools.cache
def load(split: str) -> Bank:
  """The recordings of "train" or "heldout", without the assistant's own voice in its language."""
  digits: dict[tuple[str, str], dict[int, list[np.ndarray]]] = {}
  said: dict[tuple[str, str, str], dict[str, np.ndarray]] = {}
  kinds = {}
  for entry, wave_T in unpack.speech(split):
    language, voice = entry["language"], entry["voice"]
    if voice != ASSISTANT[language]:
      digits.setdefault((language, voice), {}).setdefault(entry["digit"], []).append(wave_T)
      kinds[voice] = entry["kind"]
  sheets: dict[str, np.ndarray] = {}
  for line in (DATA / "index.jsonl").read_text("utf-8").splitlines():
    entry = json.loads(line)
    language, voice, file = entry["language"], entry["voice"], entry["file"]
    if entry["split"] == split and voice != ASSISTANT[language]:
      if file not in sheets:
        sheets[file] = _read(DATA / file)
      wave_T = sheets[file][entry["start"] : entry["start"] + entry["samples"]]
      said.setdefault((language, voice, entry["use"]), {})[entry["phrase"]] = wave_T
  return Bank(digits, said, kinds)


def _read(path: pathlib.Path) -> np.ndarray:
  wave_T, rate = soundfile.read(path, dtype="float32")
  return wave_T if rate == RATE else soxr.resample(wave_T, rate, RATE)


@functools.cache
def assistant() -> dict[tuple[str, int], np.ndarray]:
  """What the model says for (language, digit): its sound begins at once."""
  wanted = set(ASSISTANT.items())
  return {(e["language"], e["digit"]): _begun(wave_T) for e, wave_T in unpack.speech("train")
          if (e["language"], e["voice"]) in wanted}


def _begun(wave_T: np.ndarray) -> np.ndarray:
  """Without what lies 30 dB under the loudest 5 ms before and after the word."""
  block = RATE // 200
  power = np.square(wave_T[: len(wave_T) // block * block].reshape(-1, block)).mean(1)
  loud = np.flatnonzero(power > power.max() * 1e-3)
  wave_T = wave_T[loud[0] * block : (loud[-1] + 1) * block].copy()
  rise, fall = RATE // 333, RATE // 100
  wave_T[:rise] *= np.arange(1, rise + 1) / rise
  wave_T[-fall:] *= np.arange(fall, 0, -1) / fall
  return wave_T


def word(language: str, digit: int) -> str:
  """How a digit is written."""
  return WORDS[language][digit]
