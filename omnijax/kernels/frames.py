"""Audio frames to and from the positions of rows, where rows may be laid out over devices.

Frames are in the order of the row and known to every device of it; positions lie where
`sharding.Rules.order` puts them, so each device works on the frames whose positions it has.

B batch  S positions  T positions of a device  F frames  D embed  L = B * F
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from omnijax.sharding import axes_of


def scatter_add(x_BSD: jax.Array, at_BF: jax.Array, frame_BFD: jax.Array, *, order_S: np.ndarray
                ) -> jax.Array:
  """x plus each frame at its position; frames at position S are nowhere."""
  batch, seq, _ = jax.typeof(x_BSD).sharding.spec
  put = jax.vmap(lambda x_SD, at_F, frame_FD: x_SD.at[at_F].add(frame_FD, mode="drop"))
  if not seq:
    return put(x_BSD, at_BF, frame_BFD)

  @functools.partial(jax.shard_map, out_specs=jax.P(batch, seq, None),
                     in_specs=(jax.P(batch, seq, None), jax.P(batch), jax.P(batch)))
  def local(x_BTD, at_BF, frame_BFD):
    return put(x_BTD, _here(at_BF, order_S, x_BTD.shape[1], seq), frame_BFD)

  return local(x_BSD, at_BF, frame_BFD)


def gather(x_BSD: jax.Array, at_BF: jax.Array, *, order_S: np.ndarray) -> jax.Array:
  """x at each frame's position, [L, D], of which every device takes a part; 0 at position S."""
  batch, seq, _ = jax.typeof(x_BSD).sharding.spec
  pick = jax.vmap(lambda x_SD, at_F: x_SD.at[at_F].get(mode="fill", fill_value=0))
  if not seq:
    picked_BFD = pick(x_BSD, at_BF)
    return picked_BFD.reshape(-1, picked_BFD.shape[-1])

  @functools.partial(jax.shard_map, in_specs=(jax.P(batch, seq, None), jax.P(batch)),
                     out_specs=jax.P(axes_of(batch) + axes_of(seq)))
  def local(x_BTD, at_BF):
    mine_BFD = pick(x_BTD, _here(at_BF, order_S, x_BTD.shape[1], seq))
    return jax.lax.psum_scatter(mine_BFD.reshape(-1, mine_BFD.shape[-1]), seq, tiled=True)

  return local(x_BSD, at_BF)


def _here(at_BF: jax.Array, order_S: np.ndarray, here: int, seq: str) -> jax.Array:
  """Index of each position among this device's `here` ones, or `here` if it has it not."""
  laid_S = jnp.asarray(np.append(np.argsort(order_S), 2 * len(order_S)), jnp.int32)
  index_BF = laid_S[at_BF] - jax.lax.axis_index(seq) * here
  return jnp.where((index_BF >= 0) & (index_BF < here), index_BF, here)
