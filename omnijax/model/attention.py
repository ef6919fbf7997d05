"""Grouped-query attention with QK-norm, for whole rows and for steps against a cache.

B batch  T new positions  S cached positions  D embed  N heads  K kv heads  H head dim
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from omnijax import config as config_lib
from omnijax.kernels import attention as kernels
from omnijax.model import rope
from omnijax.model.layers import dense, param, rms_norm, scale
from omnijax.sharding import Rules


class Cache(NamedTuple):
  """Keys and values of one layer so far; leaves gain a leading layer dim in the whole model.

  Those of 8 bits are to be multiplied with a scale for each position and head.
  """

  k_BKSH: jax.Array
  v_BKSH: jax.Array
  k_scale_BKS1: jax.Array | None = None
  v_scale_BKS1: jax.Array | None = None

  def append(self, new: "Cache", at: kernels.Lengths) -> "Cache":
    """The cache of all layers with new positions [L, B, T, K, H] behind those of each row."""
    if self.k_scale_BKS1 is not None:
      (k, k_scale), (v, v_scale) = _rounded(new.k_BKSH), _rounded(new.v_BKSH)
      new = Cache(k, v, k_scale, v_scale)
    return jax.tree.map(lambda old, x: kernels.append(old, x, at), self, new)


def _rounded(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Vectors as 8 bits, and what each is to be multiplied with."""
  scale = jnp.max(jnp.abs(x.astype(jnp.float32)), -1, keepdims=True) / 127
  return jnp.round(x / jnp.maximum(scale, 1e-30)).astype(jnp.int8), scale


class Context(NamedTuple):
  """What every layer needs to know about the positions it works on."""

  cos_BT1H: jax.Array
  sin_BT1H: jax.Array
  segment_BT: jax.Array
  modality_BT: jax.Array
  order_T: np.ndarray | None  # of whole rows: see `Rules.order`
  at: kernels.Lengths | None  # with a cache: where each row is in it


class Attention(nnx.Module):
  """Queries and keys are normalised per head (QK-norm, Dehghani et al., 2023), always."""

  def __init__(self, cfg: config_lib.Model, rules: Rules, *, out_std: float, rngs: nnx.Rngs):
    D, N, K, H = cfg.dim, cfg.heads, cfg.kv_heads, cfg.head_dim
    self.rules, self.eps, self.blocks = rules, cfg.norm_eps, cfg.attention_blocks
    self.documents, self.window = cfg.attention_documents, cfg.attention_window
    self.kind = cfg.matmuls
    self.w_q_DNH = param(rngs, (D, N, H), ("embed", "heads", None), rules, std=D**-0.5)
    self.w_k_DKH = param(rngs, (D, K, H), ("embed", "kv_heads", None), rules, std=D**-0.5)
    self.w_v_DKH = param(rngs, (D, K, H), ("embed", "kv_heads", None), rules, std=D**-0.5)
    self.w_o_NHD = param(rngs, (N, H, D), ("heads", None, "embed"), rules,
                         std=out_std * (N * H) ** -0.5)
    self.q_gain_H = scale(H, rules)
    self.k_gain_H = scale(H, rules)

  def __call__(self, x_BTD: jax.Array, ctx: Context,
               cache: Cache | None) -> tuple[jax.Array, Cache | None]:
    """Attends within the row, or to a cache and the new positions, whose keys and values it gives.
    """
    q_BTNH, k_BTKH, v_BTKH = (
      checkpoint_name(dense(x_BTD, w[...], kind=self.kind), name) for w, name in (
        (self.w_q_DNH, "query"), (self.w_k_DKH, "key"), (self.w_v_DKH, "value")))
    q_BTNH = rms_norm(q_BTNH, self.q_gain_H[...], self.eps)
    k_BTKH = rms_norm(k_BTKH, self.k_gain_H[...], self.eps)
    q_BTNH = rope.rotate(q_BTNH, ctx.cos_BT1H, ctx.sin_BT1H)
    k_BTKH = rope.rotate(k_BTKH, ctx.cos_BT1H, ctx.sin_BT1H)
    if cache is None:
      assert ctx.order_T is not None
      o_BTNH = kernels.rows(q_BTNH, k_BTKH, v_BTKH, ctx.segment_BT, order_S=ctx.order_T,
                            blocks=self.blocks, documents=self.documents,
                            window=self.window)
    else:
      assert ctx.at is not None
      old = tuple(x for x in cache if x is not None)
      o_BTNH = kernels.cached(q_BTNH, old, k_BTKH, v_BTKH, at=ctx.at, window=self.window)
      cache = Cache(k_BTKH, v_BTKH)
    out_BTD = dense(o_BTNH, self.w_o_NHD[...], inputs=2, out=self.rules("act_embed"),
                    kind=self.kind)
    return checkpoint_name(out_BTD, "attended"), cache
