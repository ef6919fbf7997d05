"""Sounds that nobody says: noise, clicks, thumps, tones; and what rooms and cables do to speech.

Shapes: T samples at 16 kHz, mono, float32.
"""

from __future__ import annotations

import numpy as np

RATE = 16000
COLOURS = {"white": 0.0, "pink": 0.5, "brown": 1.0}  # the amplitude falls with this power
BURSTS = ("hiss", "clicks", "thump", "tones")


def rms(wave_T: np.ndarray) -> float:
  """Root mean square, above nought."""
  return float(np.sqrt(np.mean(np.square(wave_T), dtype=np.float64))) + 1e-9


def decibels(value: float) -> float:
  """The factor of amplitude."""
  return float(10 ** (value / 20))


def faded(wave_T: np.ndarray, samples: int) -> np.ndarray:
  """A copy that ends softly."""
  wave_T = wave_T.copy()
  samples = min(samples, len(wave_T))
  wave_T[len(wave_T) - samples :] *= np.linspace(1, 0, samples, dtype=wave_T.dtype)
  return wave_T


def noise(rng: np.random.Generator, colour: str, samples: int) -> np.ndarray:
  """Noise of a colour, RMS 1."""
  spectrum = np.fft.rfft(rng.standard_normal(samples, np.float32))
  at = np.maximum(np.arange(len(spectrum)), 20 * samples / RATE)  # flat under 20 Hz
  wave_T = np.fft.irfft(spectrum / at ** COLOURS[colour], samples).astype(np.float32)
  return wave_T / rms(wave_T)


def babble(rng: np.random.Generator, clips: list[np.ndarray], samples: int) -> np.ndarray:
  """Four people who talk without pause, RMS 1."""
  wave_T = np.zeros(samples, np.float32)
  for _ in range(4):
    at = -int(rng.integers(0, RATE))
    while at < samples:
      clip = clips[rng.integers(len(clips))]
      first, last = max(at, 0), min(at + len(clip), samples)
      if last > first:
        wave_T[first:last] += clip[first - at : last - at]
      at += len(clip) + int(rng.integers(0, RATE // 3))
  return wave_T / rms(wave_T)


def burst(rng: np.random.Generator, kind: str) -> np.ndarray:
  """One of BURSTS, 0.05 to 1.5 s, RMS 1."""
  if kind == "hiss":
    samples = int(rng.uniform(0.15, 1.5) * RATE)
    wave_T = noise(rng, rng.choice(list(COLOURS)), samples)
    rise = int(rng.uniform(0.005, 0.4) * samples) + 1
    wave_T[:rise] *= np.linspace(0, 1, rise)
    wave_T = faded(wave_T, int(rng.uniform(0.05, 0.6) * samples))
  elif kind == "clicks":
    wave_T = np.zeros(int(rng.uniform(0.05, 1.2) * RATE), np.float32)
    for _ in range(int(rng.integers(1, 9))):
      width = int(rng.integers(8, 160))
      at = int(rng.integers(0, len(wave_T) - width))
      shape = np.exp(-np.arange(width) / width * 5) * rng.uniform(0.3, 1)
      wave_T[at : at + width] += shape * rng.standard_normal(width)
  elif kind == "thump":
    at = np.arange(int(rng.uniform(0.12, 0.5) * RATE)) / RATE
    tone = np.sin(2 * np.pi * rng.uniform(50, 160) * at)
    knock = noise(rng, "brown", len(at)) * rng.uniform(0.1, 0.5)
    wave_T = ((tone + knock) * np.exp(-at * rng.uniform(10, 40))).astype(np.float32)
  elif kind == "tones":
    notes = []
    for _ in range(int(rng.integers(1, 6))):
      at = np.arange(int(rng.uniform(0.1, 0.35) * RATE)) / RATE
      pitch = 220 * 2 ** (rng.integers(0, 25) / 12)
      note = sum(np.sin(2 * np.pi * pitch * h * at) / h ** rng.uniform(1, 2.5) for h in range(1, 5))
      notes.append(note * np.minimum(1, at * 100) * np.exp(-at * rng.uniform(1, 10)))
    wave_T = np.concatenate(notes).astype(np.float32)
  else:
    raise ValueError(f"unknown kind of noise {kind!r}; want one of {', '.join(BURSTS)}")
  wave_T = faded(wave_T, 80)
  return wave_T / rms(wave_T)


def echo(rng: np.random.Generator, said_T: np.ndarray) -> np.ndarray:
  """What comes back of the model's own sound: late, weak, at times dull."""
  late = int(rng.uniform(0.04, 0.24) * RATE)
  back_T = np.zeros_like(said_T)
  back_T[late:] = said_T[: len(said_T) - late] * decibels(rng.uniform(-34, -14))
  if rng.random() < 0.4:
    spectrum = np.fft.rfft(back_T)
    cut = rng.uniform(800, 3000)
    at = np.arange(len(spectrum)) * RATE / len(said_T)
    back_T = np.fft.irfft(spectrum / np.sqrt(1 + (at / cut) ** 4), len(said_T))
  return back_T.astype(np.float32)
