"""Trains the two judges of the quickstart on the real training pictures and recordings alone.

  python -m experiments.digits.train_judges image
  python -m experiments.digits.train_judges speech

No output of a model or of a learned codec is used. The speech judge hears each recording, as
shipped, in many disguises (other pitch, speed and throat, microphones, rooms, noise, telephone
bands, blurred and phase-scrambled spectra), so that what a codec does to a voice is not new to
it. It is the mean of three networks that differ in their seeds. The shipped weights come from the
lines above: 1 minute of one core for pictures, about 9 for each network of speech. Prints
accuracy on held-out pictures and voices.

Shapes: B batch, H W pixels, T samples, F frames, M mel bands.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.ndimage
import scipy.signal
import soxr

from experiments.digits import unpack, voices
from omnijax.evals import judges

LABELS = tuple(f"{language} {digit}" for language in voices.LANGUAGES for digit in range(10))
RATE = unpack.RATE


def _filtered(wave_T: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """A random smooth equaliser, and often a telephone or cheap loudspeaker's band."""
  spectrum = np.fft.rfft(wave_T)
  hertz = np.linspace(0, RATE / 2, len(spectrum))
  knots = np.array([0, 150, 400, 1000, 2000, 3500, 5500, 8000])
  gain = np.interp(hertz, knots, rng.normal(0, 7, len(knots)))
  if rng.random() < 0.5:
    gain -= 60 * np.clip((hertz - rng.uniform(3000, 7000)) / 400, 0, 1)
  if rng.random() < 0.3:
    gain -= 40 * np.clip((rng.uniform(80, 350) - hertz) / 100, 0, 1)
  return np.fft.irfft(spectrum * 10 ** (gain / 20), len(wave_T))


def _in_room(wave_T: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """A short synthetic reverberation."""
  length = int(RATE * rng.uniform(0.05, 0.25))
  tail = rng.normal(0, 1, length) * np.exp(-6 * np.arange(length) / length)
  tail *= rng.uniform(0.05, 0.4) / np.linalg.norm(tail)
  tail[0] += 1
  return scipy.signal.fftconvolve(wave_T, tail)[: len(wave_T) + length // 2]


def _scrambled(wave_T: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Phases and magnitudes of short-time spectra disturbed, as any vocoder disturbs them."""
  size = int(rng.choice([256, 512, 1024]))
  window = np.hanning(size)
  padded = np.pad(wave_T, size)
  starts = range(0, len(padded) - size, size // 4)
  out = np.zeros(len(padded))
  phase, loudness = rng.uniform(0.2, 1.5), rng.uniform(0.0, 0.4)
  for start in starts:
    spectrum = np.fft.rfft(padded[start : start + size] * window)
    turn = rng.normal(0, phase, len(spectrum)) * 1j + rng.normal(0, loudness, len(spectrum))
    out[start : start + size] += np.fft.irfft(spectrum * np.exp(turn), size) * window
  return out[size:-size] / 1.5


def _noisy(wave_T: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Coloured noise 5 to 40 dB under the speech."""
  noise = np.fft.rfft(rng.normal(0, 1, len(wave_T)))
  noise *= (1 + np.arange(len(noise))) ** -rng.uniform(0, 0.9)
  noise = np.fft.irfft(noise, len(wave_T))
  level = np.std(wave_T) / (np.std(noise) + 1e-9) * 10 ** (-rng.uniform(5, 40) / 20)
  return wave_T + level * noise


def disguised(wave_T: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """One random disguise of a recording."""
  pitch = float(np.exp(rng.uniform(-0.2, 0.2)))
  wave_T = soxr.resample(wave_T, RATE, RATE * pitch).astype(np.float64)
  for chance, change in ((0.7, _filtered), (0.25, _in_room), (0.35, _scrambled), (0.6, _noisy)):
    if rng.random() < chance:
      wave_T = change(np.pad(wave_T, 200), rng)
  return wave_T.astype(np.float32)


def _stretched(level_FM: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """The same features slower or faster, from a longer or shorter throat, moved, partly masked."""
  active = np.flatnonzero(level_FM.max(1) > 1)
  length = active[-1] - active[0] + 1 if len(active) else judges.FRAMES
  slowest = np.log(0.95 * judges.FRAMES / length)  # the word still fits
  rate = np.exp(-rng.uniform(-0.35, np.clip(slowest, -0.3, 0.6)))
  middle = active.mean() if len(active) else judges.FRAMES / 2
  slack = max(judges.FRAMES - length / rate, 0) / 2
  times = (np.arange(judges.FRAMES) - judges.FRAMES / 2 + rng.uniform(-slack, slack)) * rate
  nearest = np.round(times + middle).astype(int)
  inside = ((nearest >= 0) & (nearest < judges.FRAMES))[:, None]
  level_FM = np.where(inside, level_FM[np.clip(nearest, 0, judges.FRAMES - 1)], 0)
  bands = np.arange(judges.BANDS)
  throat = bands * np.exp(rng.normal(0, 0.05)) + rng.normal(0, 1)
  level_FM = level_FM[:, np.clip(np.round(throat).astype(int), 0, judges.BANDS - 1)]
  if rng.random() < 0.3:
    level_FM = scipy.ndimage.gaussian_filter(level_FM, rng.uniform(0, 1.2, 2))
  for axis, most in ((0, 10), (1, 8)):
    start, width = rng.integers(0, level_FM.shape[axis]), rng.integers(0, most)
    level_FM[(slice(None),) * axis + (slice(start, start + width),)] = 0
  return np.maximum(level_FM - rng.uniform(0, 1.5), 0)


def _fit(apply, params, draw, steps: int, rate: float):
  """AdamW with a cosine schedule over batches from draw(step); returns the mean of late weights."""
  schedule = optax.warmup_cosine_decay_schedule(0, rate, steps // 20, steps)
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.02))

  def loss_fn(params, x, y):
    targets = optax.smooth_labels(jax.nn.one_hot(y, params["out/bias"].shape[0]), 0.05)
    return optax.softmax_cross_entropy(apply(params, x), targets).mean()

  @jax.jit
  def step_fn(params, mean, state, x, y):
    loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    mean = jax.tree.map(lambda m, p: 0.995 * m + 0.005 * p, mean, params)
    return params, mean, state, loss

  mean, state, recent = params, tx.init(params), []
  for step in range(steps):
    params, mean, state, loss = step_fn(params, mean, state, *draw(step))
    recent.append(loss)
    if (step + 1) % 250 == 0:
      print(f"step {step + 1} loss {float(jnp.mean(jnp.stack(recent[-250:]))):.3f}", flush=True)
  return mean


def train_speech(out: pathlib.Path, *, steps: int, disguises: int, seeds: int) -> None:
  """Trains and saves the recogniser, one network for each seed."""
  members = [_member(steps=steps, disguises=disguises, seed=seed) for seed in range(seeds)]
  judges.save(out, members, LABELS)


def _member(*, steps: int, disguises: int, seed: int):
  rng = np.random.default_rng(seed)
  clips = unpack.speech("train")
  pool, labels = [], []
  for entry, wave_T in clips:
    # A person weighs as much as five synthetic voices.
    for i in range(disguises * (5 if entry["kind"] == "person" else 1)):
      pool.append(judges.log_mel(disguised(wave_T, rng) if i else wave_T).astype(np.float16))
      labels.append(LABELS.index(f"{entry['language']} {entry['digit']}"))
  pool_NFM, labels_N = np.stack(pool), np.array(labels)
  print(f"{len(clips)} recordings, {len(pool_NFM)} disguises", flush=True)

  def draw(step: int):
    del step
    chosen = rng.integers(0, len(pool_NFM), 64)
    x = np.stack([_stretched(pool_NFM[i].astype(np.float32), rng) for i in chosen])
    return x.astype(np.float32), labels_N[chosen]

  params = judges.init(jax.random.key(seed), (16, 32, 48, 72, 96), 4 * 2 * 96, len(LABELS))
  return _fit(judges.speech_logits, params, draw, steps, 3e-3)


def _moved(pixels_HW: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """A picture turned, scaled, shifted, blurred and noised a little."""
  angle, scale = rng.normal(0, 0.15), np.exp(rng.normal(0, 0.1))
  turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
  centre = np.array([15.5, 15.5])
  offset = centre - turn @ (centre + rng.normal(0, 1.2, 2))
  moved = scipy.ndimage.affine_transform(pixels_HW, turn, offset, order=1)
  if rng.random() < 0.5:
    moved = scipy.ndimage.gaussian_filter(moved, rng.uniform(0, 1.0))
  noise = rng.normal(0, rng.uniform(0, 0.15), moved.shape)
  return np.clip(moved * rng.uniform(0.7, 1.1) + noise, 0, 1)


def train_image(out: pathlib.Path, *, steps: int) -> None:
  """Trains and saves the picture classifier."""
  rng = np.random.default_rng(0)
  pixels, digits = unpack.images("train")

  def draw(step: int):
    del step
    chosen = rng.integers(0, len(pixels), 64)
    x = np.stack([_moved(pixels[i].astype(np.float32) / 255, rng) for i in chosen])
    return x.astype(np.float32), digits[chosen]

  params = judges.init(jax.random.key(0), (8, 16, 32, 48), 4 * 4 * 48, 10)
  labels = [str(digit) for digit in range(10)]
  judges.save(out, [_fit(judges.image_logits, params, draw, steps, 3e-3)], labels)


def measure(folder: pathlib.Path) -> dict:
  """Accuracy on held-out pictures and voices of the judges that are saved in a folder."""
  report: dict = {}
  if (folder / "image.npz").exists():
    pixels, digits = unpack.images("heldout")
    seen = judges.load_image(folder / "image.npz").predict(pixels.astype(np.float32) / 255)
    report["image"] = judges.accuracy(seen, digits, [str(d) for d in digits])
  if (folder / "speech.npz").exists():
    clips = unpack.speech("heldout")
    entries = [entry for entry, _ in clips]
    languages, heard = judges.load_speech(folder / "speech.npz").predict([w for _, w in clips])
    digits = np.array([entry["digit"] for entry in entries])
    tongues = np.array([entry["language"] for entry in entries])
    kinds = [entry["kind"] for entry in entries]
    report |= {
      "speech digit": judges.accuracy(heard, digits, tongues),
      "speech digit by kind": judges.accuracy(heard, digits, kinds),
      "speech language": judges.accuracy(languages, tongues, tongues),
      "speech both": float(np.mean((heard == digits) & (languages == tongues))),
    }
  return report


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("what", choices=("image", "speech", "measure"))
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "judges")
  parser.add_argument("--steps", type=int, help="1500 for pictures, 4000 for speech")
  parser.add_argument("--disguises", type=int, default=6, help="of each recording")
  parser.add_argument("--seeds", type=int, default=3, help="networks of the judge of speech")
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  if args.what == "image":
    train_image(args.out / "image.npz", steps=args.steps or 1500)
  if args.what == "speech":
    out = args.out / "speech.npz"
    train_speech(out, steps=args.steps or 4000, disguises=args.disguises, seeds=args.seeds)
  print(json.dumps(measure(args.out), indent=2))


if __name__ == "__main__":
  main()
