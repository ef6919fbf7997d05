"""Attention of packed rows by cuDNN, on GPUs from Hopper on.

jax's public function for cuDNN knows no documents within a row; the one beneath it does, as it is
in jax 0.10 to 0.12.

B batch  S positions  N heads  K kv heads  H head dim  M documents
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
_DOCUMENTS = 64  # that there is room for where a row may have any number
SAVED = "dot_product_attention_fwd_wrapper"  # the primitive whose outputs the backward pass needs


def usable(q: jax.Array) -> bool:
  """Whether cuDNN can do it here: 16 bits, heads of a multiple of 8, on Hopper or later."""
  version = getattr(jax.devices()[0], "compute_capability", "0.0")
  return float(version) >= 9 and q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0


def attend(plain: Attend, segment_BS: jax.Array, q_BSNH: jax.Array, k_BSKH: jax.Array,
           v_BSKH: jax.Array, *, most: int) -> jax.Array:
  """Causal attention within segments that lie one after the other in rows.

  cuDNN's time grows with the documents that there is room for.

  Args:
    plain: what to do instead, with segments, queries, keys and values, where there are too many.
    segment_BS: segment of each position; its padding is one more.
    q_BSNH, k_BSKH, v_BSKH: queries, keys, values.
    most: documents of a row, beside padding; of rows that have more all is NaN. 0 is any number:
      then some other way is taken for them, and asking which costs time.
  """
  table = documents(segment_BS, (most or _DOCUMENTS) + 1)
  if most:
    return _kernel(table, q_BSNH * jnp.where(table.more, jnp.nan, 1).astype(q_BSNH.dtype), k_BSKH,
                   v_BSKH)
  return _attend(plain, segment_BS, table, q_BSNH, k_BSKH, v_BSKH)


class Documents(NamedTuple):
  """Of rows; -1 where there is none."""

  start_BM: jax.Array  # and one column of -1 more
  length_BM: jax.Array
  more: jax.Array  # whether there are some that found no place


def documents(segment_BS: jax.Array, most: int) -> Documents:
  """The runs of equal segments of rows, and room for so many."""
  S = segment_BS.shape[1]
  before_BS = jnp.pad(segment_BS[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  first_BS = segment_BS != before_BS
  start_BS = jnp.sort(jnp.where(first_BS, jnp.arange(S)[None], S), 1)
  start_BM = start_BS[:, : most + 1]
  start_BM = jnp.pad(start_BM, ((0, 0), (0, most + 1 - start_BM.shape[1])), constant_values=S)
  length_BM = jnp.diff(start_BM, axis=1)
  there_BM = length_BM > 0
  start_BM = jnp.where(jnp.pad(there_BM, ((0, 0), (0, 1))), start_BM, -1)
  return Documents(start_BM, jnp.where(there_BM, length_BM, -1),
                   jnp.any(first_BS.sum(1) > most))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plain: Attend, segment_BS: jax.Array, table: Documents, *qkv: jax.Array) -> jax.Array:
  return _forward(plain, segment_BS, table, *qkv)[0]


def _forward(plain: Attend, segment_BS: jax.Array, table: Documents, *qkv: jax.Array
             ) -> tuple[jax.Array, Any]:
  o_BSNH, vjp = jax.vjp(functools.partial(_kernel, table), *qkv)
  o_BSNH = jax.lax.cond(table.more, lambda: plain(segment_BS, *qkv), lambda: o_BSNH)
  return o_BSNH, (segment_BS, table.more, qkv, vjp)


def _backward(plain: Attend, kept: Any, slope_BSNH: jax.Array) -> tuple[Any, ...]:
  segment_BS, more, qkv, vjp = kept
  slopes = vjp(slope_BSNH)
  again = lambda: jax.vjp(functools.partial(plain, segment_BS), *qkv)[1](slope_BSNH)
  return None, None, *jax.lax.cond(more, again, lambda: slopes)


_attend.defvjp(_forward, _backward)


def _kernel(table: Documents, q_BSNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array
            ) -> jax.Array:
  from jax._src.cudnn import fused_attention_stablehlo as cudnn
  return cudnn.dot_product_attention(
    q_BSNH, k_BSKH, v_BSKH, q_seqlen=table.length_BM, kv_seqlen=table.length_BM,
    q_offsets=table.start_BM, kv_offsets=table.start_BM, scale=q_BSNH.shape[-1] ** -0.5,
    mask_type=cudnn.MaskType.PADDING_CAUSAL)
