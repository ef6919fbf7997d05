"""Trains the speech codec: first what is said (`train_semantic`), then how it sounds.

The second part leaves the semantic codes alone; it has losses on magnitudes and an optional critic.

Shapes: as in codec.py; N = B * T vectors.
"""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.progress import Progress

from omnijax.tokenizers import adversary, audio, clips, quantize, spectral, train_semantic
from omnijax.tokenizers import codec as net


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioTrainConfig:
  """One training of the codec."""

  codec: net.AudioConfig = net.AudioConfig()
  semantic: train_semantic.SemanticTrainConfig = train_semantic.SemanticTrainConfig()
  # Directory of a tokenizer to go on from, of the same `codec`; else from nothing. Its semantic
  # codes are kept if semantic.steps is 0.
  start: str = ""
  steps: int = 8400
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
  adversarial_weight: float = 0.0  # above 0, a critic of spectra is trained against the codec
  critic_lr: float = 3e-4
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


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["step", "codec", "opt", "books", "critic", "critic_opt"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class State:
  """Everything that training carries; the critic only if there is an adversarial loss."""

  step: jax.Array
  codec: net.Codec
  opt: optax.OptState
  books: quantize.Codebooks
  critic: adversary.Critic | None
  critic_opt: Any


def optimizer(config: AudioTrainConfig) -> optax.GradientTransformation:
  """AdamW under a cosine."""
  lr = optax.warmup_cosine_decay_schedule(
    0.0, config.peak_lr, config.warmup, config.steps, config.peak_lr * 0.01
  )
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(lr, b1=0.9, b2=0.99, weight_decay=config.weight_decay),
  )


def critic_optimizer(config: AudioTrainConfig) -> optax.GradientTransformation:
  """Adam with little memory, as the critic chases a moving codec."""
  return optax.adam(config.critic_lr, b1=0.5, b2=0.9)


def init(config: AudioTrainConfig) -> State:
  """State before the first step."""
  rngs = nnx.Rngs(config.seed)
  codec = net.Codec(config.codec, rngs=rngs)
  books = quantize.init_codebooks(config.codec.quantizer)
  if config.start:
    loaded = audio.load(config.start)
    if loaded.config != config.codec:
      raise ValueError(f"{config.start} has {loaded.config}; want {config.codec}")
    codec = loaded.codec
    if isinstance(codec.quantizer, quantize.ResidualVQ):
      books = quantize.resume_codebooks(codec.quantizer.codebook_QKE[...], config.batch_frames)
  critic = critic_opt = None
  if config.adversarial_weight > 0:
    critic = adversary.Critic(rngs=rngs)
    critic_opt = critic_optimizer(config).init(critic)
  opt = optimizer(config).init(codec)
  return State(jnp.int32(0), codec, opt, books, critic, critic_opt)


def reconstruct(codec: net.Codec, target_BFK: jax.Array, config: AudioTrainConfig, key: jax.Array):
  """Log magnitudes through a random number of codebooks, and the quantisation."""
  c, (B, F, _) = config.codec, target_BFK.shape
  T = F // c.spectra
  sound_BTD, _ = codec.encoder(target_BFK, codec.encoder.init_state(B))
  mel_BFM = spectral.log_mel(target_BFK, c.stft)
  meaning_BTD, _ = codec.semantic(mel_BFM, codec.semantic.init_state(B))
  level_key, full_key = jax.random.split(key)
  levels_B = jax.random.randint(level_key, (B,), 1, c.codebooks + 1)
  full_B = jax.random.uniform(full_key, (B,)) < config.full_depth
  levels_N = jnp.repeat(jnp.where(full_B, c.codebooks, levels_B), T)
  meaning_ND = jax.lax.stop_gradient(meaning_BTD.reshape(B * T, c.semantic_dim))
  quantized = codec.quantizer(meaning_ND, sound_BTD.reshape(B * T, c.dim), levels_N)
  z_BTD = quantized.z_ND.reshape(B, T, c.dim)
  out_BFK, _ = codec.decoder(z_BTD, codec.decoder.init_state(B))
  return out_BFK, quantized


def losses(codec: net.Codec, critic, batch: dict, config: AudioTrainConfig, key: jax.Array):
  """Weighted loss; its parts, the quantisation and (target, output) spectra of one batch."""
  c, stft = config.codec, config.codec.stft
  wave_BL = jnp.pad(batch["wave"], ((0, 0), (stft.overlap, 0)))
  target_BFK = spectral.log_magnitude(wave_BL, stft)
  out_BFK, quantized = reconstruct(codec, target_BFK, config, key)
  T = target_BFK.shape[1] // c.spectra
  valid_BT = (jnp.arange(T)[None] < batch["frames"][:, None]).astype(jnp.float32)
  valid_BF = jnp.repeat(valid_BT, c.spectra, 1)

  def gap(a_BFX, b_BFX):
    gap_BF = jnp.mean(jnp.abs(a_BFX - b_BFX), -1)
    return jnp.sum(gap_BF * valid_BF) / jnp.sum(valid_BF)

  parts = {
    "mel": gap(spectral.log_mel(out_BFK, stft), spectral.log_mel(target_BFK, stft)),
    "spectrum": gap(out_BFK, target_BFK),
    "quantizer": quantized.loss,
  }
  # outside the clips the critic would judge silence that the codec is not taught
  masked = [jnp.where(valid_BF[:, :, None] > 0, x, -2.0) for x in (target_BFK, out_BFK)]
  if critic is not None:
    parts["adversarial"] = adversary.codec_loss(critic, *masked)
  total = sum(getattr(config, f"{name}_weight") * part for name, part in parts.items())
  return total, (parts, quantized, masked)


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def train_step(state: State, batch: dict, config: AudioTrainConfig) -> tuple[State, dict]:
  """One update of the codec, then of its codebooks, then of the critic if there is one."""
  key, restart_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), state.step))
  (total, (parts, quantized, spectra)), grads = jax.value_and_grad(losses, has_aux=True)(
    state.codec, state.critic, batch, config, key
  )
  updates, opt = optimizer(config).update(grads, state.opt, state.codec)
  codec = optax.apply_updates(state.codec, updates)
  # Weight decay would change the semantic codes, which have no gradient here.
  before = state.codec.quantizer
  codec.semantic = state.codec.semantic
  codec.quantizer.w_semantic_in[...] = before.w_semantic_in[...]
  metrics = parts | {"loss": total, "grad_norm": optax.tree.norm(grads)}
  books, critic, critic_opt = state.books, state.critic, state.critic_opt
  if isinstance(codec.quantizer, quantize.ResidualVQ):
    assert isinstance(before, quantize.ResidualVQ)
    due = state.step % config.restart_every == 0
    books, codebook_QKE = quantize.learn_codebooks(
      books, quantized, due, config.restart_below, restart_key
    )
    codec.quantizer.codebook_QKE[...] = codebook_QKE.at[0].set(before.codebook_QKE[...][0])
    share_QK = books.uses_QK / jnp.sum(books.uses_QK, -1, keepdims=True)
    bits_Q = -jnp.sum(share_QK * jnp.log2(share_QK + 1e-9), -1)
    metrics |= {"bits_first": bits_Q[0], "bits": jnp.mean(bits_Q)}
  if critic is not None:
    metrics["critic"], grads = jax.value_and_grad(adversary.critic_loss)(critic, *spectra)
    updates, critic_opt = critic_optimizer(config).update(grads, critic_opt)
    critic = optax.apply_updates(critic, updates)
  return State(state.step + 1, codec, opt, books, critic, critic_opt), metrics


def save_state(path: Path, state: Any) -> None:
  """Whole or not at all: writes beside, then renames."""
  part = path.with_suffix(".part.npz")
  leaves: dict[str, Any] = {}
  for i, leaf in enumerate(jax.tree.leaves(state)):
    leaves[f"leaf_{i}"] = np.asarray(leaf)
  np.savez(part, **leaves)
  os.replace(part, path)


def restore_state(path: Path, like: Any) -> Any:
  """What `save_state` wrote, in the structure of `like`."""
  with np.load(path) as file:
    leaves = [file[f"leaf_{i}"] for i in range(len(file.files))]
  if [x.shape for x in leaves] != [x.shape for x in jax.tree.leaves(like)]:
    raise ValueError(f"{path} is of another config; restore that, or train into another directory")
  return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(x) for x in leaves])


def train(config: AudioTrainConfig, corpus: Path, out: Path) -> None:
  """Trains a tokenizer into OUT, for `audio.load`, resuming if OUT holds an unfinished training.

  Args:
    corpus: JSON lines of {"audio": path, "transcript": text (optional)}.
    out: a directory; also gets {semantic,acoustic}.npz and .jsonl (states and metrics) and the
      decoded clips.

  Raises:
    ValueError: no clip can be read, or none has a transcript while semantic.steps is above 0.
  """
  out.mkdir(parents=True, exist_ok=True)
  console = Console(stderr=True)
  data, index = clips.pack(corpus, out / "clips", config.codec.sample_rate, console)
  state = init(config)
  if config.semantic.steps:
    batches, names = train_semantic.batches(data, index, config.codec.frame_size, config.semantic,
                                            config.seed)
    learned = _run(
      train_semantic.init(config.semantic, config.codec, names, config.seed),
      lambda state, batch: train_semantic.train_step(state, batch, config.semantic, config.seed),
      batches, config.semantic.steps, out / "semantic", config.save_every_s, console)
    train_semantic.graft(state.codec, learned.mean)
  batches = clips.Batches(
    data,
    index,
    frame_size=config.codec.frame_size,
    buckets=config.buckets,
    batch_frames=config.batch_frames,
    seed=config.seed,
  )
  state = _run(state, lambda state, batch: train_step(state, batch, config), batches, config.steps,
               out / "acoustic", config.save_every_s, console)
  audio.save(out, state.codec)


def _run(state: Any, step_fn: Callable[[Any, dict], tuple[Any, dict]], batches: clips.Batches,
         steps: int, name: Path, save_every_s: float, console: Console) -> Any:
  """Goes on from NAME.npz to the last step; metrics go to NAME.jsonl."""
  path, log_path = name.with_suffix(".npz"), name.with_suffix(".jsonl")
  if path.exists():
    state = restore_state(path, state)
  first, saved = int(state.step), time.monotonic()
  _keep_lines(log_path, first)
  with (Progress(console=console, disable=not console.is_terminal) as bar,
        log_path.open("a") as log, ThreadPoolExecutor(1) as pool):
    task = bar.add_task(f"codec, {name.name}", total=steps, completed=first)
    # Batches are made while the step before them runs.
    coming = pool.submit(batches.__getitem__, first)
    for step in range(first, steps):
      batch, coming = coming.result(), pool.submit(batches.__getitem__, step + 1)
      state, metrics = step_fn(state, batch)
      if step % 20 == 0:
        values = {name: round(float(x), 5) for name, x in metrics.items()}
        log.write(json.dumps({"step": step} | values) + "\n")
        log.flush()
      bar.update(task, completed=step + 1)
      if time.monotonic() - saved > save_every_s:
        save_state(path, state)
        saved = time.monotonic()
  save_state(path, state)
  return state


def _keep_lines(path: Path, steps: int) -> None:
  """Drops the lines of steps that will be done again."""
  lines = path.read_text().splitlines(keepends=True) if path.exists() else []
  path.write_text("".join(line for line in lines if json.loads(line)["step"] < steps))
