"""Trains the codec's semantic encoder and first codebook: what is said, whoever says it.

A connectionist temporal classifier (CTC, Graves et al. 2006) must read the transcript from the
first codebook alone, in spectra disguised as other throats, speeds and gaps (SpecAugment, Park et
al. 2019). Nothing is reconstructed here, so nothing but words is worth coding.

Shapes: as in codec.py; M mel bands, N = B * T vectors, X CTC steps, U characters of a transcript.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from omnijax.tokenizers import clips, quantize, spectral
from omnijax.tokenizers import codec as net

CTC_RATE = 4  # CTC steps of a codec frame
_SILENCE = -4.5  # a quiet log magnitude, in the place of what is hidden


@dataclasses.dataclass(frozen=True, kw_only=True)
class SemanticTrainConfig:
  """The first part of a codec's training; without steps, the codes are left as they are."""

  steps: int = 15_000
  batch_frames: int = 512
  # Codec frames of a clip; longer clips are left out. On sentences alone it never took off.
  buckets: tuple[int, ...] = (16,)
  peak_lr: float = 1.5e-3
  warmup: int = 200
  weight_decay: float = 0.02
  dropout: float = 0.1  # of what the reader sees
  free_share: float = 0.25  # of the steps, first, in which vectors are read unquantised
  quantizer_weight: float = 0.25
  restart_every: int = 25
  restart_below: float = 0.05  # of uniform use


class Reader(nnx.Module):
  """Reads the transcript's characters from vectors of the first codebook; not part of a codec."""

  def __init__(self, c: net.AudioConfig, *, rngs: nnx.Rngs):
    D = c.semantic_dim
    self.w_in_ED = net.dense(rngs, c.code_dim, D)
    self.blocks = net.stack(2, D, c.kernel, 2, rngs=rngs)
    self.w_out = net.dense(rngs, D, CTC_RATE * len(clips.ALPHABET))

  def __call__(self, first_BTE: jax.Array) -> jax.Array:
    """Logits [B, T * CTC_RATE, characters]."""
    B, T, _ = first_BTE.shape
    past = net.silence(self.blocks, B)
    x_BTD, _ = net.run_stack(self.blocks, first_BTE @ self.w_in_ED[...], past)
    logits = net.rms_norm(x_BTD) @ self.w_out[...]
    return logits.reshape(B, T * CTC_RATE, len(clips.ALPHABET))


class Models(nnx.Module):
  """What is trained: the encoder, a quantiser of one codebook, and the reader."""

  def __init__(self, c: net.AudioConfig, *, rngs: nnx.Rngs):
    self.encoder = net.SemanticEncoder(c, rngs=rngs)
    one = dataclasses.replace(c.quantizer, codebooks=1)
    self.quantizer = quantize.quantizer(one, rngs=rngs)
    self.reader = Reader(c, rngs=rngs)


@functools.partial(jax.tree_util.register_dataclass,
                   data_fields=["step", "models", "opt", "books"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class State:
  """Everything that training carries."""

  step: jax.Array
  models: Models
  opt: optax.OptState
  books: quantize.Codebooks


def _optimizer(config: SemanticTrainConfig) -> optax.GradientTransformation:
  lr = optax.warmup_cosine_decay_schedule(
    0.0, config.peak_lr, config.warmup, config.steps, config.peak_lr * 0.01)
  return optax.chain(optax.clip_by_global_norm(1.0),
                     optax.adamw(lr, b1=0.9, b2=0.99, weight_decay=config.weight_decay))


def init(config: SemanticTrainConfig, codec: net.AudioConfig, seed: int) -> State:
  """State before the first step."""
  models = Models(codec, rngs=nnx.Rngs(seed))
  books = quantize.init_codebooks(models.quantizer.config)
  return State(jnp.int32(0), models, _optimizer(config).init(models), books)


def disguised(mel_BFM: jax.Array, length_B: jax.Array, key: jax.Array
              ) -> tuple[jax.Array, jax.Array]:
  """The same words slower or faster, from another throat, with gaps in time and frequency.

  Args:
    mel_BFM: log mel magnitudes.
    length_B: float, spectral frames of each that hold speech.
    key: of the draws.

  Returns:
    [B, F, M], and the new lengths.
  """
  B, F, M = mel_BFM.shape
  keys = jax.random.split(key, 6)
  uniform = lambda key, low, high: jax.random.uniform(key, (B,), minval=low, maxval=high)
  # Above 1 is faster; nothing may become longer than there is room for.
  rate_B = jnp.maximum(jnp.exp(uniform(keys[0], -0.45, 0.35)), length_B / F)
  at_BF = jnp.arange(F)[None] * rate_B[:, None]
  mel_BFM = _interpolated(mel_BFM, at_BF)
  throat_B = jnp.exp(0.07 * jax.random.normal(keys[1], (B,)))
  at_BM = jnp.clip(jnp.arange(M)[None] * throat_B[:, None] +
                   jax.random.normal(keys[2], (B,))[:, None], 0, M - 1)
  mel_BFM = jnp.swapaxes(_interpolated(jnp.swapaxes(mel_BFM, 1, 2), at_BM), 1, 2)
  length_B = length_B / rate_B
  for i, (size, most) in enumerate(((M, 14), (F, 18))):
    start_key, width_key = jax.random.split(keys[3 + i])
    start_B = jax.random.randint(start_key, (B,), 0, size)
    end_B = start_B + jax.random.randint(width_key, (B,), 0, most)
    index = jnp.arange(size)[None]
    hidden = (index >= start_B[:, None]) & (index < end_B[:, None])
    hidden = hidden[:, None, :] if i == 0 else hidden[:, :, None]
    mel_BFM = jnp.where(hidden, _SILENCE, mel_BFM)
  return mel_BFM, length_B


def _interpolated(x_BFM: jax.Array, at_BX: jax.Array) -> jax.Array:
  """Values between neighbours along F; silence beyond the end."""
  F = x_BFM.shape[1]
  low_BX = jnp.floor(at_BX).astype(jnp.int32)
  take = lambda i_BX: jnp.take_along_axis(x_BFM, jnp.clip(i_BX, 0, F - 1)[:, :, None], 1)
  part_BX1 = (at_BX - low_BX)[:, :, None]
  mixed = take(low_BX) * (1 - part_BX1) + take(low_BX + 1) * part_BX1
  return jnp.where((at_BX < F)[:, :, None], mixed, _SILENCE)


def logits(models: Models, mel_BFM: jax.Array, quantised: jax.Array | float, dropout: float,
           key: jax.Array) -> tuple[jax.Array, quantize.Quantized]:
  """The reader's logits [B, X, characters] and the quantisation."""
  B, c = mel_BFM.shape[0], models.encoder.config
  meaning_BTD, _ = models.encoder(mel_BFM, models.encoder.init_state(B))
  N = B * meaning_BTD.shape[1]
  q = models.quantizer(meaning_BTD.reshape(N, -1), jnp.zeros((N, c.dim)), jnp.ones(N, jnp.int32))
  # The same gradient, but unquantised vectors while the codebook is still young.
  stop = jax.lax.stop_gradient
  first_NE = q.first_NE + (1 - quantised) * stop(q.latents_QNE[0] - q.first_NE)
  keep_NE = jax.random.bernoulli(key, 1 - dropout, first_NE.shape) / (1 - dropout)
  return models.reader((first_NE * keep_NE).reshape(B, -1, c.code_dim)), q


def _loss(models: Models, batch: dict, quantised: jax.Array, config: SemanticTrainConfig,
          key: jax.Array):
  c = models.encoder.config
  wave_BL = jnp.pad(batch["wave"], ((0, 0), (c.stft.overlap, 0)))
  mel_BFM = spectral.log_mel(spectral.log_magnitude(wave_BL, c.stft), c.stft)
  disguise_key, drop_key = jax.random.split(key)
  mel_BFM, length_B = disguised(mel_BFM, batch["frames"] * float(c.spectra), disguise_key)
  logits_BXC, quantized = logits(models, mel_BFM, quantised, config.dropout, drop_key)
  X = logits_BXC.shape[1]
  spoken_B = length_B * CTC_RATE / c.spectra
  silent_BX = (jnp.arange(X)[None] >= spoken_B[:, None]).astype(jnp.float32)
  ctc_B = optax.ctc_loss(logits_BXC, silent_BX, batch["chars"], batch["char_padding"])
  letters_B = jnp.sum(1.0 - batch["char_padding"], -1)
  # A transcript that no longer fits its time has no probability: nothing to learn from.
  possible_B = (letters_B > 0) & (letters_B * 1.3 < spoken_B)
  ctc = jnp.sum(jnp.where(possible_B, ctc_B, 0.0)) / jnp.maximum(
    jnp.sum(jnp.where(possible_B, letters_B, 0.0)), 1)
  return ctc + config.quantizer_weight * quantised * quantized.loss, (ctc, quantized)


@functools.partial(jax.jit, static_argnames=("config", "seed"), donate_argnames="state")
def train_step(state: State, batch: dict, config: SemanticTrainConfig, seed: int
               ) -> tuple[State, dict]:
  """One update, and of the codebook by its moving averages."""
  key, restart_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
  quantised = (state.step >= config.steps * config.free_share).astype(jnp.float32)
  grad_fn = jax.value_and_grad(_loss, has_aux=True)
  (_, (ctc, quantized)), grads = grad_fn(state.models, batch, quantised, config, key)
  updates, opt = _optimizer(config).update(grads, state.opt, state.models)
  models, books = optax.apply_updates(state.models, updates), state.books
  metrics = {"semantic": ctc, "quantizer": quantized.loss}
  if isinstance(models.quantizer, quantize.ResidualVQ):
    due = state.step % config.restart_every == 0
    books, codebook_QKE = quantize.learn_codebooks(
      books, quantized, due, config.restart_below, restart_key)
    models.quantizer.codebook_QKE[...] = codebook_QKE
    share_K = books.uses_QK[0] / jnp.sum(books.uses_QK[0])
    metrics["bits"] = -jnp.sum(share_K * jnp.log2(share_K + 1e-9))
  return State(state.step + 1, models, opt, books), metrics


def graft(codec: net.Codec, models: Models) -> None:
  """Puts the trained encoder and its codebook into a codec."""
  to, learned = codec.quantizer, models.quantizer
  codec.semantic = models.encoder
  to.w_semantic_in[...] = learned.w_semantic_in[...]
  if isinstance(to, quantize.ResidualVQ) and isinstance(learned, quantize.ResidualVQ):
    first_KE = learned.codebook_QKE[...][0]
    to.codebook_QKE[...] = to.codebook_QKE[...].at[0].set(first_KE)


def batches(data: np.ndarray, index: list[dict], frame_size: int, config: SemanticTrainConfig,
            seed: int) -> clips.Batches:
  """Batches of the clips that have a transcript.

  Raises:
    ValueError: none has.
  """
  room = clips.room_of(max(config.buckets), frame_size)
  told = [clip for clip in index if clip["chars"] and clip["length"] <= room]
  if not told:
    raise ValueError(
      f"no clip of at most {room} samples has a transcript in the Latin or Cyrillic alphabet, "
      'which the semantic codebook learns from; add "transcript" to the manifest\'s lines, or '
      "set semantic.steps to 0")
  return clips.Batches(data, told, frame_size=frame_size, buckets=config.buckets,
                       batch_frames=config.batch_frames, seed=seed)
