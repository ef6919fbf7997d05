"""What generation carries from step to step: the key-value cache and where each row is in it.

L layers  B rows  S positions of the cache  K kv heads  H head dim  D embed
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from omnijax.model.attention import Cache
from omnijax.model.transformer import Omni


@functools.partial(jax.tree_util.register_dataclass,
                   data_fields=["cache", "length_B", "hidden_BD"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class State:
  """A batch of streams. Rows have lengths of their own; each is written from index 0 on."""

  cache: Cache  # leaves [L, B, K, S, H]
  length_B: jax.Array  # int32, positions in the cache
  hidden_BD: jax.Array  # output of the trunk at the last of them

  @property
  def positions(self) -> int:
    """S, the most positions that a row can have."""
    return self.cache.k_BKSH.shape[3]


@functools.partial(jax.jit, static_argnames=("rows", "positions"))
def empty(model: Omni, *, rows: int, positions: int) -> State:
  """Streams without a position, in the computation's type and the model's sharding."""
  cfg, rules = model.cfg, model.rules
  shape = (cfg.layers, rows, cfg.kv_heads, positions, cfg.head_dim)
  axes = rules("layers", "batch", "kv_heads", None, None)
  zeros = lambda: jnp.zeros(shape, jnp.dtype(cfg.dtype), out_sharding=axes)
  return State(Cache(zeros(), zeros()),
               jnp.zeros(rows, jnp.int32, out_sharding=rules("batch")),
               jnp.zeros((rows, cfg.dim), jnp.dtype(cfg.dtype),
                         out_sharding=rules("batch", "act_embed")))


def reset(state: State, mask_B: jax.Array) -> State:
  """Empties the masked rows; what their cache holds is never seen again."""
  return dataclasses.replace(state, length_B=jnp.where(mask_B, 0, state.length_B))


@functools.partial(jax.jit, static_argnames="positions")
def grow(state: State, *, positions: int) -> State:
  """The same streams in a larger cache."""
  more = positions - state.positions
  pad = lambda x_LBKSH: jnp.pad(x_LBKSH, ((0, 0), (0, 0), (0, 0), (0, more), (0, 0)))
  return dataclasses.replace(state, cache=Cache(*map(pad, state.cache)))
