"""Rotary positions with three numbers each: time, row, column (M-RoPE of Qwen2-VL).

B batch  S positions  N heads  H head dim  P rotary pairs (H / 2)
"""

import jax
import jax.numpy as jnp
import numpy as np


def angles(position_BS3: jax.Array, head_dim: int, theta: float,
           split: tuple[int, int, int]) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines [B, S, 1, P] of the turn of each rotary pair.

  Pairs are dealt to time, row and column in turn, `split` of each, so that every axis gets fast
  and slow pairs. Positions whose three numbers agree get the rotary embedding of RoFormer.
  """
  pairs = head_dim // 2
  deal = np.repeat(np.arange(3), split)
  axis_P = np.tile(deal, pairs // len(deal))
  speed_P = jnp.asarray(theta ** (-np.arange(pairs) / pairs), jnp.float32)
  number_BSP = position_BS3.astype(jnp.float32)[..., axis_P]
  angle_BS1P = (number_BSP * speed_P[None, None])[:, :, None]
  return jnp.cos(angle_BS1P), jnp.sin(angle_BS1P)


def rotate(x_BSNH: jax.Array, cos_BS1P: jax.Array, sin_BS1P: jax.Array) -> jax.Array:
  """Turns pair i, made of elements i and i + H/2, by its angle."""
  a, b = jnp.split(x_BSNH.astype(jnp.float32), 2, axis=-1)
  out = jnp.concatenate([a * cos_BS1P - b * sin_BS1P, b * cos_BS1P + a * sin_BS1P], -1)
  return out.astype(x_BSNH.dtype)
