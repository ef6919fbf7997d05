"""The same word by another throat, at another pitch, through another vocoder.

WORLD (Morise et al., 2016; the package pyworld) takes a recording apart into pitch, spectral
envelope and aperiodicity, which are changed apart from each other and put together again: what
speeding a recording up can't do. Half of the results get an envelope as smooth as those of
parametric synthesisers.

Shapes: T samples, F frames of 5 ms, K frequencies.
"""

from collections.abc import Iterator

import numpy as np

RATE = 16000
PERIOD = 5.0  # ms


def revoiced(wave_T: np.ndarray, rng: np.random.Generator, takes: int) -> Iterator[np.ndarray]:
  """Draws of one recording at 16 kHz, float32, of its own length up to a quarter."""
  import pyworld

  padded = np.pad(wave_T.astype(np.float64), 400)
  padded += 1e-5 * rng.standard_normal(len(padded))
  pitch_F, times = pyworld.dio(padded, RATE, frame_period=PERIOD)
  pitch_F = pyworld.stonemask(padded, pitch_F, times, RATE)
  envelope_FK = np.log(pyworld.cheaptrick(padded, pitch_F, times, RATE))
  noise_FK = pyworld.d4c(padded, pitch_F, times, RATE)
  voiced_F = pitch_F > 0
  usual = np.exp(np.mean(np.log(pitch_F[voiced_F]))) if voiced_F.any() else 120.0
  for _ in range(takes):
    higher = float(np.clip(np.exp(rng.uniform(np.log(75), np.log(330))) / usual, 0.45, 2.2))
    melody_F = np.zeros_like(pitch_F)
    # From flat to lively, and rising or falling.
    melody_F[voiced_F] = usual * higher * (pitch_F[voiced_F] / usual) ** rng.uniform(0.2, 1.6)
    melody_F[voiced_F] *= np.exp(rng.uniform(-0.15, 0.15) * np.linspace(-1, 1, voiced_F.sum()))
    # High voices tend to come from short throats.
    throat = np.exp(np.clip(0.35 * np.log(higher) + rng.normal(0, 0.09), -0.3, 0.3))
    spectra_FK, breath_FK = (_stretched(x_FK, throat) for x_FK in (envelope_FK, noise_FK))
    if rng.random() < 0.5:
      spectra_FK = _smooth(spectra_FK, int(rng.integers(18, 60)), int(rng.integers(1, 6)))
    breath_FK = np.clip(breath_FK, 1e-4, 1) ** np.exp(rng.normal(0, 0.4))
    if rng.random() < 0.3:
      breath_FK = np.where(breath_FK > 0.5, 0.98, 0.02)  # a buzz or a hiss, nothing between
    if rng.random() < 0.06:
      melody_F = np.zeros_like(melody_F)  # a whisper
    period = PERIOD * np.exp(rng.uniform(-0.25, 0.25))
    parts = melody_F, np.exp(spectra_FK), np.clip(breath_FK, 1e-3, 0.999)
    sound_T = pyworld.synthesize(*map(np.ascontiguousarray, parts), RATE, frame_period=period)
    sound_T = sound_T[300:]
    level = 0.08 / max(np.sqrt(np.mean(sound_T**2)), 1e-4)
    yield np.clip(sound_T * level, -0.99, 0.99).astype(np.float32)


def _stretched(x_FK: np.ndarray, factor: float) -> np.ndarray:
  """Frequencies multiplied by a factor."""
  K = x_FK.shape[1]
  at_K = np.clip(np.arange(K) / factor, 0, K - 1)
  low_K = np.floor(at_K).astype(int)
  high_K, part_K = np.minimum(low_K + 1, K - 1), at_K - low_K
  return x_FK[:, low_K] * (1 - part_K) + x_FK[:, high_K] * part_K


def _smooth(envelope_FK: np.ndarray, order: int, frames: int) -> np.ndarray:
  """So many cepstral coefficients, averaged over so many frames."""
  cepstrum = np.fft.irfft(envelope_FK, axis=1)
  cepstrum[:, order : 1 - order] = 0
  envelope_FK = np.fft.rfft(cepstrum, axis=1).real
  window = np.hanning(frames + 2)[1:-1]
  margin = (frames // 2, frames - 1 - frames // 2)
  padded = np.pad(envelope_FK, (margin, (0, 0)), mode="edge")
  rows = [padded[i : i + len(envelope_FK)] * w for i, w in enumerate(window / window.sum())]
  return np.sum(rows, 0)
