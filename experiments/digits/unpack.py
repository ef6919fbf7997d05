"""Turns the packed digits data into files: PNG pictures and 16 kHz FLAC recordings.

The packed form is a few sheets (one PNG per digit and split, one Opus file per language, kind of
voice and split) with an index; `unpack` writes a file for each picture and clip.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import soundfile
import soxr
from PIL import Image

from omnijax.tokenizers import clips

DATA = pathlib.Path(__file__).parent / "data"
RATE = 16000
SIDE = 32  # pixels; the 28 x 28 originals sit in the middle


@dataclasses.dataclass(frozen=True)
class Picture:
  """A handwritten digit; path is relative to the folder it was unpacked into, take 0 the original.
  """

  path: str
  digit: int
  split: str
  take: int


@dataclasses.dataclass(frozen=True)
class Clip:
  """A spoken digit; kind is "person" or the synthesiser's name, take 0 is the original."""

  path: str
  digit: int
  language: str
  voice: str
  kind: str
  split: str
  source: str
  take: int


def images(split: str, data: pathlib.Path = DATA) -> tuple[np.ndarray, np.ndarray]:
  """All pictures of a split ("train" or "heldout").

  Returns pixels [B, 32, 32] uint8 (white ink on black) and digits [B] int32.
  """
  pixels, digits = [], []
  for path in sorted(data.glob(f"digit?_{split}_*.png")):
    count = int(path.stem.rsplit("_", 1)[1])
    sheet_HW = np.asarray(Image.open(path))
    rows, columns = sheet_HW.shape[0] // 28, sheet_HW.shape[1] // 28
    tiles = sheet_HW.reshape(rows, 28, columns, 28).transpose(0, 2, 1, 3).reshape(-1, 28, 28)
    margin = (SIDE - 28) // 2
    pixels.append(np.pad(tiles[:count], ((0, 0), (margin, margin), (margin, margin))))
    digits.append(np.full(count, int(path.stem[5]), np.int32))
  if not pixels:
    raise ValueError(f"no pictures of split {split!r} in {data}; want 'train' or 'heldout'")
  return np.concatenate(pixels), np.concatenate(digits)


def index(data: pathlib.Path = DATA) -> list[dict]:
  """The entries of index.jsonl: id, language, digit, voice, kind, split, source, file, place."""
  text = (data / "index.jsonl").read_text(encoding="utf-8")
  return [json.loads(line) for line in text.splitlines()]


def speech(split: str, data: pathlib.Path = DATA) -> list[tuple[dict, np.ndarray]]:
  """All recordings of a split as (index entry, wave [T] float32 at 16 kHz)."""
  entries = [entry for entry in index(data) if entry["split"] == split]
  if not entries:
    raise ValueError(f"no recordings of split {split!r} in {data}; want 'train' or 'heldout'")
  sheets: dict[str, np.ndarray] = {}
  for file in sorted({entry["file"] for entry in entries}):
    wave_T, rate = soundfile.read(data / file, dtype="float32")
    sheets[file] = wave_T if rate == RATE else soxr.resample(wave_T, rate, RATE)
  return [(e, sheets[e["file"]][e["start"] : e["start"] + e["samples"]]) for e in entries]


def varied(wave_T: np.ndarray, take: int) -> np.ndarray:
  """A take of a recording: 0 as it is, the others from other speakers, microphones and places."""
  if take == 0:
    return wave_T
  rng = np.random.default_rng([take, len(wave_T), int(1e6 * np.abs(wave_T).max())])
  return clips.augment(wave_T, rng, RATE // 12)


def turned(pixels_HW: np.ndarray, take: int) -> np.ndarray:
  """A take of a picture: 0 as it is, the others a little turned, scaled and shifted."""
  if take == 0:
    return pixels_HW
  rng = np.random.default_rng([take, int(pixels_HW.sum())])
  angle, scale = rng.normal(0, 0.12), np.exp(rng.normal(0, 0.08))
  turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
  centre = (SIDE - 1) / 2
  shift = centre - turn @ (centre + rng.normal(0, 0.8, 2))
  matrix = [*turn[0], shift[0], *turn[1], shift[1]]
  size, bilinear = (SIDE, SIDE), Image.Resampling.BILINEAR
  return np.asarray(Image.fromarray(pixels_HW).transform(
    size, Image.Transform.AFFINE, matrix, bilinear))


def unpack(
  folder: pathlib.Path, *, takes: int, person_takes: int, picture_takes: int = 1,
  data: pathlib.Path = DATA
) -> tuple[list[Picture], list[Clip]]:
  """Writes every picture and clip of both splits under folder.

  takes, person_takes, picture_takes: versions of each training recording (of a synthesiser, of a
  person) and picture; what is held out is written once, unchanged. Files that exist are left
  alone, so that an interrupted run continues.
  """
  pictures, clips = [], []
  for split in ("train", "heldout"):
    (folder / "images" / split).mkdir(parents=True, exist_ok=True)
    (folder / "speech" / split).mkdir(parents=True, exist_ok=True)
    for i, (pixels_HW, digit) in enumerate(zip(*images(split, data), strict=True)):
      for take in range(picture_takes if split == "train" else 1):
        path = f"images/{split}/{digit}_{i:05d}.{take}.png"
        if not (folder / path).exists():
          Image.fromarray(turned(pixels_HW, take)).save(folder / path, compress_level=1)
        pictures.append(Picture(path, int(digit), split, take))
    for entry, wave_T in speech(split, data):
      versions = person_takes if entry["kind"] == "person" else takes
      for take in range(versions if split == "train" else 1):
        path = f"speech/{split}/{entry['id']}.{take}.flac"
        if not (folder / path).exists():
          soundfile.write(folder / path, varied(wave_T, take), RATE)
        keys = ("digit", "language", "voice", "kind", "split", "source")
        clips.append(Clip(path, *(entry[key] for key in keys), take))
  return pictures, clips
