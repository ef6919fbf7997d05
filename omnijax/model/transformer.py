"""The whole model: embedding, trunk, main head and depth transformer.

B batch  S positions  T new positions  D embed  V vocabulary  F frames  P frames with targets
Q codebooks  L layers  C codes of a codebook

Initial deviations, in one place: embeddings and input projections 1/sqrt(fan in) of their
dim; projections back into the residual stream that, over sqrt(2 x layers) (GPT-2); gains 1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.kernels import attention as kernels
from omnijax.kernels import cudnn, frames
from omnijax.model import rope
from omnijax.model.attention import Attention, Cache, Context
from omnijax.model.depth import Depth
from omnijax.model.embed import Embed
from omnijax.model.layers import Mlp, param, rms_norm, scale, unflatten
from omnijax.model.moe import Moe
from omnijax.sharding import Rules


def _kept(cfg: config_lib.Model) -> Callable[..., Any]:
  """The policy of what the layers keep for the backward pass; the rest is made again."""
  # A layer's input is kept anyway, where it isn't offloaded.
  saved = {"full": (), "minimal": config_lib.ACTIVATIONS[1:]}.get(cfg.remat, cfg.saved)
  named = jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=saved, names_which_can_be_offloaded=cfg.offloaded,
    offload_src="device", offload_dst="pinned_host")

  def policy(prim: Any, *args: Any, **params: Any) -> Any:
    whole = prim.name == cudnn.SAVED and kernels.SAVED in saved
    return whole or named(prim, *args, **params)

  return policy


class Block(nnx.Module):
  """Attention and feed-forward, each on a normalised residual stream."""

  def __init__(self, cfg: config_lib.Model, rules: Rules, *, rngs: nnx.Rngs):
    out_std = (2 * cfg.layers) ** -0.5
    self.eps = cfg.norm_eps
    self.attn_gain_D = scale(cfg.dim, rules)
    self.attn = Attention(cfg, rules, out_std=out_std, rngs=rngs)
    self.mlp_gain_D = scale(cfg.dim, rules)
    self.moe = Moe(cfg, rules, out_std=out_std, rngs=rngs) if cfg.experts else None
    self.mlp = None if cfg.experts else Mlp(cfg, rules, out_std=out_std, rngs=rngs)

  def __call__(self, x_BTD: jax.Array, ctx: Context, cache: Cache | None
               ) -> tuple[jax.Array, Cache | None, jax.Array]:
    """Outputs, the new positions' keys and values for a cache, and the balance of experts, or 1."""
    h_BTD = rms_norm(x_BTD, self.attn_gain_D[...], self.eps)
    attended_BTD, cache = self.attn(h_BTD, ctx, cache)
    x_BTD += attended_BTD
    h_BTD = rms_norm(x_BTD, self.mlp_gain_D[...], self.eps)
    if self.moe is None:
      return x_BTD + self.mlp(h_BTD), cache, jnp.float32(1)
    y_BTD, balance = self.moe(h_BTD, ctx.modality_BT, ctx.segment_BT)
    return x_BTD + y_BTD, cache, balance


class Omni(nnx.Module):
  """One Transformer for text, images and speech; see DESIGN section 3 for its streams."""

  def __init__(self, cfg: config_lib.Model, vocab: vocab_lib.Vocab, rules: Rules, *,
               rngs: nnx.Rngs):
    self.cfg, self.rules, self.vocab = cfg, rules, vocab
    self.embed = Embed(cfg, vocab, rules, rngs=rngs)
    self.blocks = jax.vmap(lambda r: Block(cfg, rules, rngs=r))(rngs.split(cfg.layers))
    self.gain_D = scale(cfg.dim, rules)
    self.head_DV = param(rngs, (cfg.dim, vocab.size), ("embed", "vocab"), rules,
                         std=cfg.dim**-0.5)
    self.image_AD = param(rngs, (vocab.image_dim, cfg.dim), (None, "embed"), rules, std=0.0)
    self.depth = Depth(cfg, vocab, rules, rngs=rngs)

  def trunk(self, x_BTD: jax.Array, position_BT3: jax.Array, segment_BT: jax.Array,
            modality_BT: jax.Array, *, at: kernels.Lengths | None = None,
            cache: Cache | None = None) -> tuple[jax.Array, Cache | None, jax.Array]:
    """Normalised hidden states [B, T, D], of whole rows or of steps against a cache.

    Args:
      x_BTD: inputs from `embed`.
      position_BT3: time, row and column of each position.
      segment_BT: 0 is padding; positions see only their own segment.
      modality_BT: for the router of experts.
      at: with a cache, where each row is in it; new positions are written after that.
      cache: leaves [L, B, K, S, H], or None.

    Returns:
      Hidden states, the cache, and the mean balance of experts over layers, 1 without any.
    """
    cfg = self.cfg
    cos, sin = rope.angles(position_BT3, cfg.head_dim, cfg.rope_theta, cfg.rope_split)
    order_T = self.rules.order(x_BTD.shape[1]) if cache is None else None
    ctx = Context(cos, sin, segment_BT, modality_BT, order_T, at)

    def body(x_BTD, layer):
      block, layer_cache = layer
      x_BTD = checkpoint_name(x_BTD, "input")
      x_BTD, layer_cache, balance = block(x_BTD, ctx, layer_cache)
      return x_BTD, (layer_cache, balance)

    if cache is None and cfg.remat != "none":
      body = jax.checkpoint(body, policy=_kept(cfg))
    x_BTD, (new, balance_L) = jax.lax.scan(body, x_BTD, (self.blocks, cache), unroll=cfg.unroll)
    if cache is not None:
      assert at is not None
      cache = cache.append(new, at)
    return rms_norm(x_BTD, self.gain_D[...], cfg.norm_eps), cache, jnp.mean(balance_L)

  def hidden(self, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of a packed batch: hidden states and embedded main tokens [B, S, D], and `trunk`'s balance.

    Positions are laid out by `Rules.order`.
    """
    position_BS3, segment_BS, modality_BS = (
      self.rules.lay(batch[key]) for key in ("position", "segment", "modality"))
    x_BSD, tokens_BSD = self.embed(batch)
    hidden_BSD, _, balance = self.trunk(x_BSD, position_BS3, segment_BS, modality_BS)
    return hidden_BSD, tokens_BSD, balance

  def head(self) -> jax.Array:
    """The matrix [D, V] whose product with a hidden state is the main logits, float32 in training.
    """
    if self.image_AD is None:  # added in already, see generate/weights.py
      return self.head_DV[...]
    fixed_VA = jax.lax.stop_gradient(self.embed.fixed_VA[...])
    return self.head_DV[...] + jnp.einsum("ad,va->dv", self.image_AD[...], fixed_VA)

  def logits(self, hidden_BTD: jax.Array) -> jax.Array:
    """Main logits, float32 [B, T, V]: row t scores the main token at t + 1."""
    hidden_LD = hidden_BTD.reshape(-1, hidden_BTD.shape[-1])
    logits_LV = jnp.einsum("ld,dv->lv", hidden_LD, self.head().astype(hidden_LD.dtype),
                           preferred_element_type=jnp.float32)
    return unflatten(logits_LV, hidden_BTD)

  def frame_logits(self, hidden_BSD: jax.Array, tokens_BSD: jax.Array,
                   batch: dict[str, jax.Array]) -> jax.Array:
    """Logits of the speak codes of a packed batch's first P frames, float32 [Q, B * P, C].

    Args:
      hidden_BSD, tokens_BSD: what `hidden` gives.
      batch: the packed batch.
    """
    P, Q = batch["frame_weight"].shape[1:]
    at_BP = batch["frame_at"][:, :P]
    order_S = self.rules.order(hidden_BSD.shape[1])
    hidden_LD = frames.gather(hidden_BSD, jnp.maximum(at_BP - 1, 0), order_S=order_S)
    main_LD = frames.gather(tokens_BSD, at_BP, order_S=order_S)
    codes_LQ = jax.reshard(batch["frames"][:, :P, :Q].reshape(-1, Q), self.rules("flat", None))
    return self.depth(hidden_LD, main_LD, codes_LQ)

  def __call__(self, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Main logits [B, S, V] and frame logits [Q, B * P, C] of a packed batch, float32."""
    hidden_BSD, tokens_BSD, _ = self.hidden(batch)
    return self.logits(hidden_BSD), self.frame_logits(hidden_BSD, tokens_BSD, batch)


def init(cfg: config_lib.Model, vocab: vocab_lib.Vocab, rules: Rules, key: jax.Array,
         vectors: vocab_lib.Vectors | None = None) -> Omni:
  """A model with fresh weights on the current mesh.

  Args:
    key: what the weights are a function of.
    vectors: what the codes stand for in their tokenizers; without them codes of images stand
      for nothing but themselves, and those of audio for random vectors.
  """
  model = Omni(cfg, vocab, rules, rngs=nnx.Rngs(key))
  if vectors is not None:
    fixed_QCA = jnp.pad(jnp.float32(vectors.audio_QCA), ((0, 0), (0, 1), (0, 0)))
    model.embed.fixed_QCA[...] = jax.reshard(fixed_QCA, rules(None, None, None))
    above = vocab.size - vocab.image_start - vocab.image
    fixed_VA = jnp.pad(jnp.float32(vectors.image_KA), ((vocab.image_start, above), (0, 0)))
    model.embed.fixed_VA[...] = jax.reshard(fixed_VA, rules("vocab", None))
  return model
