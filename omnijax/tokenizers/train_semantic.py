"""Trains the codec's semantic encoder and first codebook: what is said, whoever says it.

From the first codebook alone, in spectra disguised as other throats, speeds and gaps (SpecAugment,
Park et al. 2019), a reader must spell the transcript (CTC, Graves et al. 2006) and name it among
those that recur. Naming is learned several times faster than spelling. Nothing is
reconstructed here, so nothing but words is worth coding.

Shapes: as in codec.py; M mel bands, N = B * T vectors, X CTC steps, U characters of a transcript,
W recurring transcripts.
"""

import collections
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
_PLACES = (0.15, 0.4, 0.65, 0.95)  # in what is said, where names are looked for
_SILENCE = -4.5  # a quiet log magnitude, in the place of what is hidden


@dataclasses.dataclass(frozen=True, kw_only=True)
class SemanticTrainConfig:
  """The first part of a codec's training; without steps, the codes are left as they are."""

  steps: int = 5500
  batch_frames: int = 512
  # Codec frames of a clip; longer clips are left out. On sentences alone it never took off.
  buckets: tuple[int, ...] = (16,)
  peak_lr: float = 2e-3
  warmup: int = 200
  weight_decay: float = 0.02
  dropout: float = 0.1  # of what the reader sees
  recurring: int = 20  # clips that make a transcript one to be named
  spelling_weight: float = 0.5
  naming_weight: float = 1.0
  average: float = 0.995  # of the late weights, which are what is kept
  free_share: float = 0.3  # of the steps, first, in which vectors are read unquantised
  quantizer_weight: float = 0.25
  restart_every: int = 25
  restart_below: float = 0.05  # of uniform use


class Reader(nnx.Module):
  """Reads vectors of the first codebook; not part of a codec."""

  def __init__(self, c: net.AudioConfig, names: int, *, rngs: nnx.Rngs):
    D = c.semantic_dim
    self.w_in_ED = net.dense(rngs, c.code_dim, D)
    self.blocks = net.stack(2, D, c.kernel, 2, rngs=rngs)
    self.w_out = net.dense(rngs, D, CTC_RATE * len(clips.ALPHABET))
    self.w_name = net.dense(rngs, len(_PLACES) * D, names, 0.1)

  def __call__(self, first_BTE: jax.Array, frames_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits of characters [B, T * CTC_RATE, characters], and of names [B, W].

    frames_B: codec frames of each that hold speech, where names are looked for.
    """
    B, T, _ = first_BTE.shape
    past = net.silence(self.blocks, B)
    x_BTD, _ = net.run_stack(self.blocks, first_BTE @ self.w_in_ED[...], past)
    x_BTD = net.rms_norm(x_BTD)
    spelt_BXC = (x_BTD @ self.w_out[...]).reshape(B, T * CTC_RATE, len(clips.ALPHABET))
    # Early, middle and late in what is said: the order of the sounds is kept.
    place_BT = (jnp.arange(T)[None] + 0.5) / frames_B[:, None]
    near_BTG = jnp.exp(-0.5 * ((place_BT[..., None] - jnp.array(_PLACES)[None, None]) / 0.15) ** 2)
    near_BTG *= (place_BT < 1.3)[..., None]
    near_BTG /= jnp.sum(near_BTG, 1, keepdims=True) + 1e-6
    pooled_BGD = jnp.einsum("btg,btd->bgd", near_BTG, x_BTD)
    return spelt_BXC, pooled_BGD.reshape(B, -1) @ self.w_name[...]


class Models(nnx.Module):
  """What is trained: the encoder, a quantiser of one codebook, and the reader."""

  def __init__(self, c: net.AudioConfig, names: int, *, rngs: nnx.Rngs):
    self.encoder = net.SemanticEncoder(c, rngs=rngs)
    one = dataclasses.replace(c.quantizer, codebooks=1)
    self.quantizer = quantize.quantizer(one, rngs=rngs)
    self.reader = Reader(c, names, rngs=rngs)


@functools.partial(jax.tree_util.register_dataclass,
                   data_fields=["step", "models", "mean", "opt", "books"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class State:
  """Everything that training carries."""

  step: jax.Array
  models: Models
  mean: Models  # of the late ones
  opt: optax.OptState
  books: quantize.Codebooks


def _optimizer(config: SemanticTrainConfig) -> optax.GradientTransformation:
  lr = optax.warmup_cosine_decay_schedule(
    0.0, config.peak_lr, config.warmup, config.steps, config.peak_lr * 0.01)
  return optax.chain(optax.clip_by_global_norm(1.0),
                     optax.adamw(lr, b1=0.9, b2=0.99, weight_decay=config.weight_decay))


def init(config: SemanticTrainConfig, codec: net.AudioConfig, names: int, seed: int) -> State:
  """State before the first step; names: recurring transcripts, of `batches`."""
  models = Models(codec, max(names, 1), rngs=nnx.Rngs(seed))
  books = quantize.init_codebooks(models.quantizer.config)
  mean = jax.tree.map(jnp.copy, models)  # the step donates both
  return State(jnp.int32(0), models, mean, _optimizer(config).init(models), books)


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


def read(models: Models, mel_BFM: jax.Array, frames_B: jax.Array, quantised: jax.Array | float,
         dropout: float, key: jax.Array) -> tuple[jax.Array, jax.Array, quantize.Quantized]:
  """What the reader makes of spectra, and the quantisation."""
  B, c = mel_BFM.shape[0], models.encoder.config
  meaning_BTD, _ = models.encoder(mel_BFM, models.encoder.init_state(B))
  N = B * meaning_BTD.shape[1]
  q = models.quantizer(meaning_BTD.reshape(N, -1), jnp.zeros((N, c.dim)), jnp.ones(N, jnp.int32))
  # The same gradient, but unquantised vectors while the codebook is still young.
  stop = jax.lax.stop_gradient
  first_NE = q.first_NE + (1 - quantised) * stop(q.latents_QNE[0] - q.first_NE)
  keep_NE = jax.random.bernoulli(key, 1 - dropout, first_NE.shape) / (1 - dropout)
  return *models.reader((first_NE * keep_NE).reshape(B, -1, c.code_dim), frames_B), q


def _loss(models: Models, batch: dict, quantised: jax.Array, config: SemanticTrainConfig,
          key: jax.Array):
  c = models.encoder.config
  wave_BL = jnp.pad(batch["wave"], ((0, 0), (c.stft.overlap, 0)))
  mel_BFM = spectral.log_mel(spectral.log_magnitude(wave_BL, c.stft), c.stft)
  disguise_key, drop_key = jax.random.split(key)
  mel_BFM, length_B = disguised(mel_BFM, batch["frames"] * float(c.spectra), disguise_key)
  frames_B = length_B / c.spectra
  spelt_BXC, named_BW, quantized = read(models, mel_BFM, frames_B, quantised, config.dropout,
                                        drop_key)
  X = spelt_BXC.shape[1]
  spoken_B = frames_B * CTC_RATE
  silent_BX = (jnp.arange(X)[None] >= spoken_B[:, None]).astype(jnp.float32)
  ctc_B = optax.ctc_loss(spelt_BXC, silent_BX, batch["chars"], batch["char_padding"])
  letters_B = jnp.sum(1.0 - batch["char_padding"], -1)
  # A transcript that no longer fits its time has no probability: nothing to learn from.
  possible_B = (letters_B > 0) & (letters_B * 1.3 < spoken_B)
  mean = lambda x_B, keep_B, of_B: jnp.sum(jnp.where(keep_B, x_B, 0.0)) / jnp.maximum(
    jnp.sum(jnp.where(keep_B, of_B, 0.0)), 1)
  wanted_BW = optax.smooth_labels(jax.nn.one_hot(batch["word"], named_BW.shape[1]), 0.05)
  named_B = optax.softmax_cross_entropy(named_BW, wanted_BW)
  parts = {"semantic": mean(ctc_B, possible_B, letters_B),
           "naming": mean(named_B, batch["word"] >= 0, jnp.ones_like(named_B)),
           "quantizer": quantized.loss}
  total = config.spelling_weight * parts["semantic"] + config.naming_weight * parts["naming"]
  return total + config.quantizer_weight * quantised * quantized.loss, (parts, quantized)


@functools.partial(jax.jit, static_argnames=("config", "seed"), donate_argnames="state")
def train_step(state: State, batch: dict, config: SemanticTrainConfig, seed: int
               ) -> tuple[State, dict]:
  """One update, and of the codebook by its moving averages."""
  key, restart_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
  quantised = (state.step >= config.steps * config.free_share).astype(jnp.float32)
  grad_fn = jax.value_and_grad(_loss, has_aux=True)
  (_, (metrics, quantized)), grads = grad_fn(state.models, batch, quantised, config, key)
  updates, opt = _optimizer(config).update(grads, state.opt, state.models)
  models, books = optax.apply_updates(state.models, updates), state.books
  if isinstance(models.quantizer, quantize.ResidualVQ):
    due = state.step % config.restart_every == 0
    books, codebook_QKE = quantize.learn_codebooks(
      books, quantized, due, config.restart_below, restart_key)
    models.quantizer.codebook_QKE[...] = codebook_QKE
    share_K = books.uses_QK[0] / jnp.sum(books.uses_QK[0])
    metrics["bits"] = -jnp.sum(share_K * jnp.log2(share_K + 1e-9))
  mean = jax.tree.map(lambda m, p: m + (1 - config.average) * (p - m), state.mean, models)
  return State(state.step + 1, models, mean, opt, books), metrics


def graft(codec: net.Codec, models: Models) -> None:
  """Puts the trained encoder and its codebook into a codec."""
  to, learned = codec.quantizer, models.quantizer
  codec.semantic = models.encoder
  to.w_semantic_in[...] = learned.w_semantic_in[...]
  if isinstance(to, quantize.ResidualVQ) and isinstance(learned, quantize.ResidualVQ):
    first_KE = learned.codebook_QKE[...][0]
    to.codebook_QKE[...] = to.codebook_QKE[...].at[0].set(first_KE)


def batches(data: np.ndarray, index: list[dict], frame_size: int, config: SemanticTrainConfig,
            seed: int) -> tuple[clips.Batches, int]:
  """Batches of the clips that have a transcript, and the number of transcripts that recur.

  Raises:
    ValueError: none has one.
  """
  room = clips.room_of(max(config.buckets), frame_size)
  told = [clip for clip in index if clip["chars"] and clip["length"] <= room]
  if not told:
    raise ValueError(
      f"no clip of at most {room} samples has a transcript in the Latin or Cyrillic alphabet, "
      'which the semantic codebook learns from; add "transcript" to the manifest\'s lines, or '
      "set semantic.steps to 0")
  counts = collections.Counter(clip["chars"] for clip in told)
  names = sorted(text for text, count in counts.items() if count >= config.recurring)
  number = {text: i for i, text in enumerate(names)}
  told = [clip | {"word": number.get(clip["chars"], -1), "weight": clip["semantic_weight"]}
          for clip in told]
  return clips.Batches(data, told, frame_size=frame_size, buckets=config.buckets,
                       batch_frames=config.batch_frames, seed=seed), len(names)
