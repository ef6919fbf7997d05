"""Keys and values of whole rows, from devices that have two runs of a row's positions each.

`sharding.Rules.order` says which: of 2c runs, device i of c has i and 2c - 1 - i.

B batch  T positions of a device  S positions of a row  K kv heads  H head dim
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

Axis = str | tuple[str, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def whole(axis: Axis, x_BTKH: jax.Array) -> jax.Array:
  """[B, S, K, H], in the order of the row; `axis` is that of the mesh which rows lie along.

  Runs lead on the wire: along another dim XLA:TPU would add up gradients by a whole all-reduce.
  And they are moved to their places one at a time: as one index, they would be moved four times.
  """
  B, T, K, H = x_BTKH.shape
  c, R = jax.lax.axis_size(axis), T // 2
  x_2BKRH = jnp.transpose(x_BTKH.reshape(B, 2, R, K, H), (1, 0, 3, 2, 4))
  there_nMRH = jax.lax.all_gather(x_2BKRH.reshape(-1, H), axis, tiled=True).reshape(
    2 * c, B * K, R, H)
  x_MnRH = _move(there_nMRH, np.argsort(_order(c)), 0, 1)
  return jnp.moveaxis(x_MnRH.reshape(B, K, -1, H), 1, 2)


def _forward(axis: Axis, x_BTKH: jax.Array) -> tuple[jax.Array, None]:
  return whole(axis, x_BTKH), None


def _backward(axis: Axis, _: None, slope_BSKH: jax.Array) -> tuple[jax.Array]:
  B, S, K, H = slope_BSKH.shape
  c = jax.lax.axis_size(axis)
  R = S // (2 * c)
  slope_MnRH = jnp.moveaxis(slope_BSKH, 2, 1).reshape(B * K, 2 * c, R, H)
  sent_nMRH = _move(slope_MnRH, _order(c), 1, 0)
  sum_XH = jax.lax.psum_scatter(sent_nMRH.reshape(-1, H), axis, tiled=True)
  sum_B2RKH = jnp.transpose(sum_XH.reshape(2, B, K, R, H), (1, 0, 3, 2, 4))
  return sum_B2RKH.reshape(B, 2 * R, K, H),


whole.defvjp(_forward, _backward)


def _order(ways: int) -> np.ndarray:
  """Runs in the order of the devices that have them."""
  return np.array([run for i in range(ways) for run in (i, 2 * ways - 1 - i)])


def _move(x: jax.Array, places: np.ndarray, source: int, target: int) -> jax.Array:
  """The runs at these places along dim `source`, along dim `target`."""
  at = jnp.asarray(places)

  def one(j: jax.Array, y: jax.Array) -> jax.Array:
    run = jax.lax.dynamic_index_in_dim(x, at[j], source, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(y, run, j, target)

  shape = list(x.shape)
  shape.insert(target, shape.pop(source))
  return jax.lax.fori_loop(0, len(places), one, jax.lax.empty(tuple(shape), x.dtype))
