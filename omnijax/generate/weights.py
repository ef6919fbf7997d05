"""A model as generation reads it."""

import jax
import jax.numpy as jnp

from omnijax.model.transformer import Omni

_FLOAT32 = ("gain", "router")  # parts of names


def prepare(model: Omni) -> Omni:
  """The same function with fewer bytes to read in each step, its arrays shared where they can be.

  Weights are in the computation's type already, and what codes of images look like is in the tables
  already, to which training adds it each time. Nothing that is computed changes, but for products
  that are rounded to 8 bits in training: here they are not, since rounding weights costs more than
  reading them.
  """
  made = jax.tree.map(lambda x: x, model)  # other modules, the same arrays
  made.embed.main_VD[...] = jax.jit(lambda m: m.embed.table())(model)
  made.head_DV[...] = jax.jit(lambda m: m.head())(model)
  made.embed.image_AD = made.embed.fixed_VA = made.image_AD = None
  for layer in filter(None, (made.blocks.attn, made.blocks.mlp)):
    layer.kind = "dtype"
  dtype = jnp.dtype(model.cfg.dtype)

  def cast(path: tuple, x: jax.Array) -> jax.Array:
    name = jax.tree_util.keystr(path)
    return x if any(part in name for part in _FLOAT32) else x.astype(dtype)

  return jax.tree_util.tree_map_with_path(cast, made)
