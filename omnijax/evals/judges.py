"""Independent judges of generated digits: a classifier of pictures and a recogniser of speech.

Both are small convolutional networks trained only on real pictures and real recordings (by
experiments/digits/train_judges.py); neither has seen the output of a model or a learned codec.
Features are numpy, so that training and judging see the same numbers.

Shapes: B batch, H W pixels or (time, mel band), C channels, T samples, F frames, M mel bands.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

RATE = 16000
WINDOW, HOP, BANDS = 400, 160, 64
FRAMES = 144  # 1.44 s, the window of speech that is judged
FLOOR = 7.0  # nepers under the loudest band: quieter is silence
SIDE = 32

Params = dict[str, jax.Array]


@functools.cache
def _mel_filters() -> np.ndarray:
  """Triangular filters [WINDOW // 2 + 1, BANDS], 60 Hz to 7.6 kHz on the mel scale."""
  edges = np.linspace(*(2595 * np.log10(1 + np.array([60, 7600]) / 700)), BANDS + 2)
  hertz = 700 * (10 ** (edges / 2595) - 1)
  bins = np.linspace(0, RATE / 2, WINDOW // 2 + 1)[:, None]
  low, mid, high = hertz[:-2], hertz[1:-1], hertz[2:]
  up, down = (bins - low) / (mid - low), (high - bins) / (high - mid)
  return np.maximum(0, np.minimum(up, down)).astype(np.float32)


def log_mel(wave_T: np.ndarray) -> np.ndarray:
  """Log-mel features [FRAMES, BANDS] of the loudest 1.44 s of a 16 kHz wave.

  In nepers above FLOOR under the loudest band, so independent of gain; silence is 0.
  """
  wave_T = np.asarray(wave_T, np.float32)
  if wave_T.ndim != 1:
    raise ValueError(f"got a wave of shape {wave_T.shape}, want one channel [T] at {RATE} Hz")
  wave_T = np.pad(wave_T, (WINDOW // 2, WINDOW // 2 + HOP))
  frames = np.lib.stride_tricks.sliding_window_view(wave_T, WINDOW)[::HOP]
  spectrum = np.abs(np.fft.rfft(frames * np.hanning(WINDOW).astype(np.float32), axis=1))
  power_FM = np.square(spectrum).astype(np.float32) @ _mel_filters()
  level_FM = 0.5 * np.log(power_FM + 1e-10)
  level_FM = np.maximum(level_FM - level_FM.max() + FLOOR, 0)
  spare = len(level_FM) - FRAMES
  if spare > 0:
    mass = np.concatenate([[0], np.cumsum(level_FM.sum(1))])
    start = int(np.argmax(mass[FRAMES:] - mass[:-FRAMES]))
    return level_FM[start : start + FRAMES]
  before = -spare // 2
  return np.pad(level_FM, ((before, -spare - before), (0, 0)))


def _conv(params: Params, name: str, x_BHWC: jax.Array, stride: tuple[int, int]) -> jax.Array:
  """A 3 x 3 convolution, a norm over channels and space with learned scale, then GELU."""
  y_BHWC = jax.lax.conv_general_dilated(
    x_BHWC, params[f"{name}/w"], stride, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  mean = y_BHWC.mean((1, 2, 3), keepdims=True)
  scale = jax.lax.rsqrt(y_BHWC.var((1, 2, 3), keepdims=True) + 1e-5)
  gain, bias = params[f"{name}/gain"], params[f"{name}/bias"]
  return jax.nn.gelu((y_BHWC - mean) * scale * gain[None, None, None] + bias[None, None, None])


def init(key: jax.Array, channels: Sequence[int], features: int, classes: int) -> Params:
  """Parameters of a judge: 3 x 3 convolutions of the given channels, then a linear layer."""
  params: Params = {}
  for i, (c_in, c_out) in enumerate(zip([1, *channels[:-1]], channels, strict=True)):
    key, here = jax.random.split(key)
    params[f"conv{i}/w"] = jax.random.normal(here, (3, 3, c_in, c_out)) * (9 * c_in) ** -0.5
    params[f"conv{i}/gain"] = jnp.ones(c_out)
    params[f"conv{i}/bias"] = jnp.zeros(c_out)
  params["out/w"] = jax.random.normal(key, (features, classes)) * features**-0.5
  params["out/bias"] = jnp.zeros(classes)
  return params


def image_logits(params: Params, x_BHW: jax.Array) -> jax.Array:
  """Logits [B, 10] of pictures [B, 32, 32] in [0, 1]."""
  x = x_BHW[..., None] * 2 - 1
  for i, stride in enumerate(((1, 1), (2, 2), (2, 2), (2, 2))):
    x = _conv(params, f"conv{i}", x, stride)
  flat = x.reshape(x.shape[0], -1)
  return flat @ params["out/w"] + params["out/bias"][None]


def speech_logits(params: Params, x_BFM: jax.Array) -> jax.Array:
  """Logits [B, classes] of log-mel features [B, FRAMES, BANDS].

  Three average poolings over time, early, middle and late under the envelope of the sound, keep
  the order of the phonemes while staying indifferent to where the word lies.
  """
  x = x_BFM[..., None] * (2 / FLOOR) - 1
  for i, stride in enumerate(((2, 2), (2, 2), (1, 2), (2, 2), (1, 2))):
    x = _conv(params, f"conv{i}", x, stride)
  energy = x_BFM.reshape(x.shape[0], x.shape[1], -1).mean(2) + 1e-4
  place = jnp.cumsum(energy, 1) / energy.sum(1, keepdims=True)
  pooled = []
  for centre in (0.1, 0.35, 0.65, 0.9):
    weight = energy * jnp.exp(-0.5 * jnp.square((place - centre) / 0.15))
    weight = weight / weight.sum(1, keepdims=True)
    pooled.append(jnp.einsum("bf,bfmc->bmc", weight, x))
  flat = jnp.concatenate(pooled, 2).reshape(x.shape[0], -1)
  return flat @ params["out/w"] + params["out/bias"][None]


def save(path: pathlib.Path, members: Sequence[Params], labels: Sequence[str]) -> None:
  """Writes a judge as one .npz: float16 weights of its networks, and its labels."""
  arrays: dict[str, Any] = {f"{i}/{k}": np.asarray(v, np.float16)
                            for i, params in enumerate(members) for k, v in params.items()}
  np.savez(path, labels=np.array(json.dumps(list(labels))), **arrays)


def _read(path: pathlib.Path) -> tuple[tuple[Params, ...], list[str]]:
  members: dict[str, Params] = {}
  with np.load(path) as file:
    labels = json.loads(str(file["labels"]))
    for name in file.files:
      if name != "labels":
        member, key = name.split("/", 1)
        members.setdefault(member, {})[key] = jnp.asarray(file[name], jnp.float32)
  return tuple(members.values()), labels


def _logits(apply, params: Params, x: np.ndarray, batch: int = 64) -> np.ndarray:
  """Applies a network in batches of one size, so that it compiles once."""
  out = []
  for i in range(0, len(x), batch):
    part = x[i : i + batch]
    pad = np.zeros((batch - len(part), *x.shape[1:]), x.dtype)
    out.append(np.asarray(apply(params, np.concatenate([part, pad])))[: len(part)])
  return np.concatenate(out)


_image_logits, _speech_logits = jax.jit(image_logits), jax.jit(speech_logits)


@dataclasses.dataclass(frozen=True)
class ImageJudge:
  """Reads handwritten digits."""

  params: Params

  def predict(self, pixels_BHW: np.ndarray) -> np.ndarray:
    """Digits [B] of grey pictures [B, 32, 32] float in [0, 1], white ink on black."""
    pixels_BHW = np.asarray(pixels_BHW, np.float32)
    if pixels_BHW.shape[1:] != (SIDE, SIDE) or pixels_BHW.max(initial=0) > 1.001:
      raise ValueError(
        f"got pictures {pixels_BHW.shape} up to {pixels_BHW.max(initial=0):.3g}, "
        f"want [B, {SIDE}, {SIDE}] in [0, 1]: make them grey, scale or pad them first"
      )
    if not len(pixels_BHW):
      return np.zeros(0, np.int64)
    return _logits(_image_logits, self.params, pixels_BHW).argmax(1)


@dataclasses.dataclass(frozen=True)
class SpeechJudge:
  """Hears spoken digits and which language they are in."""

  members: tuple[Params, ...]  # networks that differ in their seeds
  labels: tuple[tuple[str, int], ...]

  def probabilities(self, waves: Sequence[np.ndarray]) -> np.ndarray:
    """Probabilities [B, classes] of each (language, digit) in `labels`, the members' mean."""
    if not len(waves):
      return np.zeros((0, len(self.labels)), np.float32)
    features = np.stack([log_mel(wave) for wave in waves])
    logits = np.stack([_logits(_speech_logits, member, features) for member in self.members])
    unscaled = np.exp(logits - logits.max(-1, keepdims=True))
    return (unscaled / unscaled.sum(-1, keepdims=True)).mean(0)

  def predict(self, waves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Languages [B] (str) and digits [B] of waves [T] float32 at 16 kHz.

    The digit is the most probable one whatever the language ("uno" is one in two of them), the
    language the most probable one of that digit.
    """
    p = self.probabilities(waves)
    languages = np.array([language for language, _ in self.labels])
    digit = np.array([d for _, d in self.labels])
    digits = (p @ np.eye(10)[digit]).argmax(1)
    given = np.where(digit == digits[:, None], p, -1)
    return languages[given.argmax(1)], digits


def load_image(path: pathlib.Path) -> ImageJudge:
  """The picture judge saved at path."""
  (params,), _ = _read(path)
  return ImageJudge(params)


def load_speech(path: pathlib.Path) -> SpeechJudge:
  """The speech judge saved at path; its labels are "language digit"."""
  members, labels = _read(path)
  pairs = tuple((label.split()[0], int(label.split()[1])) for label in labels)
  return SpeechJudge(members, pairs)


def accuracy(got: Sequence, want: Sequence, groups: Sequence[str] | None = None) -> dict:
  """Share of equal items, as {"accuracy", "n"} and, with groups, {"by_group": {name: same}}."""
  answers, truth = np.asarray(got), np.asarray(want)
  if answers.shape != truth.shape or not answers.size:
    raise ValueError(f"got {answers.shape} answers for {truth.shape} questions; want as many, "
                     "and some")
  report: dict = {"accuracy": float(np.mean(answers == truth)), "n": int(answers.size)}
  if groups is not None:
    names = np.asarray(groups)
    chosen = {str(name): names == name for name in sorted(set(groups))}
    report["by_group"] = {k: accuracy(answers[where], truth[where]) for k, where in chosen.items()}
  return report
