"""Input of the trunk: main token + modality tag + the codes of the position's frame, summed.

B batch  S positions  D embed  V vocabulary  M modalities  F frames  G = 2Q codebook streams
C codes of a codebook and one for "no code"
"""

import jax
import jax.numpy as jnp
from flax import nnx

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.model.layers import param
from omnijax.sharding import Rules


class Embed(nnx.Module):
  """Tables of the main stream, of the modality tags, and of each codebook of each group."""

  def __init__(self, cfg: config_lib.Model, vocab: vocab_lib.Vocab, rules: Rules, *,
               rngs: nnx.Rngs):
    D, V, G, C = cfg.dim, vocab.size, 2 * vocab.codebooks, vocab.audio + 1
    self.rules, self.dtype = rules, jnp.dtype(cfg.dtype)
    self.no_code = vocab.no_code
    self.main_VD = param(rngs, (V, D), ("vocab", "embed"), rules, std=D**-0.5)
    self.tag_MD = param(rngs, (len(vocab_lib.MODALITIES), D), (None, "embed"), rules,
                        std=D**-0.5)
    self.code_GCD = param(rngs, (G, C, D), (None, None, "embed"), rules,
                          std=(D * vocab.codebooks) ** -0.5)

  def tokens(self, main: jax.Array) -> jax.Array:
    """Embeddings [..., D] of main ids of any shape whose first dim is the batch."""
    table_VD = jax.reshard(self.main_VD[...], self.rules("vocab", None))
    return table_VD.at[main].get(out_sharding=self._like(main)).astype(self.dtype)

  def frames(self, codes_BFG: jax.Array) -> jax.Array:
    """Sum [B, F, D] of the embeddings of a frame's codes; "no code" contributes nothing."""
    table_GCD = jax.reshard(self.code_GCD[...], jax.P(None, None, None))
    stream_11G = jnp.arange(codes_BFG.shape[-1])[None, None]
    act = self.rules("batch", None, None, None)
    each_BFGD = table_GCD.at[stream_11G, codes_BFG].get(out_sharding=act)
    live_BFG1 = (codes_BFG != self.no_code)[..., None]
    return jnp.sum(jnp.where(live_BFG1, each_BFGD, 0.0), 2).astype(self.dtype)

  def tagged(self, main_BS: jax.Array, modality_BS: jax.Array) -> jax.Array:
    """Embeddings [B, S, D] of main tokens and their modality tags, without frames."""
    tag_MD = jax.reshard(self.tag_MD[...], jax.P(None, None))
    tag_BSD = tag_MD.at[modality_BS.astype(jnp.int32)].get(out_sharding=self._like(modality_BS))
    return self.tokens(main_BS) + tag_BSD.astype(self.dtype)

  def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
    """Input [B, S, D] of a packed batch; frames are scattered to their positions."""
    x_BSD = self.tagged(batch["main"], batch["modality"])
    return jax.vmap(lambda x, at, frame: x.at[at].add(frame, mode="drop"))(
      x_BSD, batch["frame_at"], self.frames(batch["frames"]))

  def dense(self, main_BT: jax.Array, modality_BT: jax.Array, frames_BTG: jax.Array) -> jax.Array:
    """Input [B, T, D] of steps of generation, every position with a frame, often of no codes."""
    x_BTD = self.tagged(main_BT, modality_BT)
    sound = jnp.any(modality_BT == vocab_lib.AUDIO)
    return jax.lax.cond(sound, lambda: x_BTD + self.frames(frames_BTG), lambda: x_BTD)

  def _like(self, ids: jax.Array) -> jax.P:
    return self.rules("batch", *[None] * (ids.ndim - 1), "act_embed")
