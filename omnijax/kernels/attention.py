"""Causal attention within segments: a plain statement of it, right on every backend.

B batch  T queries  S keys  K kv heads  G queries per kv head  N = K * G heads  H head dim
"""

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a query with no key gives a mean and not NaN


def attention(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, *,
              segment_BT: jax.Array, key_segment_BS: jax.Array, first_B: jax.Array) -> jax.Array:
  """Softmax attention over earlier keys of the same segment, softmax in float32.

  Args:
    q_BTNH: queries; query t of batch row b stands at index first_B[b] + t among the keys.
    k_BSKH: keys, each serving N // K query heads (GQA, Ainslie et al., 2023).
    v_BSKH: values.
    segment_BT: segment of each query; 0 is padding, whose output means nothing.
    key_segment_BS: segment of each key.
    first_B: index of the first query among the keys, 0 when queries and keys are one row.

  Returns:
    [B, T, N, H] in the type of q.
  """
  B, T, N, H = q_BTNH.shape
  S, K = k_BSKH.shape[1:3]
  q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
  s_BKGTS = jnp.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH).astype(jnp.float32) * H**-0.5
  index_BT1 = (first_B[:, None] + jnp.arange(T)[None])[:, :, None]
  causal_BTS = jnp.arange(S)[None, None] <= index_BT1
  same_BTS = segment_BT[:, :, None] == key_segment_BS[:, None]
  keep_B11TS = (causal_BTS & same_BTS)[:, None, None]
  p_BKGTS = jax.nn.softmax(jnp.where(keep_B11TS, s_BKGTS, MASKED), -1).astype(q_BTNH.dtype)
  return jnp.einsum("bkgts,bskh->btkgh", p_BKGTS, v_BSKH).reshape(B, T, N, H)
