"""Tokenizers that need no training, and manifests of small files, for the tests of the data path.

Every code follows from the file alone, so a test can tell which file a batch shows.
"""

import json
import pathlib
import time

import numpy as np
import PIL.Image
import soundfile

from omnijax import vocab as vocab_lib
from omnijax.data import encode

RATE, FRAME, Q = 16_000, 1280, 3
VOCAB = vocab_lib.Vocab(text=256, image=256, audio=64, codebooks=Q)


class Text:
  size, fingerprint = 256, "text-a"

  def encode(self, text):
    return list(text.encode())

  def decode(self, ids):
    return bytes(ids).decode()


class Image:
  """The code of a patch is its mean red."""

  codes, downsample, channels, fingerprint = 256, 4, 3, "image-a"

  def __init__(self):
    self.shapes = []

  def encode(self, pixels):
    self.shapes.append(pixels.shape)
    B, H, W, _ = pixels.shape
    patches = pixels[..., 0].reshape(B, H // 4, 4, W // 4, 4)
    return np.round(patches.mean((2, 4)) * 255).astype(np.int32)

  def decode(self, codes):
    red = np.repeat(np.repeat(codes, 4, 1), 4, 2) / 255.0
    return np.stack([red, 0 * red, 0 * red], -1)


class Audio:
  """Codebook q of a frame is q more than 10 times its loudest sample."""

  sample_rate, frame_size, codebooks, codes, fingerprint = RATE, FRAME, Q + 1, 64, "audio-a"

  def __init__(self):
    self.shapes = []

  def encode(self, wave):
    self.shapes.append(wave.shape)
    B, L = wave.shape
    loud = np.abs(wave).reshape(B, L // FRAME, FRAME).max(-1)
    first = np.round(loud * 10).astype(np.int32)
    return np.minimum(first[..., None] + np.arange(Q + 1, dtype=np.int32), 63)

  def decode(self, codes):
    assert 0 <= codes.min() <= codes.max() < self.codes
    return np.repeat(codes[..., 0], FRAME, 1) / 10.0


class SlowAudio(Audio):
  """Slow enough for a test to kill who uses it."""

  def encode(self, wave):
    time.sleep(0.2)
    return super().encode(wave)


def tokenizers():
  return encode.Tokenizers(Text(), Image(), Audio())


def image(path: pathlib.Path, h: int, w: int, red: int) -> None:
  PIL.Image.new("RGB", (w, h), (red, 0, 0)).save(path)


def audio(path: pathlib.Path, samples: int, loud: float, rate: int = RATE) -> None:
  soundfile.write(path, np.full(samples, loud, np.float32), rate)


def manifest(root: pathlib.Path, lines: list) -> pathlib.Path:
  path = root / "manifest.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return path


def mixed(root: pathlib.Path, documents: int) -> pathlib.Path:
  """A manifest of every kind of document over a few media files."""
  rng = np.random.default_rng(0)
  for i in range(4):
    image(root / f"{i}.png", 8 + 4 * (i % 2), 8 + 4 * (i // 2), 10 * i)
    audio(root / f"{i}.wav", 9 * FRAME + 400 * i, 0.1 * (i + 1))
  lines = []
  for i in range(documents):
    k = int(rng.integers(4))
    text = "x" * int(rng.integers(1, 40))
    lines.append({"id": f"d{i}", "parts": [
      [{"text": text}],
      [{"image": f"{k}.png"}, {"text": text}],
      [{"audio": f"{k}.wav", "transcript": text[:9]}],
      [{"audio": f"{k}.wav"}],
      [{"image": f"{k}.png", "role": "user"},
       {"audio": f"{k}.wav", "transcript": "yes", "role": "assistant"}],
      [{"audio": f"{k}.wav", "transcript": "hi", "role": "user"},
       {"text": "ok", "role": "assistant"}, {"text": "more", "role": "user"}, {"text": "x"},
       {"image": f"{k}.png", "role": "assistant"}],
    ][i % 6]})
  return manifest(root, lines)
