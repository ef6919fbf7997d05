"""What cuDNN is told of documents; its kernel, which needs a GPU, is played by plain operations.

B batch  S positions  M documents
"""

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo

from omnijax.kernels import cudnn


def played(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type):
  """Attention as its documentation says; what lies in no document is never written: NaN."""
  assert mask_type is fused_attention_stablehlo.MaskType.PADDING_CAUSAL
  assert q_seqlen is kv_seqlen and q_offsets is kv_offsets
  assert q_offsets.shape[1] == q_seqlen.shape[1] + 1
  group = q.shape[2] // k.shape[2]
  k, v = (jnp.repeat(x, group, 2) for x in (k, v))
  at_1S1 = jnp.arange(q.shape[1])[None, :, None]
  ends_BM = q_offsets[:, :-1] + q_seqlen
  in_BSM = (at_1S1 >= q_offsets[:, None, :-1]) & (at_1S1 < ends_BM[:, None])
  in_BSM &= (q_seqlen > 0)[:, None]
  same_BSS = jnp.einsum("bsm,btm->bst", in_BSM, in_BSM) & (at_1S1 >= at_1S1.mT)
  s_BNSS = jnp.einsum("bsnh,btnh->bnst", q, k, preferred_element_type=jnp.float32) * scale
  p_BNSS = jax.nn.softmax(jnp.where(same_BSS[:, None], s_BNSS, -1e30), -1)
  o = jnp.einsum("bnst,btnh->bsnh", p_BNSS, v.astype(jnp.float32)).astype(q.dtype)
  return jnp.where(in_BSM.any(2)[:, :, None, None], o, jnp.nan)


def test_documents():
  segment = jnp.asarray([[1, 1, 2, 0, 0], [1, 1, 1, 1, 1], [1, 2, 3, 4, 0]])
  start, length, many = cudnn.documents(segment, 3)
  assert start.tolist() == [[0, 2, 3, -1], [0, -1, -1, -1], [0, 1, 2, -1]]
  assert length.tolist() == [[2, 1, 2], [5, -1, -1], [1, 1, 1]]
  assert many
  assert not cudnn.documents(segment[:2], 3)[2]


def test_usable_on_no_cpu():
  assert not cudnn.usable(jnp.zeros((1, 8, 2, 128), jnp.bfloat16))


def test_more_documents_than_promised_is_nan(mesh, monkeypatch):
  monkeypatch.setattr(fused_attention_stablehlo, "dot_product_attention", played)
  segment = jnp.asarray([[1, 1, 2, 3, 0, 0]])
  q = jnp.ones((1, 6, 2, 8))
  finite = [jnp.isfinite(cudnn.attend(None, segment, q, q, q, most=most)) for most in (2, 3)]
  assert not finite[0].any()  # nor where there is room
  assert finite[1].all()
