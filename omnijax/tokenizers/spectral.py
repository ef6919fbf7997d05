"""Short-time Fourier analysis, and sound from magnitudes alone, in causal blocks.

Shapes: B batch, L samples, F spectral frames, W window, K = W/2+1 frequency bins, M mel bands.
A frame's window *ends* at its newest sample: frame f of a signal covers the W samples up to
(f + 1) * hop, the signal being preceded by silence. So analysis needs no future, and a sample is
final once the W / hop frames that touch it are known: a delay of W - hop samples.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

FLOOR = 5e-3  # added to magnitudes before the logarithm; a full-scale sine has about W / 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stft:
  """Geometry of the analysis."""

  sample_rate: int
  window: int
  hop: int
  mels: int

  def __post_init__(self):
    if self.window % 2 or self.window % self.hop or self.window < 2 * self.hop:
      raise ValueError(f"window={self.window}: want an even multiple (>= 2) of hop={self.hop}")

  @property
  def bins(self) -> int:
    return self.window // 2 + 1

  @property
  def overlap(self) -> int:
    """Samples a frame shares with its successor; also the delay of synthesis."""
    return self.window - self.hop

  @functools.cached_property
  def hann(self) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)).astype("f4")

  @functools.cached_property
  def mel_KM(self) -> np.ndarray:
    """Triangular filters on the HTK mel scale from 0 to half the sample rate, each of sum 1."""
    top = 2595 * np.log10(1 + self.sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, self.mels + 2) / 2595) - 1)
    # a band narrower than a bin would be empty: widen it to one bin on each side
    step = self.sample_rate / self.window
    low, mid, high = edges[:-2], edges[1:-1], edges[2:]
    low, high = np.minimum(low, mid - step), np.maximum(high, mid + step)
    freq = np.arange(self.bins)[:, None] * step
    rise, fall = (freq - low) / (mid - low), (high - freq) / (high - mid)
    weight = np.maximum(0, np.minimum(rise, fall))
    return (weight / weight.sum(0)).astype("f4")


def frames(x_BL: jax.Array, stft: Stft) -> jax.Array:
  """Windowed pieces [B, F, W] of a signal whose first `overlap` samples are history."""
  B, L = x_BL.shape
  r, F = stft.window // stft.hop, (L - stft.overlap) // stft.hop
  x_BGH = x_BL.reshape(B, F + r - 1, stft.hop)
  x_BFW = jnp.concatenate([x_BGH[:, i : i + F] for i in range(r)], -1)
  return x_BFW * jnp.asarray(stft.hann)[None, None]


def overlap_add(y_BFW: jax.Array, stft: Stft) -> jax.Array:
  """Sums pieces, `hop` apart, to a signal [B, F * hop + overlap]."""
  B, F, W = y_BFW.shape
  r = W // stft.hop
  y_BFrH = y_BFW.reshape(B, F, r, stft.hop)
  pads = [jnp.pad(y_BFrH[:, :, i], ((0, 0), (i, r - 1 - i), (0, 0))) for i in range(r)]
  return sum(pads[1:], pads[0]).reshape(B, (F + r - 1) * stft.hop)


def magnitude(x_BL: jax.Array, stft: Stft) -> jax.Array:
  """Magnitudes [B, F, K]; the first `overlap` samples are history."""
  return jnp.abs(jnp.fft.rfft(frames(x_BL, stft)))


def log_magnitude(x_BL: jax.Array, stft: Stft) -> jax.Array:
  """Natural logarithm of magnitude + FLOOR, [B, F, K]."""
  return jnp.log(magnitude(x_BL, stft) + FLOOR)


def log_mel(logmag_BFK: jax.Array, stft: Stft) -> jax.Array:
  """Mel bands [B, F, M] of log magnitudes (the mean of magnitude over each band, log)."""
  return jnp.log(jnp.exp(logmag_BFK) @ jnp.asarray(stft.mel_KM))


def _propagate(phase_BK, mag_BFK, stft: Stft):
  """First guess of phases: each bin follows the sinusoid of the spectral peak it belongs to.

  Source: single pass spectrogram inversion (Beauregard et al. 2015), vectorised: every bin points
  at its louder neighbour, and doubling the pointers climbs all bins to their peaks at once.
  """
  K = stft.bins
  k_11K = jnp.arange(K)[None, None]
  padded = jnp.pad(mag_BFK, ((0, 0), (0, 0), (1, 1)))
  left, right = padded[..., :-2], padded[..., 2:]
  peak = k_11K + jnp.where(right > jnp.maximum(mag_BFK, left), 1, 0)
  peak = peak - jnp.where((left > mag_BFK) & (left >= right), 1, 0)
  for _ in range(8):
    peak = jnp.take_along_axis(peak, peak, -1)
  a, b, c = (jnp.log(x + 1e-9) for x in (left, mag_BFK, right))
  shift = jnp.clip(0.5 * (a - c) / jnp.minimum(a - 2 * b + c, -1e-6), -0.5, 0.5)
  freq = jnp.take_along_axis(k_11K + shift, peak, -1)
  advance = 2 * jnp.pi * stft.hop / stft.window * freq
  # the Hann window is centred W/2 after the frame's start: neighbours of a peak alternate in sign
  parity = jnp.pi * ((k_11K - peak) % 2)

  def step(phase_BK, xs):
    peak_BK, advance_BK, parity_BK = xs
    phase_BK = jnp.take_along_axis(phase_BK, peak_BK, -1) + advance_BK + parity_BK
    return phase_BK, phase_BK

  xs = [x.transpose(1, 0, 2) for x in (peak, advance, parity)]
  return jax.lax.scan(step, phase_BK, xs)[1].transpose(1, 0, 2)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["past_BV", "guess_BV", "mag_BOK"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class PhaseState:
  """What the next block needs: V = overlap samples, O = V / hop frames."""

  past_BV: jax.Array  # the last samples that were given out
  guess_BV: jax.Array  # the samples after them, as far as known
  mag_BOK: jax.Array  # magnitudes of the frames that touch the guess


def init_phase(batch: int, stft: Stft) -> PhaseState:
  """State before the first block: silence."""
  past = jnp.zeros((batch, stft.overlap))
  return PhaseState(past, past, jnp.zeros((batch, stft.overlap // stft.hop, stft.bins)))


def invert_block(
  state: PhaseState, mag_BFK: jax.Array, stft: Stft, iterations: int, momentum: float
) -> tuple[PhaseState, jax.Array]:
  """Sound of the next F frames of magnitudes, `stft.overlap` samples late.

  Griffin-Lim iterations over the block alone: what was given out is fixed, what was only guessed
  is revised. Returns the new state and F * hop samples. Source: fast Griffin-Lim (Perraudin et
  al. 2013) in real-time blocks as in RTISI (Zhu et al. 2007).
  """
  V, old = stft.overlap, stft.overlap // stft.hop
  F = mag_BFK.shape[1]
  mag_BGK = jnp.concatenate([state.mag_BOK, mag_BFK], 1)
  hann_11W = jnp.asarray(stft.hann)[None, None]
  norm = overlap_add(jnp.broadcast_to(hann_11W**2, (1, old + F, stft.window)), stft)
  # at the open end few windows overlap: without a floor their noise would be blown up
  norm_1L = jnp.maximum(norm, 0.1)

  def signal(spec_BGK):
    y_BL = overlap_add(jnp.fft.irfft(spec_BGK, stft.window) * hann_11W, stft) / norm_1L
    return jnp.concatenate([state.past_BV, y_BL[:, V:]], 1)

  def spectrum(x_BL):
    return jnp.fft.rfft(frames(x_BL, stft))

  def project(spec_BGK):
    # cheaper than abs, which guards against overflow
    power_BGK = spec_BGK.real**2 + spec_BGK.imag**2
    return spec_BGK * (mag_BGK * jax.lax.rsqrt(power_BGK + 1e-18))

  def iterate(carry, _):
    spec_BGK, last_BGK = carry
    new_BGK = spectrum(signal(project(spec_BGK)))
    return (new_BGK + momentum * (new_BGK - last_BGK), new_BGK), None

  old_BOK = spectrum(jnp.concatenate([state.past_BV, state.guess_BV], 1))
  phase_BFK = _propagate(jnp.angle(old_BOK[:, -1]), mag_BFK, stft)
  spec_BGK = jnp.concatenate([old_BOK, mag_BFK * jnp.exp(1j * phase_BFK)], 1)
  (spec_BGK, _), _ = jax.lax.scan(iterate, (spec_BGK, spec_BGK), None, iterations)
  x_BL = signal(project(spec_BGK))
  out_BL = x_BL[:, V : V + F * stft.hop]
  new = PhaseState(x_BL[:, F * stft.hop : F * stft.hop + V], x_BL[:, -V:], mag_BGK[:, -old:])
  return new, out_BL
