"""Input of the trunk: main token + modality tag + the codes of the position's frame, summed.

Codes come with what they stand for in their tokenizers (`vocab.Vectors`) through learned
projections: codes with close vectors look or sound alike, also when a picture or a voice uses
codes that were rare in training. Codes of images have free rows of the table besides; what is
listened to has none.

B batch  S positions  D embed  V vocabulary  M modalities  F frames  Q codebooks  G = 2Q streams
C codes of a codebook and one for "no code"  A dim of a code's vector
"""

import jax
import jax.numpy as jnp
from flax import nnx

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.kernels import frames
from omnijax.kernels.embedding import by_codebook, lookup
from omnijax.model.layers import dense, param
from omnijax.sharding import Rules


class Embed(nnx.Module):
  """Tables of the main stream, of the modality tags, and of each codebook of each group."""

  def __init__(self, cfg: config_lib.Model, vocab: vocab_lib.Vocab, rules: Rules, *,
               rngs: nnx.Rngs):
    D, V, Q, C, A = cfg.dim, vocab.size, vocab.codebooks, vocab.audio + 1, vocab.code_dim
    self.rules, self.dtype = rules, jnp.dtype(cfg.dtype)
    self.no_code = vocab.no_code
    self.main_VD = param(rngs, (V, D), ("vocab", "embed"), rules, std=D**-0.5)
    self.fixed_VA = param(rngs, (V, vocab.image_dim), ("vocab", None), rules, std=0.0)
    self.image_AD = param(rngs, (vocab.image_dim, D), (None, "embed"), rules, std=D**-0.5)
    self.tag_MD = param(rngs, (len(vocab_lib.MODALITIES), D), (None, "embed"), rules,
                        std=D**-0.5)
    self.code_QCD = param(rngs, (Q, C, D), (None, None, "embed"), rules, std=(D * Q) ** -0.5)
    # Fixed, from the tokenizers. Until then random, so that codes can be told apart.
    self.fixed_QCA = param(rngs, (Q, C, A), (None, None, None), rules, std=1.0)
    self.listen_QAD = param(rngs, (Q, A, D), (None, None, "embed"), rules,
                            std=(D * Q * A) ** -0.5)

  def tokens(self, main: jax.Array) -> jax.Array:
    """Embeddings [..., D] of main ids of any shape whose first dim is the batch."""
    return lookup(self.table(), main, self.dtype)

  def table(self) -> jax.Array:
    """What is looked up, [V, D]: free rows, and what codes of images look like."""
    if self.image_AD is None:  # added in already, see generate/weights.py
      return self.main_VD[...]
    return self.main_VD[...] + jnp.einsum(
      "va,ad->vd", jax.lax.stop_gradient(self.fixed_VA[...]), self.image_AD[...])

  def frames(self, codes_BFG: jax.Array) -> jax.Array:
    """Sum [B, F, D] of the embeddings of a frame's codes; "no code" contributes nothing."""
    Q = self.code_QCD.shape[0]

    def rows(table_QCX: jax.Array, codes_BFQ: jax.Array) -> jax.Array:
      each = by_codebook(table_QCX, codes_BFQ, self.dtype)
      return jnp.where((codes_BFQ != self.no_code)[..., None], each, 0.0)

    speak_BFD = jnp.sum(rows(self.code_QCD[...], codes_BFG[..., :Q]), 2)
    heard_BFQA = rows(jax.lax.stop_gradient(self.fixed_QCA[...]), codes_BFG[..., Q:])
    listen_BFD = dense(heard_BFQA, self.listen_QAD[...], inputs=2,
                       out=self.rules("act_embed"))
    return (speak_BFD + listen_BFD).astype(self.dtype)

  def tags(self, modality_BS: jax.Array) -> jax.Array:
    """Embeddings [B, S, D] of the modality of each position."""
    tag_MD = jax.reshard(self.tag_MD[...], jax.P(None, None))
    like = jax.P(*jax.typeof(modality_BS).sharding.spec, *self.rules("act_embed"))
    return tag_MD.at[modality_BS.astype(jnp.int32)].get(out_sharding=like).astype(self.dtype)

  def __call__(self, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Input [B, S, D] of a packed batch, and its main tokens alone, laid out by `Rules.order`."""
    tokens_BSD = self.tokens(self.rules.lay(batch["main"]))
    x_BSD = tokens_BSD + self.tags(self.rules.lay(batch["modality"]))
    order_S = self.rules.order(x_BSD.shape[1])
    heard_BFD = self.frames(batch["frames"])
    return frames.scatter_add(x_BSD, batch["frame_at"], heard_BFD, order_S=order_S), tokens_BSD

  def at_once(self, main_BT: jax.Array, modality_BT: jax.Array, frames_BTG: jax.Array
              ) -> jax.Array:
    """Input [B, T, D] of steps of generation, every position with a frame, often of no codes."""
    x_BTD = self.tokens(main_BT) + self.tags(modality_BT)
    sound = jnp.any(modality_BT == vocab_lib.AUDIO)
    return jax.lax.cond(sound, lambda: x_BTD + self.frames(frames_BTG), lambda: x_BTD)
