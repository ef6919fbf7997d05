"""Builds experiments/duplex/data: question carriers, hesitations and back-channels.

  python -m experiments.duplex.build --kokoro DIR --cache DIR

By the synthesisers' voices of experiments/digits, whose programs and packages it needs (see
SOURCES.md there). Run once by the makers of the data; users read what it wrote.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
from collections.abc import Callable, Iterator

import numpy as np
import soundfile
from rich.progress import track

from experiments.digits import build, synth, voices
from experiments.duplex import phrases

RATE = build.RATE
KINDS = {
  "carrier": phrases.CARRIERS,
  "hesitation": phrases.HESITATIONS,
  "backchannel": phrases.BACKCHANNELS,
}
BLENDS_STEP = 2  # every second blend speaks: there are nearly as many as voices
Make = Callable[[], tuple[np.ndarray, int]]


def said(language: str) -> Iterator[tuple[str, str, phrases.Phrase]]:
  """Every phrase of a language as (what it is for, its name, the phrase)."""
  for use, table in KINDS.items():
    of_language = table[language]
    named = of_language.items() if isinstance(of_language, dict) else enumerate(of_language)
    for name, phrase in named:
      yield use, str(name), phrase


def entry(language: str, use: str, phrase: str, voice: str, kind: str, split: str, source: str
          ) -> dict:
  """What the index says of a clip, less its place; phrase is the operation or a number."""
  return {"id": f"{language}-{use}-{phrase}-{voice}", "language": language, "use": use,
          "phrase": phrase, "voice": voice, "kind": kind, "split": split, "source": source}


def recordings(kokoro: synth.Kokoro) -> Iterator[tuple[dict, Make]]:
  """Every clip that should exist, as (its index entry, a function that makes the raw wave)."""
  for language in voices.LANGUAGES:
    for use, name, phrase in said(language):
      for make, voice, kind, split, source in _speakers(kokoro, language, use, name, phrase):
        if split == "train" or use != "backchannel" or int(name) < phrases.TESTED_BACKCHANNELS:
          yield entry(language, use, name, voice, kind, split, source), make


def _speakers(kokoro: synth.Kokoro, language: str, use: str, name: str, phrase: phrases.Phrase):
  """(make, voice, kind, split, source) of everyone who says a phrase."""
  text = phrase.text
  varied = lambda *who: synth.fraction("phrase", use, name, language, *who)
  if language == "en":
    for voice, split in voices.FLITE:
      stretch = 0.9 + 0.3 * varied("flite", voice)
      yield (lambda v=voice, s=stretch: synth.flite_text(v, text, s)), f"flite-{voice}", "flite", \
        split, "flite"
  for where, voice, split in voices.FESTIVAL:
    if where == language:
      # Festival's voices read their own alphabet only, without marks of stress.
      plain = text.replace("\u0301", "")
      plain = plain.replace("à", "a'") if language == "it" else plain
      yield (lambda v=voice, p=plain: synth.festival_text(v, p)), f"festival-{voice}", "festival", \
        split, f"festival-{voice}"
  for where, voice, split in voices.PICO:
    if where == language:
      yield (lambda v=voice: synth.pico_text(v, text + ".", 0)), f"pico-{voice}", "pico", split, \
        "pico"
  for split, names in (("train", voices.ESPEAK_TRAIN), ("heldout", voices.ESPEAK_HELDOUT)):
    for voice in names:
      rate = 125 + int(60 * varied("espeak", voice))
      yield (lambda v=voice, r=rate: synth.espeak_text(language, v, text, r)), f"espeak-{voice}", \
        "espeak", split, "espeak-ng"
  for split, table in (("train", voices.KOKORO_TRAIN), ("heldout", voices.KOKORO_HELDOUT)):
    for voice in table[language]:
      speed = 0.9 + 0.25 * varied("kokoro", voice)
      yield (lambda v=voice, s=speed: kokoro.speak(_ending(phrase, use), kokoro.styles(v), s)), \
        f"kokoro-{voice}", "kokoro", split, "kokoro"
  for number in range(0, voices.KOKORO_BLENDS, BLENDS_STEP):
    speed = 0.85 + 0.3 * varied("blend", number)
    yield (lambda n=number, s=speed: kokoro.speak(
      _ending(phrase, use), kokoro.blended(language, n), s)), \
      f"blend-{language}-{number:02d}", "blend", "train", "kokoro"


def _ending(phrase: phrases.Phrase, use: str) -> str:
  """Phonemes with a mark after them: a carrier goes on, the others trail off or end."""
  return phrase.ipa + {"carrier": ",", "hesitation": "…", "backchannel": "."}[use]


def cached(clip: dict, make: Make, folder: pathlib.Path) -> np.ndarray:
  """The cleaned wave of a clip, made once."""
  path = folder / f"{clip['id']}.npy"
  if not path.exists():
    np.save(path, build.clean(*make()))
  return np.load(path)


def pack(clips: list[tuple[dict, np.ndarray]], rejected: set[str], out: pathlib.Path) -> None:
  """One Opus file per language, kind and split, and index.jsonl, as the digits have them.

  A file holds the recordings of one kind of voice only, so that licences do not mix. Rejected
  clips are left out.
  """
  sheets: dict[str, list[np.ndarray]] = {}
  length: dict[str, int] = {}
  lines = []
  silence = np.zeros(build.GAP, np.float32)
  for clip, wave_T in sorted(clips, key=lambda item: item[0]["id"]):
    if clip["id"] in rejected:
      continue
    file = f"{clip['language']}_{clip['kind']}_{clip['split']}.ogg"
    start = length.get(file, build.GAP)
    sheets.setdefault(file, [silence]).extend([wave_T, silence])
    length[file] = start + len(wave_T) + build.GAP
    lines.append(clip | {"file": file, "start": start, "samples": len(wave_T)})
  for file, parts in sheets.items():
    wav = out / "sheet.wav"
    soundfile.write(wav, np.concatenate(parts), RATE, subtype="PCM_16")
    opus = ["-c:a", "libopus", "-b:a", build.BITRATE, "-application", "audio"]
    exact = ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:a", "+bitexact"]
    command = ["ffmpeg", "-y", "-loglevel", "error", "-i", str(wav), *opus, *exact]
    subprocess.run([*command, str(out / file)], check=True)
    wav.unlink()
  text = "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines)
  (out / "index.jsonl").write_text(text, encoding="utf-8")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for option in ("kokoro", "cache"):
    parser.add_argument(f"--{option}", type=pathlib.Path, required=True)
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "data")
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  args.cache.mkdir(parents=True, exist_ok=True)
  wanted = list(recordings(synth.Kokoro(args.kokoro)))
  rejected = set((pathlib.Path(__file__).parent / "rejected.txt").read_text().split())
  clips = [(clip, cached(clip, make, args.cache)) for clip, make in track(wanted, "synthesise")]
  pack(clips, rejected, args.out)
  print(f"{len(clips)} clips, {sum(len(w) for _, w in clips) / RATE / 60:.1f} minutes")


if __name__ == "__main__":
  main()
