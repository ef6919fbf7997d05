"""What generation carries from step to step: the key-value cache and where each row is in it.

L layers  B rows  S positions of the cache  K kv heads  H head dim
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from omnijax.model.attention import Cache
from omnijax.model.transformer import Omni


@functools.partial(jax.tree_util.register_dataclass,
                   data_fields=["cache", "length_B", "high_B"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class State:
  """A batch of streams, each of its own length; of more than S positions the last S are kept."""

  cache: Cache  # leaves [L, B, K, S, H]
  length_B: jax.Array  # int32, positions so far
  high_B: jax.Array  # int32, most positions that there ever were

  @property
  def positions(self) -> int:
    """S, the most positions that are kept of a row."""
    return self.cache.k_BKSH.shape[3]


@functools.partial(jax.jit, static_argnames=("rows", "positions", "int8"))
def empty(model: Omni, *, rows: int, positions: int, int8: bool = False) -> State:
  """Streams without a position, in the model's sharding.

  Args:
    model: its shapes, and the computation's type, which the cache has, too.
    rows: B.
    positions: S, at least the model's attention window.
    int8: keys and values are rounded to 8 bits.
  """
  cfg, rules = model.cfg, model.rules
  shape = (cfg.layers, rows, cfg.kv_heads, positions, cfg.head_dim)
  axes = rules("layers", "batch", "kv_heads", None, None)
  dtype = jnp.int8 if int8 else jnp.dtype(cfg.dtype)
  zeros = lambda: jnp.zeros(shape, dtype, out_sharding=axes)
  ones = lambda: jnp.ones((*shape[:-1], 1), jnp.float32, out_sharding=axes) if int8 else None
  none = lambda: jnp.zeros(rows, jnp.int32, out_sharding=rules("batch"))
  return State(Cache(zeros(), zeros(), ones(), ones()), none(), none())


def reset(state: State, mask_B: jax.Array) -> State:
  """Empties the masked rows; what their cache holds is never seen again."""
  return rewind(state, jnp.where(mask_B, 0, state.length_B))


def rewind(state: State, length_B: jax.Array) -> State:
  """Rows that have no more than so many positions: what came after is never seen again.

  Of a row that had more than S, what those wrote over is gone, too.
  """
  high_B = jnp.where(length_B == 0, 0, state.high_B)
  return dataclasses.replace(state, length_B=jnp.minimum(length_B, state.length_B), high_B=high_B)


@functools.partial(jax.jit, static_argnames="positions")
def grow(state: State, *, positions: int) -> State:
  """The same streams, none of which has more positions than are kept, in a larger cache."""
  more = positions - state.positions
  pad = lambda x_LBKSH: jnp.pad(x_LBKSH, ((0, 0), (0, 0), (0, 0), (0, more), (0, 0)))
  return dataclasses.replace(state, cache=jax.tree.map(pad, state.cache))
