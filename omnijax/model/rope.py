"""Rotary positions with three numbers each: time, row, column (M-RoPE of Qwen2-VL).

B batch  S positions  N heads  H head dim  P rotary pairs (H / 2)
"""

import jax
import jax.numpy as jnp
import numpy as np

from omnijax.kernels import compiler


def angles(position_BS3: jax.Array, head_dim: int, theta: float,
           split: tuple[int, int, int]) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines [B, S, 1, H] of the turn of each rotary pair, once for each of its elements.

  Pairs are dealt to time, row and column in turn, `split` of each, so that every axis gets fast
  and slow pairs. Positions whose three numbers agree get the rotary embedding of RoFormer. Sines
  of the first half are negative, for `rotate`.
  """
  pairs = head_dim // 2
  deal = np.repeat(np.arange(3), split)
  axis_P = np.tile(deal, pairs // len(deal))
  speed_P = jnp.asarray(theta ** (-np.arange(pairs) / pairs), jnp.float32)
  number_BSP = position_BS3.astype(jnp.float32)[..., axis_P]
  angle_BS1P = (number_BSP * speed_P[None, None])[:, :, None]
  cos, sin = jnp.cos(angle_BS1P), jnp.sin(angle_BS1P)
  return jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1)


def rotate(x_BSNH: jax.Array, cos_BS1H: jax.Array, sin_BS1H: jax.Array) -> jax.Array:
  """Turns pair i, made of elements i and i + H/2, by its angle."""
  x32, swapped = x_BSNH.astype(jnp.float32), _swap(x_BSNH).astype(jnp.float32)
  return (x32 * cos_BS1H + swapped * sin_BS1H).astype(x_BSNH.dtype)


def _swap(x: jax.Array) -> jax.Array:
  """Exchanges the halves of the last dim.

  A TPU does so by a product with a permutation, which is exact, too: halves of vectors would go
  through memory, two thirds of the time of norm and rotation.
  """
  H = x.shape[-1]
  if compiler.platform() != "tpu":
    return jnp.roll(x, H // 2, -1)
  swap_HH = jnp.roll(jnp.eye(H, dtype=x.dtype), H // 2, -1)
  return jnp.einsum("bsnh,hk->bsnk", x, swap_HH, precision=jax.lax.Precision.HIGHEST)
