"""A model as generation reads it."""

import math

import jax
import jax.numpy as jnp

from omnijax.kernels import quantized
from omnijax.model.transformer import Omni
from omnijax.sharding import axes_of

_FLOAT32 = ("gain", "router")  # parts of names


def mesh_of(model: Omni) -> jax.sharding.Mesh:
  """Where a model lies."""
  placed = model.head_DV[...].sharding
  assert isinstance(placed, jax.sharding.NamedSharding)
  assert isinstance(placed.mesh, jax.sharding.Mesh)
  return placed.mesh


def ways(model: Omni) -> int:
  """Over how many devices it shares out a batch."""
  axes = axes_of(model.rules("batch")[0])
  return math.prod(mesh_of(model).shape[a] for a in axes)


def prepare(model: Omni, *, int8: bool = False) -> Omni:
  """The same function with fewer bytes to read in each step, its arrays shared where they can be.

  Weights are in the computation's type already, and what codes of images look like is in the tables
  already, to which training adds it each time. Nothing that is computed changes, but for products
  that are rounded to 8 bits in training: here they are not, since rounding weights costs more than
  reading them.

  Args:
    model: as trained.
    int8: the weights of the trunk's dense layers and of the head are rounded to 8 bits, with a
      scale for each output: a quarter of float32's bytes, and about 1 % off.

  Raises:
    ValueError: int8 of a model of experts.
  """
  if int8 and model.cfg.experts:
    raise ValueError(f"the model has {model.cfg.experts} experts, whose weights can't be rounded "
                     "to 8 bits here; leave out int8.")
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

  made = jax.tree_util.tree_map_with_path(cast, made)
  if int8:
    attn, mlp = made.blocks.attn, made.blocks.mlp
    for param, lead, inputs in [(attn.w_q_DNH, 1, 1), (attn.w_k_DKH, 1, 1), (attn.w_v_DKH, 1, 1),
                                (attn.w_o_NHD, 1, 2), (mlp.w_gate_DF, 1, 1), (mlp.w_up_DF, 1, 1),
                                (mlp.w_down_FD, 1, 1), (made.head_DV, 0, 1)]:
      dims = tuple(range(lead, lead + inputs))
      param.set_value(jax.jit(quantized.rounded, static_argnames="dims")(param[...], dims=dims))
  return made
