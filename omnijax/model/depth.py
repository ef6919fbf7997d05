"""The depth transformer: writes the codes of one frame, codebook by codebook.

The RQ-Transformer of Moshi (Defossez et al., 2024): a small causal Transformer over codebooks
whose every weight is its own per codebook, conditioned on the trunk's hidden state before the
frame and on the main token of the frame.

B batch  F frames  L = B * F  Q codebooks  K codebooks seen  E depth embed  D trunk embed
N heads  H head dim  M mlp  C codes
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.kernels.attention import MASKED
from omnijax.kernels.embedding import by_codebook
from omnijax.model.layers import param, rms_norm, scale
from omnijax.sharding import Rules


def _by_codebook(x_QLI: jax.Array, w_QIO: jax.Array, out: jax.P | None = None) -> jax.Array:
  return jnp.einsum("qli,qio->qlo", x_QLI, w_QIO.astype(x_QLI.dtype), out_sharding=out)


class DepthBlock(nnx.Module):
  """One layer, with separate weights for each codebook."""

  def __init__(self, cfg: config_lib.Model, codebooks: int, rules: Rules, *, rngs: nnx.Rngs):
    Q, E, N, M = codebooks, cfg.depth_dim, cfg.depth_heads, cfg.depth_mlp
    H, std = E // N, E**-0.5
    out = (2 * cfg.depth_layers) ** -0.5
    self.rules, self.eps = rules, cfg.norm_eps
    self.attn_gain_QE = scale(E, rules, (None, None), (Q,))
    self.mlp_gain_QE = scale(E, rules, (None, None), (Q,))
    self.q_gain_H = scale(H, rules)
    self.k_gain_H = scale(H, rules)
    axes = (None, "embed", "heads", None)
    self.w_q_QENH = param(rngs, (Q, E, N, H), axes, rules, std=std)
    self.w_k_QENH = param(rngs, (Q, E, N, H), axes, rules, std=std)
    self.w_v_QENH = param(rngs, (Q, E, N, H), axes, rules, std=std)
    self.w_o_QNHE = param(rngs, (Q, N, H, E), (None, "heads", None, "embed"), rules,
                          std=out * std)
    self.w_gate_QEM = param(rngs, (Q, E, M), (None, "embed", "mlp"), rules, std=std)
    self.w_up_QEM = param(rngs, (Q, E, M), (None, "embed", "mlp"), rules, std=std)
    self.w_down_QME = param(rngs, (Q, M, E), (None, "mlp", "embed"), rules, std=out * M**-0.5)

  def __call__(self, x_QLE: jax.Array) -> jax.Array:
    """All codebooks of each frame at once, codebook q seeing codebooks 0..q."""
    act = jax.P(None, jax.typeof(x_QLE).sharding.spec[1], *self.rules("act_embed"))
    dtype, (Q, L, E) = x_QLE.dtype, x_QLE.shape
    N, H = self.w_q_QENH.shape[2:]
    h_QLE = rms_norm(x_QLE, self.attn_gain_QE[...][:, None], self.eps)
    project = lambda w: _by_codebook(h_QLE, w[...].reshape(Q, E, N * H)).reshape(Q, L, N, H)
    q_QLNH = rms_norm(project(self.w_q_QENH), self.q_gain_H[...], self.eps)
    k_QLNH = rms_norm(project(self.w_k_QENH), self.k_gain_H[...], self.eps)
    v_QLNH = project(self.w_v_QENH)
    # So few codebooks that products and sums, codebook by codebook, beat thousands of tiny matmuls.
    seen = []
    for q in range(Q):
      s_KLN = jnp.sum((q_QLNH[q : q + 1] * k_QLNH[: q + 1]).astype(jnp.float32), -1) * H**-0.5
      p_KLN1 = jax.nn.softmax(s_KLN, 0)[..., None]
      terms = [p_KLN1[k] * v_QLNH[k] for k in range(q + 1)]
      seen.append(sum(terms[1:], terms[0]).astype(dtype))
    o_QLNH = jnp.stack(seen)
    x_QLE += _by_codebook(o_QLNH.reshape(Q, L, N * H), self.w_o_QNHE[...].reshape(Q, N * H, E),
                          act)
    h_QLE = rms_norm(x_QLE, self.mlp_gain_QE[...][:, None], self.eps)
    gate_QLM = _by_codebook(h_QLE, self.w_gate_QEM[...])
    up_QLM = _by_codebook(h_QLE, self.w_up_QEM[...])
    return x_QLE + _by_codebook(jax.nn.silu(gate_QLM) * up_QLM, self.w_down_QME[...], act)

  def step(self, x_BE: jax.Array, q: jax.Array, cache: tuple[jax.Array, jax.Array]
           ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Codebook q of one frame against the keys and values [B, Q, N, H] of those before it."""
    act = self.rules("batch", "act_embed")
    dtype, Q = x_BE.dtype, cache[0].shape[1]
    own = lambda w: jax.lax.dynamic_index_in_dim(w[...], q, 0, keepdims=False).astype(dtype)
    h_BE = rms_norm(x_BE, own(self.attn_gain_QE), self.eps)
    project = lambda w: jnp.einsum("be,enh->bnh", h_BE, own(w))
    q_BNH = rms_norm(project(self.w_q_QENH), self.q_gain_H[...], self.eps)
    k_BNH = rms_norm(project(self.w_k_QENH), self.k_gain_H[...], self.eps)
    write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new[:, None], q, 1)
    k_BQNH, v_BQNH = write(cache[0], k_BNH), write(cache[1], project(self.w_v_QENH))
    s_BNQ = jnp.einsum("bnh,bknh->bnk", q_BNH, k_BQNH).astype(jnp.float32)
    seen_11Q = (jnp.arange(Q) <= q)[None, None]
    s_BNQ = jnp.where(seen_11Q, s_BNQ * q_BNH.shape[-1] ** -0.5, MASKED)
    o_BNH = jnp.einsum("bnk,bknh->bnh", jax.nn.softmax(s_BNQ, -1).astype(dtype), v_BQNH)
    x_BE += jnp.einsum("bnh,nhe->be", o_BNH, own(self.w_o_QNHE), out_sharding=act)
    h_BE = rms_norm(x_BE, own(self.mlp_gain_QE), self.eps)
    gate_BM = jnp.einsum("be,em->bm", h_BE, own(self.w_gate_QEM))
    up_BM = jnp.einsum("be,em->bm", h_BE, own(self.w_up_QEM))
    down_BE = jnp.einsum("bm,me->be", jax.nn.silu(gate_BM) * up_BM, own(self.w_down_QME),
                         out_sharding=act)
    return x_BE + down_BE, (k_BQNH, v_BQNH)


class Depth(nnx.Module):
  """From the trunk's hidden state and the main token of a frame to its codes."""

  def __init__(self, cfg: config_lib.Model, vocab: vocab_lib.Vocab, rules: Rules, *,
               rngs: nnx.Rngs):
    Q, C, D, E = vocab.codebooks, vocab.audio, cfg.dim, cfg.depth_dim
    self.rules, self.eps, self.no_code = rules, cfg.norm_eps, vocab.no_code
    self.remat, self.unroll = cfg.remat, cfg.unroll
    self.w_in_QDE = param(rngs, (Q, D, E), (None, "embed", None), rules, std=D**-0.5)
    self.w_main_DE = param(rngs, (D, E), ("embed", None), rules, std=1.0)
    self.code_QCE = param(rngs, (Q, C + 1, E), (None, None, "embed"), rules, std=1.0)
    self.blocks = jax.vmap(lambda r: DepthBlock(cfg, Q, rules, rngs=r))(
      rngs.split(cfg.depth_layers))
    self.gain_QE = scale(E, rules, (None, None), (Q,))
    self.w_out_QEC = param(rngs, (Q, E, C), (None, "embed", "vocab"), rules, std=E**-0.5)

  def __call__(self, hidden_LD: jax.Array, main_LD: jax.Array, codes_LQ: jax.Array) -> jax.Array:
    """Logits of every code of every frame.

    Args:
      hidden_LD: normalised output of the trunk at the position before the frame.
      main_LD: embedding of the main token at the frame.
      codes_LQ: the codes; codebook q is predicted from codebooks before q only.

    Returns:
      float32 [Q, L, C]: codebooks lead, since each has weights of its own.
    """
    x_QLE = self.conditions(hidden_LD, main_LD)
    before_LQ = jnp.pad(codes_LQ[:, :-1], ((0, 0), (1, 0)), constant_values=self.no_code)
    x_QLE += jnp.moveaxis(by_codebook(self.code_QCE[...], before_LQ, x_QLE.dtype), 1, 0)
    body = lambda x, block: (block(x), None)
    if self.remat != "none":
      body = jax.checkpoint(body)
    x_QLE, _ = jax.lax.scan(body, x_QLE, self.blocks, unroll=self.unroll)
    x_QLE = rms_norm(x_QLE, self.gain_QE[...][:, None], self.eps).astype(jnp.float32)
    return _by_codebook(x_QLE, self.w_out_QEC[...])

  def conditions(self, hidden_LD: jax.Array, main_LD: jax.Array) -> jax.Array:
    """What the input [Q, L, E] of every codebook takes from the trunk and the main token."""
    dtype = hidden_LD.dtype
    x_QLE = jnp.einsum("ld,qde->qle", hidden_LD, self.w_in_QDE[...].astype(dtype),
                       out_sharding=self._like(hidden_LD, None))
    main_LE = jnp.einsum("ld,de->le", main_LD, self.w_main_DE[...].astype(dtype),
                         out_sharding=self._like(hidden_LD))
    return x_QLE + main_LE[None]

  def _like(self, x_LD: jax.Array, *lead: None) -> jax.P:
    """The partition of something with the frames of x, [lead..., L, E]."""
    return jax.P(*lead, jax.typeof(x_LD).sharding.spec[0], *self.rules("act_embed"))

  def write(self, hidden_BD: jax.Array, main_BD: jax.Array,
            choose: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """Writes the codes [B, Q] int32 of one frame, codebook by codebook.

    Args:
      hidden_BD: normalised output of the trunk at the position before the frame.
      main_BD: embedding of the main token at the frame.
      choose: (q, float32 logits [B, C]) -> codes [B] int32, traced once.
    """
    Q, B = self.code_QCE.shape[0], hidden_BD.shape[0]
    layers, N, H = self.blocks.w_o_QNHE.shape[0], *self.blocks.w_o_QNHE.shape[2:4]
    dtype, act = hidden_BD.dtype, self.rules("batch", "act_embed")
    given_QBE = self.conditions(hidden_BD, main_BD)
    table_QCE = jax.reshard(self.code_QCE[...], jax.P(None, None, None))
    own = lambda w, q: jax.lax.dynamic_index_in_dim(w, q, 0, keepdims=False)
    empty = jnp.zeros((layers, B, Q, N, H), dtype,
                      out_sharding=self.rules(None, "batch", None, "heads", None))

    def step(carry, q):
      before_B, cache = carry
      x_BE = own(given_QBE, q)
      x_BE += own(table_QCE, q).at[before_B].get(out_sharding=act).astype(dtype)
      body = lambda x_BE, layer: layer[0].step(x_BE, q, layer[1])
      x_BE, cache = jax.lax.scan(body, x_BE, (self.blocks, cache))
      x_BE = rms_norm(x_BE, own(self.gain_QE[...], q), self.eps)
      logits_BC = jnp.einsum("be,ec->bc", x_BE, own(self.w_out_QEC[...], q).astype(dtype),
                             preferred_element_type=jnp.float32)
      codes_B = choose(q, logits_BC)
      return (codes_B, cache), codes_B

    first_B = jnp.full(B, self.no_code, jnp.int32, out_sharding=self.rules("batch"))
    _, codes_QB = jax.lax.scan(step, (first_B, (empty, empty)), jnp.arange(Q))
    return codes_QB.T
