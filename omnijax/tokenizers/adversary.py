"""A critic of log-magnitude spectra: sharpens what a mean absolute error leaves blurred.

Shapes: B batch, F spectral frames, K frequency bins, H W its maps' height and width, C channels.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

CHANNELS = (24, 48, 48)


class Critic(nnx.Module):
  """Judges patches of about 0.1 s by 1.5 kHz with strided convolutions."""

  def __init__(self, *, rngs: nnx.Rngs):
    kernels = []
    for c_in, c_out in zip((2, *CHANNELS), (*CHANNELS, 1), strict=True):
      shape = (3, 5, c_in, c_out)
      scale = 1 / math.sqrt(math.prod(shape[:3]))
      kernels.append(nnx.Param(jax.random.normal(rngs.params(), shape) * scale))
    self.kernels_HWCC = nnx.List(kernels)

  def __call__(self, logmag_BFK: jax.Array) -> list[jax.Array]:
    """Feature maps of every layer, the last of which are the scores."""
    B, F, K = logmag_BFK.shape
    # where in the spectrum a patch lies matters, and convolutions can't tell
    height_BFK = jnp.broadcast_to(jnp.linspace(-1, 1, K)[None, None], (B, F, K))
    x_BHWC = jnp.stack([(logmag_BFK + 2.0) / 2.0, height_BFK], -1)
    maps = []
    for i, kernel in enumerate(self.kernels_HWCC):
      x_BHWC = jax.lax.conv_general_dilated(
        x_BHWC, kernel[...], (2, 3), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
      )
      if i < len(CHANNELS):
        x_BHWC = jax.nn.leaky_relu(x_BHWC, 0.2)
      maps.append(x_BHWC)
    return maps


def critic_loss(critic: Critic, real_BFK: jax.Array, fake_BFK: jax.Array) -> jax.Array:
  """Hinge loss of the critic (Lim and Ye 2017); both inputs as constants."""
  real, fake = (critic(jax.lax.stop_gradient(x))[-1] for x in (real_BFK, fake_BFK))
  return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))


def codec_loss(critic: Critic, real_BFK: jax.Array, fake_BFK: jax.Array) -> jax.Array:
  """What the codec minimises: to please the critic, and to match what it sees in the original."""
  critic = jax.lax.stop_gradient(critic)
  real, fake = critic(jax.lax.stop_gradient(real_BFK)), critic(fake_BFK)
  gaps = [
    jnp.mean(jnp.abs(a - b)) / (jnp.mean(jnp.abs(a)) + 1e-3)
    for a, b in zip(real[:-1], fake[:-1], strict=True)
  ]
  return -jnp.mean(fake[-1]) + 2.0 * sum(gaps[1:], gaps[0])
