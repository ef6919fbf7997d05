"""Rows of a sharded table, gathered in the type of the computation, forwards and backwards.

V rows  D embed
"""

import functools

import jax
import jax.numpy as jnp

from omnijax.sharding import axes_of

_PIECE = 32_768  # rows or columns that are summed at once


def lookup(table_VD: jax.Array, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Rows [..., D] of a table for ids of any shape, laid out over devices as the ids are.

  The table travels in `dtype`, not in its own float32. Gradients are summed in float32 on each
  device, and then over devices in `dtype`.

  Args:
    table_VD: float32; V may be sharded, and D over axes that ids are sharded on, too.
    ids: int32.
    dtype: of the result.
  """
  how = jnp.dtype(dtype), len(table_VD), jax.typeof(table_VD).sharding.spec
  return _lookup(how, table_VD, ids)


def by_codebook(table_QCD: jax.Array, codes: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Rows [..., Q, D] of a table for each codebook, for codes [..., Q]."""
  Q, C, D = table_QCD.shape
  first_Q = (jnp.arange(Q) * C).reshape((1,) * (codes.ndim - 1) + (Q,))
  return lookup(table_QCD.reshape(Q * C, D), codes + first_Q, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lookup(how, table_VD, ids):
  dtype, _, (vocab, embed) = how
  spec = jax.typeof(ids).sharding.spec

  # Unchecked, here and below: over axes that ids aren't sharded on, every device has all rows.
  @functools.partial(jax.shard_map, in_specs=(jax.P(vocab, embed), spec),
                     out_specs=jax.P(*spec, None), check_vma=False)
  def local(table_VD, ids):
    table_VD = table_VD.astype(dtype)
    if embed:
      table_VD = jax.lax.all_gather(table_VD, embed, axis=1, tiled=True)
    index, here = _here(ids, table_VD.shape[0], vocab)
    rows = jnp.where(here[..., None], table_VD[index], 0)
    return jax.lax.psum(rows, vocab) if vocab else rows

  return local(table_VD, ids)


def _forward(how, table_VD, ids):
  return _lookup(how, table_VD, ids), ids


def _backward(how, ids, slope):
  dtype, rows, (vocab, embed) = how
  spec = jax.typeof(ids).sharding.spec
  axes = {a for s in spec for a in axes_of(s)}

  @functools.partial(jax.shard_map, in_specs=(jax.P(*spec, None), spec),
                     out_specs=jax.P(vocab, embed), check_vma=False)
  def local(slope, ids):
    size = rows // (jax.lax.axis_size(vocab) if vocab else 1)
    index, here = _here(ids, size, vocab)
    slope = jnp.where(here[..., None], slope.astype(jnp.float32), 0)
    sum_VD = jnp.zeros((size, slope.shape[-1]), jnp.float32).at[index].add(slope)
    alike = tuple(a for a in axes_of(embed) if a not in axes)  # devices with the same rows
    sum_VD = sum_VD / jax.lax.axis_size(alike) if alike else sum_VD
    sum_VD = reduce_scatter(sum_VD, embed, dim=1, dtype=dtype) if embed else sum_VD.astype(dtype)
    others = tuple(a for a in sorted(axes) if a not in axes_of(embed))
    return (jax.lax.psum(sum_VD, others) if others else sum_VD).astype(jnp.float32)

  return local(slope, ids), None


_lookup.defvjp(_forward, _backward)


def reduce_scatter(x: jax.Array, axis: str | tuple[str, ...], *, dim: int, dtype: jnp.dtype
                   ) -> jax.Array:
  """Sums a large matrix over devices in `dtype`, each keeping its slice along dim.

  The other dim goes in pieces, which take less memory than a second matrix of another type. Of
  some larger sizes (128,256 rows, say) the TPU's compiler would make a whole all-reduce, twice the
  bytes.
  """
  size = x.shape[1 - dim]
  parts = (jax.lax.slice_in_dim(x, i, min(i + _PIECE, size), axis=1 - dim).astype(dtype)
           for i in range(0, size, _PIECE))
  return jnp.concatenate([jax.lax.psum_scatter(part, axis, scatter_dimension=dim, tiled=True)
                          for part in parts], 1 - dim)


def _here(ids: jax.Array, size: int, vocab: str | tuple[str, ...] | None
          ) -> tuple[jax.Array, jax.Array]:
  """Index into this device's slice of the rows, and whether it is in it."""
  index = ids - (jax.lax.axis_index(vocab) * size if vocab else 0)
  here = (index >= 0) & (index < size)
  return jnp.where(here, index, 0), here
