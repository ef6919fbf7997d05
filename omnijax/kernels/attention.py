"""Causal attention within segments: a plain statement of it, right on every backend.

B batch  T queries  S keys  K kv heads  G queries per kv head  N = K * G heads  M = G * T
H head dim
"""

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a query with no key gives a mean and not NaN


def attention(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, *,
              segment_BT: jax.Array, key_segment_BS: jax.Array, first_B: jax.Array) -> jax.Array:
  """Softmax attention over earlier keys of the same segment, softmax in float32; under a mesh.

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
  G = N // K
  # Told at every reshape: jax 0.12 forgets how a batch of one row is sharded.
  rows, _, heads, _ = jax.typeof(q_BTNH).sharding.spec
  lead = lambda x, *shape: jax.lax.reshape(
    x, (B, K, *shape), out_sharding=jax.P(rows, heads, *[None] * len(shape)))
  # Heads lead, so that every product is of plain matrices: twice as fast on a CPU.
  q_BTKGH = jax.lax.reshape(q_BTNH * H**-0.5, (B, T, K, G, H),
                            out_sharding=jax.P(rows, None, heads, None, None))
  q_BKMH = lead(jnp.moveaxis(q_BTKGH, 1, 3), G * T, H)
  k_BKSH, v_BKSH = jnp.moveaxis(k_BSKH, 1, 2), jnp.moveaxis(v_BSKH, 1, 2)
  s_BKMS = jnp.einsum("bkmh,bksh->bkms", q_BKMH, k_BKSH, preferred_element_type=jnp.float32)
  index_BT1 = (first_B[:, None] + jnp.arange(T)[None])[:, :, None]
  causal_BTS = jnp.arange(S)[None, None] <= index_BT1
  same_BTS = segment_BT[:, :, None] == key_segment_BS[:, None]
  keep_B11TS = (causal_BTS & same_BTS)[:, None, None]
  s_BKGTS = jnp.where(keep_B11TS, lead(s_BKMS, G, T, S), MASKED)
  e_BKGTS = jnp.exp(s_BKGTS - jax.lax.stop_gradient(jnp.max(s_BKGTS, -1, keepdims=True)))
  # Divided by the sum after the values are added up: H numbers a query instead of S.
  o_BKMH = jnp.einsum("bkms,bksh->bkmh", lead(e_BKGTS.astype(v_BKSH.dtype), G * T, S), v_BKSH,
                      preferred_element_type=jnp.float32)
  o_BKGTH = lead(o_BKMH, G, T, H) / jnp.sum(e_BKGTS, -1, keepdims=True)
  return jax.lax.reshape(jnp.moveaxis(o_BKGTH, 3, 1).astype(q_BTNH.dtype), (B, T, N, H),
                         out_sharding=jax.P(rows, None, heads, None))
