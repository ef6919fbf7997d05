"""Training of the image tokenizer: manifest in, tokenizer's directory out, resumable.

Loss: L1 + L2 + (1 - SSIM) + L1 of gradients at three scales, straight through the quantiser; the
saved parameters are an exponential moving average. Batches are a pure function of (seed, step).

Shapes: B pictures, H W pixels, C channels, N pixels of a side (crops are square).
"""

import dataclasses
import functools
import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from omnijax.tokenizers import image


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTrainConfig:
  """One training of an image tokenizer."""

  model: image.ImageConfig
  steps: int
  batch: int
  crop: int  # pixels of a side; random crops, smaller pictures are padded with their edge
  shift: int  # pictures are first padded by this many pixels, so that crops move them
  peak_lr: float
  warmup: int  # steps; then cosine to zero
  cycles: int  # of that schedule; each ends in a usable tokenizer, the next goes on from it
  weight_decay: float
  ema: float  # decay per step, from step 0 on
  l1: float
  l2: float
  ssim: float
  gradient: float
  seed: int
  save_every: int

  def __post_init__(self):
    image.check_size(self.crop, self.crop, self.model.downsample)
    if self.crop < _WINDOW:
      raise ValueError(f"crop={self.crop}; want at least {_WINDOW}, the window of SSIM")
    for name in ("steps", "batch", "save_every"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}; want at least 1")
    if not 0 <= self.ema < 1:
      raise ValueError(f"ema={self.ema}; want 0 <= ema < 1")
    if self.cycles < 1 or self.steps % self.cycles:
      raise ValueError(f"cycles={self.cycles}; want at least 1, dividing steps={self.steps}")
    if not 0 <= self.warmup <= self.steps // self.cycles:
      raise ValueError(f"warmup={self.warmup}; want 0..{self.steps // self.cycles}, the steps of "
                       "a cycle")


_WINDOW = 11


@dataclasses.dataclass
class Pictures:
  """Pictures of a manifest, drawn with their weights; unreadable ones are named and left out."""

  files: list[Path]
  share: np.ndarray  # of each file, sums to 1
  bad: list[str]

  def batch(self, config: ImageTrainConfig, step: int) -> np.ndarray:
    """Crops [B, N, N, C] uint8 of one step."""
    rng = np.random.default_rng((config.seed, step))
    picks = rng.choice(len(self.files), config.batch, p=self.share)
    return np.stack([self._crop(config, int(i), rng) for i in picks])

  def _crop(self, config: ImageTrainConfig, i: int, rng: np.random.Generator) -> np.ndarray:
    n = config.crop
    for _ in range(100):
      try:
        x_HWC = read(self.files[i], config.model.channels)
        break
      except (OSError, ValueError) as e:
        if str(self.files[i]) not in self.bad:
          self.bad.append(str(self.files[i]))
        reason = e
        i = int(rng.choice(len(self.files), p=self.share))  # another of the same step's draws
    else:
      raise ValueError(f"100 draws in a row can't be decoded, such as {self.bad[-1]}: {reason}; "
                       "take the broken pictures out of the manifest")
    pads = [(max(n - s, 0) // 2 + config.shift, -(min(s - n, 0) // 2) + config.shift)
            for s in x_HWC.shape[:2]]
    x_HWC = np.pad(x_HWC, (*pads, (0, 0)), mode="edge")
    top, left = (int(rng.integers(s - n + 1)) for s in x_HWC.shape[:2])
    return x_HWC[top : top + n, left : left + n]


def read(file: Path, channels: int) -> np.ndarray:
  """A picture [H, W, C] uint8, transparency over white."""
  with Image.open(file) as opened:
    picture: Image.Image = opened
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
      picture = picture.convert("RGBA")
      white = Image.new("RGBA", picture.size, "white")
      picture = Image.alpha_composite(white, picture)
    x = np.asarray(picture.convert("RGB" if channels == 3 else "L"))
  return x.reshape(*x.shape[:2], channels)


def pictures(manifest: Path) -> Pictures:
  """The pictures of a manifest.

  Args:
    manifest: JSON lines, {"image": path} with an optional "weight" (how often it is drawn,
      relative to the others; default 1), or documents {"parts": [{"image": path}, ...]}. Paths
      are relative to the manifest.

  Raises:
    ValueError: not such a manifest, or no readable picture in it.
  """
  files, weights, bad = [], [], []
  for number, line in enumerate(Path(manifest).read_text("utf-8").splitlines(), 1):
    try:
      item = json.loads(line)
      parts = item.get("parts", [item])
      names = [part["image"] for part in parts if "image" in part]
      weight = float(item.get("weight", 1.0))
    except (ValueError, TypeError, AttributeError) as e:
      raise ValueError(f'{manifest}:{number}: {e}; want {{"image": path}}') from e
    for name in names:
      file = Path(manifest).parent / name
      try:
        with Image.open(file):  # reads the header only
          files.append(file)
          weights.append(weight)
      except (OSError, ValueError):
        bad.append(str(file))
  if not files or min(weights) < 0 or sum(weights) == 0:
    raise ValueError(f"{manifest}: {len(files)} readable pictures ({len(bad)} unreadable), "
                     f"weights sum to {sum(weights)}; want at least one, with weights >= 0")
  share = np.asarray(weights)
  return Pictures(files, share / share.sum(), bad)


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=["step", "model", "ema", "opt"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class State:
  """All that a resumed training needs."""

  step: jax.Array
  model: image.Autoencoder
  ema: image.Autoencoder
  opt: Any


def loss_fn(
  model: image.Autoencoder, config: ImageTrainConfig, x_BNNC: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The weighted loss of pictures in [0, 1] and its parts."""
  y_BNNC, _ = model(x_BNNC)
  l2 = jnp.mean((y_BNNC - x_BNNC) ** 2)
  parts = {
    "l1": jnp.mean(jnp.abs(y_BNNC - x_BNNC)),
    "l2": l2,
    "ssim": 1 - ssim(y_BNNC, x_BNNC),
    "gradient": _gradient_loss(y_BNNC - x_BNNC),
  }
  loss = sum(getattr(config, name) * value for name, value in parts.items())
  return loss, parts | {"loss": loss, "psnr": -10 * jnp.log10(l2 + 1e-9)}


def ssim(a_BNNC: jax.Array, b_BNNC: jax.Array) -> jax.Array:
  """Mean structural similarity of square pictures in [0, 1] (Wang et al. 2004, sigma 1.5).

  The window is applied as two products with a banded matrix: quick on every device.
  """
  n = a_BNNC.shape[1]
  taps = np.exp(-0.5 * ((np.arange(_WINDOW) - _WINDOW // 2) / 1.5) ** 2)
  band = np.zeros((n - _WINDOW + 1, n), np.float32)
  for i in range(len(band)):
    band[i, i : i + _WINDOW] = taps / taps.sum()

  def blur(x):
    return jnp.einsum("ph,bhwc,qw->bpqc", band, x, band)

  a, b = blur(a_BNNC), blur(b_BNNC)
  var_a, var_b = blur(a_BNNC**2) - a**2, blur(b_BNNC**2) - b**2
  cov = blur(a_BNNC * b_BNNC) - a * b
  c1, c2 = 0.01**2, 0.03**2
  return jnp.mean(
    (2 * a * b + c1) * (2 * cov + c2) / ((a**2 + b**2 + c1) * (var_a + var_b + c2))
  )


def _gradient_loss(d_BHWC: jax.Array) -> jax.Array:
  """L1 of the gradients of an error at full, half and quarter size."""
  total = jnp.zeros(())
  for _ in range(3):
    total += jnp.mean(jnp.abs(jnp.diff(d_BHWC, axis=1)))
    total += jnp.mean(jnp.abs(jnp.diff(d_BHWC, axis=2)))
    B, H, W, C = d_BHWC.shape
    d_BHWC = d_BHWC[:, : H // 2 * 2, : W // 2 * 2]
    d_BHWC = d_BHWC.reshape(B, H // 2, 2, W // 2, 2, C).mean((2, 4))
  return total / 3


def optimizer(config: ImageTrainConfig) -> optax.GradientTransformation:
  """AdamW with warm-up and cosine decay; only matrices and kernels decay.

  Source of the cycles: warm restarts, Loshchilov & Hutter 2017.
  """
  cycle = config.steps // config.cycles
  one = optax.warmup_cosine_decay_schedule(0.0, config.peak_lr, config.warmup, cycle)

  def rate(step):
    return one(step % cycle)

  wide = functools.partial(jax.tree.map, lambda p: min(p.shape[-2:]) > 1)
  return optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(rate, b2=0.99, weight_decay=config.weight_decay, mask=wide),
  )


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def train_step(
  state: State, x_BNNC: jax.Array, *, config: ImageTrainConfig
) -> tuple[State, dict[str, jax.Array]]:
  """One step on uint8 pictures."""
  x = x_BNNC.astype(jnp.float32) / 255
  grads, metrics = jax.grad(loss_fn, has_aux=True)(state.model, config, x)
  updates, opt = optimizer(config).update(grads, state.opt, state.model)
  model = optax.apply_updates(state.model, updates)
  # a young average forgets faster, or the random start would stay in it
  decay = jnp.minimum(config.ema, (1.0 + state.step) / (10.0 + state.step))
  ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema, model)
  return State(state.step + 1, model, ema, opt), metrics


def init_state(config: ImageTrainConfig) -> State:
  """The state before step 0."""
  model = image.init(config.model, jax.random.key(config.seed))
  ema = jax.tree.map(jnp.copy, model)  # its own buffers: the step donates the state
  return State(jnp.zeros((), jnp.int32), model, ema, jax.jit(optimizer(config).init)(model))


def train(config: ImageTrainConfig, manifest: Path, out: Path) -> image.ImageTokenizer:
  """Trains a tokenizer, or goes on where an interrupted training of the same config stopped.

  Args:
    config: sizes, losses and schedule.
    manifest: see `pictures`.
    out: gets `metrics.jsonl`, `state.npz` while it trains, then `params.npz` and `config.json`.

  Raises:
    ValueError: no pictures, or `out` holds a training of another config.
  """
  data, out = pictures(manifest), Path(out)
  out.mkdir(parents=True, exist_ok=True)
  console = Console(stderr=True)
  if data.bad:
    console.print(f"left out {len(data.bad)} unreadable pictures, such as {data.bad[0]}")
  state = _restore(config, out / "state.npz", init_state(config))
  start = int(state.step)
  metrics_file = out / "metrics.jsonl"
  _keep_lines(metrics_file, start)
  with Progress(console=console, disable=not console.is_terminal) as bar, \
      metrics_file.open("a") as log:
    task = bar.add_task("image tokenizer", total=config.steps, completed=start)
    for step, batch in _prefetch(data, config, start):
      state, metrics = train_step(state, batch, config=config)
      values = {k: round(float(v), 6) for k, v in metrics.items()}
      log.write(json.dumps({"step": step} | values) + "\n")
      bar.update(task, advance=1, description=f"image tokenizer, psnr {values['psnr']:.2f} dB")
      if (step + 1) % config.save_every == 0:
        log.flush()
        _store(config, out / "state.npz", state)
  tokenizer = image.save(state.ema, out)
  if data.bad:
    console.print(f"{len(data.bad)} pictures could not be used")
  return tokenizer


def _prefetch(
  data: Pictures, config: ImageTrainConfig, start: int
) -> Iterator[tuple[int, np.ndarray]]:
  """Steps and their batches, the next one read while this one is used."""
  with ThreadPoolExecutor(1) as pool:
    coming = pool.submit(data.batch, config, start) if start < config.steps else None
    for step in range(start, config.steps):
      assert coming is not None
      batch = coming.result()
      if step + 1 < config.steps:
        coming = pool.submit(data.batch, config, step + 1)
      yield step, batch


def _keep_lines(file: Path, steps: int) -> None:
  """Drops the lines of steps that will be done again."""
  lines = file.read_text().splitlines(keepends=True) if file.exists() else []
  file.write_text("".join(lines[:steps]))


def _store(config: ImageTrainConfig, file: Path, state: State) -> None:
  data = io.BytesIO()
  leaves: dict[str, Any] = {f"leaf_{i}": np.asarray(x)
                            for i, x in enumerate(jax.tree.leaves(state))}
  np.savez(data, config=np.asarray(json.dumps(dataclasses.asdict(config))), **leaves)
  part = file.with_suffix(".part")
  part.write_bytes(data.getvalue())
  os.replace(part, file)  # whole or invisible


def _restore(config: ImageTrainConfig, file: Path, fresh: State) -> State:
  if not file.exists():
    return fresh
  with np.load(file, allow_pickle=False) as arrays:
    had = json.loads(str(arrays["config"]))
    want = json.loads(json.dumps(dataclasses.asdict(config)))
    changed = [f"{k}={had.get(k)} there, {want.get(k)} here" for k in sorted({*had, *want})
               if had.get(k) != want.get(k)]
    if changed:
      raise ValueError(f"{file} is of another training: {'; '.join(changed)}; use the same config "
                       "or another directory")
    leaves = [jnp.asarray(arrays[f"leaf_{i}"]) for i in range(len(jax.tree.leaves(fresh)))]
  return jax.tree.unflatten(jax.tree.structure(fresh), leaves)
