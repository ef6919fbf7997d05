"""Network of the speech codec: magnitudes to vectors at 12.5 Hz, and back to magnitudes.

Shapes: B batch, T codec frames, S spectral frames of a codec frame, F = T * S, K frequency bins,
M mel bands, C narrow dim, D dim, E hidden dim, J taps, P = J - 1 past positions, N layers.
"""

import dataclasses
import itertools
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
  semantic_channels: tuple[int, ...] = (8, 24, 40)  # of convolutions over time and bands
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
    if self.spectra % 2 or not self.semantic_channels:
      raise ValueError(
        f"frame_size={self.frame_size} holds {self.spectra} spectra and semantic_channels="
        f"{self.semantic_channels}; want an even number of spectra, and at least one convolution")
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
    c, (B, F, _) = self.config, logmag_BFK.shape
    x_BFC = (logmag_BFK - _CENTRE) / _SPREAD @ self.w_in_KC[...]
    x_BFC, narrow = run_stack(self.narrow, x_BFC, state[0])
    x_BTC = rms_norm(x_BFC).reshape(B, F // c.spectra, -1)
    x_BTD, wide = run_stack(self.wide, x_BTC @ self.w_join[...], state[1])
    return rms_norm(x_BTD) @ self.w_out_DD[...], (narrow, wide)


class Convolution(nnx.Module):
  """Causal convolution over time and mel bands, each spectrum normalised, then GELU."""

  def __init__(self, channels: tuple[int, int], stride: int, bands: int, *, rngs: nnx.Rngs):
    self.stride, self.channels = stride, channels[0]  # the stride of time; that of bands is 2
    draw = jax.random.normal(rngs.params(), (3, bands, *channels))
    self.taps_JJIO = nnx.Param(draw / math.sqrt(3 * bands * channels[0]))
    self.gain_O = nnx.Param(jnp.ones(channels[1]))
    self.bias_O = nnx.Param(jnp.zeros(channels[1]))

  def __call__(self, x_BFMI: jax.Array, past_BPMI: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BFMI = jnp.concatenate([past_BPMI, x_BFMI], 1)
    margin = self.taps_JJIO.shape[1] // 2
    y_BFMO = jax.lax.conv_general_dilated(
      x_BFMI, self.taps_JJIO[...], (self.stride, 2), ((0, 0), (margin, margin)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y_BFMO -= jnp.mean(y_BFMO, (2, 3), keepdims=True)
    # The floor keeps silence from being blown up.
    y_BFMO *= jax.lax.rsqrt(jnp.mean(y_BFMO * y_BFMO, (2, 3), keepdims=True) + 0.1)
    shaped = lambda p_O: p_O[...][None, None, None]
    y_BFMO = jax.nn.gelu(y_BFMO * shaped(self.gain_O) + shaped(self.bias_O))
    return y_BFMO, x_BFMI[:, x_BFMI.shape[1] - past_BPMI.shape[1] :]


class SemanticEncoder(nnx.Module):
  """Log mel magnitudes to vectors of what is said, at the codec's frame rate.

  Convolutions over time and bands come first, since another throat moves formants up or down.
  """

  def __init__(self, c: AudioConfig, *, rngs: nnx.Rngs):
    self.config = c
    pairs = itertools.pairwise((1, *c.semantic_channels))
    self.convolutions = nnx.List(
      [Convolution(p, 1 if i else 2, 3 if i else 5, rngs=rngs) for i, p in enumerate(pairs)])
    joined = c.spectra // 2 * _halved(c.mels, len(c.semantic_channels)) * c.semantic_channels[-1]
    self.w_join = dense(rngs, joined, c.semantic_dim)
    self.wide = stack(c.semantic_layers, c.semantic_dim, c.kernel, 2, rngs=rngs)

  def init_state(self, batch: int):
    """The batch is the second dim, as in the state of all layers."""
    pasts = [jnp.zeros((1, batch, 3 - layer.stride, _halved(self.config.mels, i), layer.channels))
             for i, layer in enumerate(self.convolutions)]
    return tuple(pasts), silence(self.wide, batch)

  def __call__(self, mel_BFM: jax.Array, state):
    B, F, _ = mel_BFM.shape
    T, pasts = F // self.config.spectra, []
    x_BFMC = ((mel_BFM - _CENTRE) / _SPREAD)[..., None]
    for layer, past_1BPMC in zip(self.convolutions, state[0], strict=True):
      x_BFMC, past_BPMC = layer(x_BFMC, past_1BPMC[0])
      pasts.append(past_BPMC[None])
    x_ND = x_BFMC.reshape(B * T, -1) @ self.w_join[...]
    x_BTD, wide = run_stack(self.wide, x_ND.reshape(B, T, -1), state[1])
    return rms_norm(x_BTD), (tuple(pasts), wide)


def _halved(bands: int, times: int) -> int:
  """Bands after so many strides of 2."""
  return -(-bands // 2**times)


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
