"""Trains the speech codec: losses on magnitudes, a semantic first codebook, dead-code restarts.

Shapes: as in codec.py; N = B * T vectors, U characters of a transcript.
"""

import dataclasses
import functools
import json
import os
import time
import unicodedata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import soundfile
import soxr
from flax import nnx
from tqdm import tqdm

from omnijax.tokenizers import audio, quantize, spectral
from omnijax.tokenizers import codec as net

ALPHABET = "-abcdefghijklmnopqrstuvwxyz '"  # CTC symbols; "-" is the blank
CTC_RATE = 4  # CTC steps of a codec frame


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioTrainConfig:
  """One training of the codec."""

  codec: net.AudioConfig = net.AudioConfig()
  steps: int = 9200
  seed: int = 0
  batch_frames: int = 256  # codec frames of a batch
  buckets: tuple[int, ...] = (16, 32, 64)  # codec frames of a clip
  peak_lr: float = 1e-3
  warmup: int = 200
  weight_decay: float = 0.01
  clip_norm: float = 1.0
  mel_weight: float = 1.0
  spectrum_weight: float = 0.5
  quantizer_weight: float = 0.25
  semantic_weight: float = 0.05
  full_depth: float = 0.5  # share of clips that use all codebooks (the others: a random prefix)
  restart_every: int = 25
  restart_below: float = 0.05  # of uniform use
  save_every_s: float = 120.0

  def __post_init__(self):
    if max(self.buckets) > self.batch_frames:
      raise ValueError(
        f"batch_frames={self.batch_frames} holds no clip of max(buckets)={max(self.buckets)}"
      )
    if self.steps <= self.warmup:
      raise ValueError(f"steps={self.steps} is not more than warmup={self.warmup}")


class SemanticHead(nnx.Module):
  """Predicts the transcript's characters from the first codebook alone; only used in training."""

  def __init__(self, c: net.AudioConfig, *, rngs: nnx.Rngs):
    self.blocks = net.stack(1, c.dim, c.kernel, 2, rngs=rngs)
    self.w_out = net.dense(rngs, c.dim, CTC_RATE * len(ALPHABET))

  def __call__(self, z_BTD: jax.Array) -> jax.Array:
    """Logits [B, T * CTC_RATE, characters]."""
    B, T, D = z_BTD.shape
    past = jnp.zeros((1, B, self.blocks.taps_JD.shape[1] - 1, D))
    x_BTD, _ = net.run_stack(self.blocks, z_BTD, past)
    return (net.rms_norm(x_BTD) @ self.w_out[...]).reshape(B, T * CTC_RATE, len(ALPHABET))


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["step", "codec", "head", "opt", "books"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class State:
  step: jax.Array
  codec: net.Codec
  head: SemanticHead
  opt: optax.OptState
  books: quantize.Codebooks


def optimizer(config: AudioTrainConfig) -> optax.GradientTransformation:
  lr = optax.warmup_cosine_decay_schedule(
    0.0, config.peak_lr, config.warmup, config.steps, config.peak_lr * 0.01
  )
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(lr, b1=0.9, b2=0.99, weight_decay=config.weight_decay),
  )


def init(config: AudioTrainConfig) -> State:
  rngs = nnx.Rngs(config.seed)
  codec = net.Codec(config.codec, rngs=rngs)
  head = SemanticHead(config.codec, rngs=rngs)
  books = quantize.init_codebooks(config.codec.quantizer)
  return State(jnp.int32(0), codec, head, optimizer(config).init((codec, head)), books)


def losses(codec, head, batch, config: AudioTrainConfig, key):
  """Weighted loss, its parts, and the quantisation of one batch."""
  c, stft = config.codec, config.codec.stft
  wave_BL = jnp.pad(batch["wave"], ((0, 0), (stft.overlap, 0)))
  target_BFK = spectral.log_magnitude(wave_BL, stft)
  B, F, _ = target_BFK.shape
  T = F // c.spectra
  z_BTD, _ = codec.encoder(target_BFK, codec.encoder.init_state(B))
  level_key, full_key = jax.random.split(key)
  levels_B = jax.random.randint(level_key, (B,), 1, c.codebooks + 1)
  full_B = jax.random.uniform(full_key, (B,)) < config.full_depth
  levels_N = jnp.repeat(jnp.where(full_B, c.codebooks, levels_B), T)
  quantized = codec.quantizer(z_BTD.reshape(B * T, c.dim), levels_N)
  out_BFK, _ = codec.decoder(
    quantized.z_ND.reshape(B, T, c.dim), codec.decoder.init_state(B)
  )
  valid_BT = (jnp.arange(T)[None] < batch["frames"][:, None]).astype(jnp.float32)
  valid_BF = jnp.repeat(valid_BT, c.spectra, 1)
  mean = lambda x_BF: jnp.sum(x_BF * valid_BF) / jnp.sum(valid_BF)
  mel_BF = jnp.mean(
    jnp.abs(spectral.log_mel(out_BFK, stft) - spectral.log_mel(target_BFK, stft)), -1
  )
  spectrum_BF = jnp.mean(jnp.abs(out_BFK - target_BFK), -1)
  logits = head(quantized.first_ND.reshape(B, T, c.dim))
  steps_BX = 1.0 - jnp.repeat(valid_BT, CTC_RATE, 1)
  ctc_B = optax.ctc_loss(logits, steps_BX, batch["chars"], batch["char_padding"])
  letters_B = jnp.sum(1.0 - batch["char_padding"], -1)
  parts = {
    "mel": mean(mel_BF),
    "spectrum": mean(spectrum_BF),
    "quantizer": quantized.loss,
    "semantic": jnp.sum(jnp.where(letters_B > 0, ctc_B, 0.0)) / jnp.maximum(letters_B.sum(), 1),
  }
  total = sum(getattr(config, f"{name}_weight") * part for name, part in parts.items())
  return total, (parts, quantized)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def train_step(state: State, batch: dict, config: AudioTrainConfig) -> tuple[State, dict]:
  """One update, then every `restart_every` steps a restart of the dead codes."""
  key, restart_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), state.step))
  loss = lambda models: losses(*models, batch, config, key)
  models = (state.codec, state.head)
  (total, (parts, quantized)), grads = jax.value_and_grad(loss, has_aux=True)(models)
  updates, opt = optimizer(config).update(grads, state.opt, models)
  codec, head = optax.apply_updates(models, updates)
  metrics = parts | {"loss": total, "grad_norm": optax.global_norm(grads)}
  books = state.books
  if not config.codec.fsq_levels:
    due = state.step % config.restart_every == 0
    books, codebook_QKE = quantize.learn_codebooks(
      books, quantized, due, config.restart_below, restart_key
    )
    codec.quantizer.codebook_QKE[...] = codebook_QKE
    share_QK = books.uses_QK / jnp.sum(books.uses_QK, -1, keepdims=True)
    bits_Q = -jnp.sum(share_QK * jnp.log2(share_QK + 1e-9), -1)
    metrics |= {"bits_first": bits_Q[0], "bits": jnp.mean(bits_Q)}
  return State(state.step + 1, codec, head, opt, books), metrics


def letters(transcript: str) -> str:
  """The transcript in CTC's alphabet; empty if it holds something that has no such letters."""
  text = unicodedata.normalize("NFKD", transcript.lower().replace("\u2019", "'"))
  text = "".join(c for c in text if not unicodedata.combining(c))
  if any(c.isalnum() and c not in ALPHABET for c in text):
    return ""
  text = "".join(c if c in ALPHABET[1:] else " " for c in text)
  return " ".join(text.split())


def pack(manifest: Path, cache: Path, sample_rate: int) -> tuple[np.ndarray, list[dict]]:
  """Decodes a manifest's clips once: samples (int16, memory-mapped) and {start, length, chars}.

  Clips that cannot be read or hold under 0.1 s are left out and counted.
  """
  index, data = cache / "clips.jsonl", cache / "clips.i16"
  if not index.exists():
    cache.mkdir(parents=True, exist_ok=True)
    items = [json.loads(line) for line in manifest.read_text().splitlines() if line.strip()]
    clips, start, failed = [], 0, []
    with data.open("wb") as out:
      for item in tqdm(items, desc="decode", mininterval=5):
        try:
          wave, rate = soundfile.read(item["audio"], dtype="float32", always_2d=True)
        except (OSError, soundfile.LibsndfileError):
          failed.append(item["audio"])
          continue
        wave = soxr.resample(wave.mean(1), rate, sample_rate)
        if len(wave) < sample_rate // 10 or np.abs(wave).max() < 1e-3:
          failed.append(item["audio"])
          continue
        wave = wave * min(1.0, 0.99 / np.abs(wave).max())
        out.write((wave * 32767).astype("<i2").tobytes())
        chars = letters(item.get("transcript", ""))
        clips.append({"start": start, "length": len(wave), "chars": chars})
        start += len(wave)
    print(f"{len(clips)} clips, {start / sample_rate / 3600:.2f} h; {len(failed)} left out", failed[:3])
    part = index.with_suffix(".part")
    part.write_text("\n".join(json.dumps(c) for c in clips) + "\n")
    part.rename(index)
  clips = [json.loads(line) for line in index.read_text().splitlines()]
  return np.memmap(data, "<i2", "r"), clips


def augment(wave: np.ndarray, rng: np.random.Generator, c: net.AudioConfig) -> np.ndarray:
  """Speed (with pitch) +-12 %, a random tilt, gain, shift and a little noise."""
  rate = np.exp(rng.uniform(-0.12, 0.12)) if rng.random() < 0.7 else 1.0
  wave = np.interp(np.arange(0, len(wave) - 1, rate), np.arange(len(wave)), wave)
  if rng.random() < 0.5:
    wave = wave + rng.uniform(-0.5, 0.3) * np.append(0.0, wave[:-1])
  level = rng.uniform(0.03, 0.15) / max(np.sqrt(np.mean(wave**2)), 1e-3)
  wave = wave * min(level, 0.98 / max(np.abs(wave).max(), 1e-3))
  wave = np.concatenate([np.zeros(rng.integers(0, c.frame_size)), wave])
  noise = 10 ** rng.uniform(-4.5, -2.8) if rng.random() < 0.5 else 1e-5
  return (wave + noise * rng.standard_normal(len(wave))).astype(np.float32)


class Batches:
  """Batch t is a pure function of (seed, t)."""

  def __init__(self, data: np.ndarray, clips: list[dict], config: AudioTrainConfig):
    self.data, self.clips, self.config = data, clips, config
    size = config.codec.frame_size
    # 12 % slower plus the random shift must still fit
    need = np.array([c["length"] * 1.13 / size + 1.5 for c in clips])
    self.bucket = np.searchsorted(config.buckets, need).clip(max=len(config.buckets) - 1)
    seconds = np.array([min(c["length"] / size, max(config.buckets)) for c in clips])
    # by the square root of duration, so that words do not drown among sentences nor the reverse
    self.weight = np.sqrt(seconds)

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    config, rng = self.config, np.random.default_rng((self.config.seed, step))
    width = np.array(config.buckets)
    mass = np.array([self.weight[self.bucket == b].sum() for b in range(len(width))])
    share = mass * width
    b = rng.choice(len(width), p=share / share.sum())
    T, size = config.buckets[b], config.codec.frame_size
    B = config.batch_frames // T
    members = np.flatnonzero(self.bucket == b)
    p = self.weight[members] / self.weight[members].sum()
    wave_BL = np.zeros((B, T * size), np.float32)
    U = 3 * T
    chars_BU, padding_BU = np.zeros((B, U), np.int32), np.ones((B, U), np.float32)
    frames_B = np.zeros(B, np.int32)
    for i, m in enumerate(rng.choice(members, B, p=p)):
      clip = self.clips[m]
      start, length, text = clip["start"], clip["length"], clip["chars"]
      room = int((T - 1.5) * size / 1.13)
      if length > room:
        start, length, text = start + rng.integers(0, length - room), room, ""
      wave = self.data[start : start + length].astype(np.float32) / 32768
      wave = augment(wave, rng, config.codec)[: T * size]
      wave_BL[i, : len(wave)] = wave
      # two frames of the silence after the end are worth learning, the rest is not
      frames_B[i] = min(T, -(-len(wave) // size) + 2)
      if len(text) <= U:
        chars_BU[i, : len(text)] = [ALPHABET.index(c) for c in text]
        padding_BU[i, : len(text)] = 0.0
    return {"wave": wave_BL, "frames": frames_B, "chars": chars_BU, "char_padding": padding_BU}


def save_state(path: Path, state: State) -> None:
  """Whole or not at all: writes beside, then renames."""
  part = path.with_suffix(".part.npz")
  np.savez(part, *[np.asarray(x) for x in jax.tree.leaves(state)])
  part.rename(path)


def restore_state(path: Path, like: State) -> State:
  with np.load(path) as file:
    leaves = [file[f"arr_{i}"] for i in range(len(file.files))]
  old = jax.tree.leaves(like)
  if [x.shape for x in leaves] != [x.shape for x in old]:
    raise ValueError(f"{path} is of another codec config; train into another directory")
  return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(x) for x in leaves])


def train(config: AudioTrainConfig, corpus: Path, out: Path) -> None:
  """Trains a tokenizer into OUT, for `audio.load`, resuming if OUT holds an unfinished training.

  Args:
    corpus: JSON lines of {"audio": path, "transcript": text (optional)}.
    out: a directory; also gets state.npz, metrics.jsonl and the decoded clips.
  """
  out.mkdir(parents=True, exist_ok=True)
  batches = Batches(*pack(corpus, out / "clips", config.codec.sample_rate), config)
  state, path = init(config), out / "state.npz"
  if path.exists():
    state = restore_state(path, state)
  saved, first = time.monotonic(), int(state.step)
  bar = tqdm(range(first, config.steps), initial=first, total=config.steps, mininterval=5)
  with (out / "metrics.jsonl").open("a") as log:
    for step in bar:
      began = time.monotonic()
      state, metrics = train_step(state, batches[step], config)
      if step % 20 == 0:
        values = {name: round(float(x), 5) for name, x in metrics.items()}
        values |= {"step": step, "step_s": round(time.monotonic() - began, 3)}
        log.write(json.dumps(values) + "\n")
        log.flush()
        bar.set_postfix(mel=values["mel"], semantic=values["semantic"])
      if time.monotonic() - saved > config.save_every_s:
        save_state(path, state)
        audio.save(out, state.codec)
        saved = time.monotonic()
  save_state(path, state)
  audio.save(out, state.codec)
