"""Network of the speech codec: magnitudes to vectors at 12.5 Hz, and back to magnitudes.

Shapes: B batch, T codec frames, S spectral frames of a codec frame, F = T * S, K frequency bins,
C narrow dim, D dim, E hidden dim, J taps, P = J - 1 past positions, N layers.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from omnijax.tokenizers import quantize, spectral


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioConfig:
  """Architecture of the codec; the default is the one that ships."""

  sample_rate: int = 16000
  frame_size: int = 1280
  window: int = 512
  hop: int = 128
  mels: int = 80
  dim: int = 384
  narrow_dim: int = 128
  narrow_layers_in: int = 1
  narrow_layers_out: int = 2
  encoder_layers: int = 3
  decoder_layers: int = 4
  semantic_narrow_dim: int = 96
  semantic_dim: int = 256
  semantic_layers: int = 4
  kernel: int = 5
  codebooks: int = 12
  codes: int = 1024
  code_dim: int = 64
  fsq_levels: tuple[int, ...] = ()
  phase_iterations: int = 16
  phase_momentum: float = 0.9

  def __post_init__(self):
    if self.frame_size % self.hop:
      raise ValueError(f"frame_size={self.frame_size} is not a multiple of hop={self.hop}")
    if self.kernel < 2:
      raise ValueError(f"kernel={self.kernel}; want at least 2")
    _ = self.stft, self.quantizer

  @property
  def stft(self) -> spectral.Stft:
    return spectral.Stft(
      sample_rate=self.sample_rate, window=self.window, hop=self.hop, mels=self.mels
    )

  @property
  def quantizer(self) -> quantize.QuantizerConfig:
    return quantize.QuantizerConfig(
      dim=self.dim,
      semantic_dim=self.semantic_dim,
      codebooks=self.codebooks,
      codes=self.codes,
      code_dim=self.code_dim,
      fsq_levels=self.fsq_levels,
    )

  @property
  def spectra(self) -> int:
    """Spectral frames of a codec frame."""
    return self.frame_size // self.hop


def dense(rngs: nnx.Rngs, rows: int, columns: int, scale: float = 1.0) -> nnx.Param:
  draw = jax.random.normal(rngs.params(), (rows, columns))
  return nnx.Param(draw * scale / math.sqrt(rows))


def rms_norm(x: jax.Array) -> jax.Array:
  return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


class Block(nnx.Module):
  """Causal depthwise convolution over time, then an MLP, around a residual (ConvNeXt)."""

  def __init__(self, dim: int, kernel: int, expansion: int, *, rngs: nnx.Rngs):
    # starts as the identity in time: the newest tap one, the others near zero
    taps = 0.1 * jax.random.normal(rngs.params(), (kernel, dim)) / math.sqrt(kernel)
    self.taps_JD = nnx.Param(taps.at[-1].add(1.0))
    self.bias_D = nnx.Param(jnp.zeros(dim))
    self.w_up_DE = dense(rngs, dim, dim * expansion)
    self.b_up_E = nnx.Param(jnp.zeros(dim * expansion))
    self.w_down_ED = dense(rngs, dim * expansion, dim, 0.5)

  def __call__(self, x_BTD: jax.Array, past_BPD: jax.Array) -> tuple[jax.Array, jax.Array]:
    T, taps_JD = x_BTD.shape[1], self.taps_JD[...]
    h_BTD = jnp.concatenate([past_BPD, rms_norm(x_BTD)], 1)
    past_BPD = h_BTD[:, T:]
    terms = [h_BTD[:, j : j + T] * taps_JD[j][None, None] for j in range(taps_JD.shape[0])]
    h_BTD = sum(terms[1:], terms[0]) + self.bias_D[...][None, None]
    h_BTE = jax.nn.gelu(h_BTD @ self.w_up_DE[...] + self.b_up_E[...][None, None])
    return x_BTD + h_BTE @ self.w_down_ED[...], past_BPD


def stack(layers: int, dim: int, kernel: int, expansion: int, *, rngs: nnx.Rngs) -> Block:
  """Blocks with a leading axis of layers, for `run_stack`."""
  return jax.vmap(lambda r: Block(dim, kernel, expansion, rngs=r))(rngs.split(layers))


def run_stack(blocks: Block, x_BTD: jax.Array, past_NBPD: jax.Array):
  """Applies stacked blocks; returns the result and each layer's new past."""

  def body(x_BTD, layer):
    block, past_BPD = layer
    return block(x_BTD, past_BPD)

  return jax.lax.scan(body, x_BTD, (blocks, past_NBPD))


def silence(blocks: Block, batch: int) -> jax.Array:
  """The past [N, B, P, D] of stacked blocks before anything was heard."""
  N, J, D = blocks.taps_JD.shape
  return jnp.zeros((N, batch, J - 1, D))


# Log magnitudes are about -2 +- 2.
_CENTRE, _SPREAD = -2.0, 2.0


class Encoder(nnx.Module):
  """Log magnitudes to acoustic vectors at the codec's frame rate."""

  def __init__(self, c: AudioConfig, *, rngs: nnx.Rngs):
    self.config = c
    self.w_in_KC = dense(rngs, c.stft.bins, c.narrow_dim)
    self.narrow = stack(c.narrow_layers_in, c.narrow_dim, c.kernel, 2, rngs=rngs)
    self.w_join = dense(rngs, c.spectra * c.narrow_dim, c.dim)
    self.wide = stack(c.encoder_layers, c.dim, c.kernel, 4, rngs=rngs)
    self.w_out_DD = dense(rngs, c.dim, c.dim)

  def init_state(self, batch: int):
    return silence(self.narrow, batch), silence(self.wide, batch)

  def __call__(self, logmag_BFK: jax.Array, state):
    x_BFC = (logmag_BFK - _CENTRE) / _SPREAD @ self.w_in_KC[...]
    x_BTD, state = _joined(self, x_BFC, state)
    return x_BTD @ self.w_out_DD[...], state


class SemanticEncoder(nnx.Module):
  """Log mel magnitudes to vectors of what is said, at the codec's frame rate."""

  def __init__(self, c: AudioConfig, *, rngs: nnx.Rngs):
    self.config = c
    self.w_in_MC = dense(rngs, c.mels, c.semantic_narrow_dim)
    self.narrow = stack(2, c.semantic_narrow_dim, c.kernel, 2, rngs=rngs)
    self.w_join = dense(rngs, c.spectra * c.semantic_narrow_dim, c.semantic_dim)
    self.wide = stack(c.semantic_layers, c.semantic_dim, c.kernel, 2, rngs=rngs)

  def init_state(self, batch: int):
    return silence(self.narrow, batch), silence(self.wide, batch)

  def __call__(self, mel_BFM: jax.Array, state):
    return _joined(self, (mel_BFM - _CENTRE) / _SPREAD @ self.w_in_MC[...], state)


def _joined(encoder: Encoder | SemanticEncoder, x_BFC: jax.Array, state):
  """Narrow layers on spectra, those of a codec frame joined, wide layers on codec frames."""
  B, F, _ = x_BFC.shape
  x_BFC, narrow = run_stack(encoder.narrow, x_BFC, state[0])
  x_BTC = rms_norm(x_BFC).reshape(B, F // encoder.config.spectra, -1)
  x_BTD, wide = run_stack(encoder.wide, x_BTC @ encoder.w_join[...], state[1])
  return rms_norm(x_BTD), (narrow, wide)


class Decoder(nnx.Module):
  """Vectors at the codec's frame rate to log magnitudes."""

  def __init__(self, c: AudioConfig, *, rngs: nnx.Rngs):
    self.config = c
    self.w_in_DD = dense(rngs, c.dim, c.dim)
    self.wide = stack(c.decoder_layers, c.dim, c.kernel, 4, rngs=rngs)
    self.w_split = dense(rngs, c.dim, c.spectra * c.narrow_dim)
    self.narrow = stack(c.narrow_layers_out, c.narrow_dim, c.kernel, 2, rngs=rngs)
    self.w_out_CK = dense(rngs, c.narrow_dim, c.stft.bins, 0.5)
    self.b_out_K = nnx.Param(jnp.zeros(c.stft.bins))

  def init_state(self, batch: int):
    return silence(self.wide, batch), silence(self.narrow, batch)

  def __call__(self, z_BTD: jax.Array, state):
    c, (B, T, _) = self.config, z_BTD.shape
    x_BTD, wide = run_stack(self.wide, z_BTD @ self.w_in_DD[...], state[0])
    x_BFC = (rms_norm(x_BTD) @ self.w_split[...]).reshape(B, T * c.spectra, c.narrow_dim)
    x_BFC, narrow = run_stack(self.narrow, x_BFC, state[1])
    out_BFK = rms_norm(x_BFC) @ self.w_out_CK[...] + self.b_out_K[...][None, None]
    return out_BFK * _SPREAD + _CENTRE, (wide, narrow)


class Codec(nnx.Module):
  """Encoders of sound and of what is said, quantiser and decoder."""

  def __init__(self, config: AudioConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.encoder = Encoder(config, rngs=rngs)
    self.semantic = SemanticEncoder(config, rngs=rngs)
    self.quantizer = quantize.quantizer(config.quantizer, rngs=rngs)
    self.decoder = Decoder(config, rngs=rngs)
