"""A mixture of experts that drops nothing, its router told the modality of each position.

Every position goes to its k likeliest experts (Shazeer et al., 2017), whatever the others do: work
is sorted by expert and multiplied in groups of the sizes that come out (MegaBlocks, Gale et al.,
2022). Experts may be shared by all modalities or kept for one.

B batch  S positions  D embed  E experts  F mlp  M modalities  K experts of a position
L positions of a device  A = L * K assignments, of all devices along the experts' axis
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from omnijax import config as config_lib
from omnijax.kernels.attention import MASKED
from omnijax.model.layers import param
from omnijax.sharding import Rules


class Moe(nnx.Module):
  """Routed SwiGLU experts in place of one."""

  def __init__(self, cfg: config_lib.Model, rules: Rules, *, out_std: float, rngs: nnx.Rngs):
    D, E, F = cfg.dim, cfg.experts, cfg.mlp
    self.k, self.own = cfg.experts_per_token, cfg.modality_experts
    axes = ("experts", "embed", "mlp")
    self.router_DE = param(rngs, (D, E), (None, None), rules, std=D**-0.5)
    self.router_ME = param(rngs, (len(self.own), E), (None, None), rules, std=0.0)
    self.w_gate_EDF = param(rngs, (E, D, F), axes, rules, std=D**-0.5)
    self.w_up_EDF = param(rngs, (E, D, F), axes, rules, std=D**-0.5)
    self.w_down_EFD = param(rngs, (E, F, D), ("experts", "mlp", "embed"), rules,
                            std=out_std * F**-0.5)

  def __call__(self, x_BSD: jax.Array, modality_BS: jax.Array, segment_BS: jax.Array
               ) -> tuple[jax.Array, jax.Array]:
    """Outputs [B, S, D], and the balance of the router's choices, 1 at best.

    The balance is E * sum(share of assignments * mean probability) over experts (Switch
    Transformer, Fedus et al., 2021), of positions that aren't padding.
    """
    told_BSM = jax.nn.one_hot(modality_BS, len(self.own))
    logits_BSE = (jnp.einsum("bsd,de->bse", x_BSD.astype(jnp.float32), self.router_DE[...])
                  + jnp.einsum("bsm,me->bse", told_BSM, self.router_ME[...] + self._allowed()))
    p_BSE = jax.nn.softmax(logits_BSE, -1)
    gate_BSK, expert_BSK = jax.lax.top_k(p_BSE, self.k)
    gate_BSK /= jnp.sum(gate_BSK, -1, keepdims=True)
    y_BSD = self._experts(x_BSD, gate_BSK, expert_BSK)
    real_BS = (segment_BS > 0).astype(jnp.float32)
    count = jnp.maximum(jnp.sum(real_BS), 1.0)
    chosen_BSE = jnp.sum(jax.nn.one_hot(expert_BSK, p_BSE.shape[-1]), 2) / self.k
    share_E = jnp.einsum("bs,bse->e", real_BS, chosen_BSE, out_sharding=jax.P(None)) / count
    mean_E = jnp.einsum("bs,bse->e", real_BS, p_BSE, out_sharding=jax.P(None)) / count
    return y_BSD, len(share_E) * jnp.sum(jax.lax.stop_gradient(share_E) * mean_E)

  def _allowed(self) -> np.ndarray:
    """0 where a modality [M] may use an expert [E], else hardly a chance.

    The first experts are the modalities' own, in their order; the rest are everybody's.
    """
    E = self.router_DE.shape[1]
    out = np.zeros((len(self.own), E), np.float32)
    first = np.cumsum([0, *self.own])
    for m in range(len(self.own)):
      out[:, first[m] : first[m + 1]] = MASKED
      out[m, first[m] : first[m + 1]] = 0
    return out

  def _experts(self, x_BSD: jax.Array, gate_BSK: jax.Array, expert_BSK: jax.Array) -> jax.Array:
    """The weighted sum of each position's experts, each device working with its own experts."""
    at = jax.typeof(x_BSD).sharding.spec
    expert, embed, mlp = jax.typeof(self.w_gate_EDF[...]).sharding.spec
    dtype = x_BSD.dtype

    # Unchecked: in generation every device along a row has all of it.
    @functools.partial(
      jax.shard_map, out_specs=at, check_vma=False,
      in_specs=(at, jax.P(*at[:2], None), jax.P(*at[:2], None), jax.P(expert, embed, mlp),
                jax.P(expert, embed, mlp), jax.P(expert, mlp, embed)))
    def local(x_BSD, gate_BSK, expert_BSK, w_gate_EDF, w_up_EDF, w_down_EFD):
      B, S, D = x_BSD.shape
      x_LD, gate_LK, expert_LK = (v.reshape(B * S, -1) for v in (x_BSD, gate_BSK, expert_BSK))
      first = 0
      if expert:  # the positions of all devices that share out the experts
        x_LD, gate_LK, expert_LK = (jax.lax.all_gather(v, expert, tiled=True)
                                    for v in (x_LD, gate_LK, expert_LK))
        first = jax.lax.axis_index(expert) * w_gate_EDF.shape[0]
      whole = lambda w, axis: (jax.lax.all_gather(w.astype(dtype), embed, axis=axis, tiled=True)
                               if embed else w.astype(dtype))
      mine = w_gate_EDF.shape[0]
      index_A = expert_LK.reshape(-1) - first
      index_A = jnp.where((index_A >= 0) & (index_A < mine), index_A, mine)
      order_A = jnp.argsort(index_A)
      sizes_E = jnp.bincount(index_A, length=mine + 1)[:mine].astype(jnp.int32)
      rows_AD = x_LD[order_A // self.k]
      product = lambda a, w: jax.lax.ragged_dot(a, w, sizes_E, preferred_element_type=dtype)
      gate_AF = checkpoint_name(product(rows_AD, whole(w_gate_EDF, 1)), "gate")
      up_AF = checkpoint_name(product(rows_AD, whole(w_up_EDF, 1)), "up")
      h_AF = jax.nn.silu(gate_AF) * up_AF
      y_AD = product(h_AF, whole(w_down_EFD, 2)).astype(jnp.float32)
      # Past the last group lies what other devices do.
      done_A1 = (jnp.arange(len(order_A)) < jnp.sum(sizes_E))[:, None]
      y_AD = jnp.where(done_A1, y_AD * gate_LK.reshape(-1)[order_A][:, None], 0)
      y_LD = jnp.zeros_like(x_LD, jnp.float32).at[order_A // self.k].add(y_AD)
      y_LD = jax.lax.psum(y_LD, mlp) if mlp else y_LD
      if expert:
        y_LD = jax.lax.psum_scatter(y_LD, expert, tiled=True)
      return y_LD.astype(dtype).reshape(B, S, D)

    return local(x_BSD, gate_BSK, expert_BSK, self.w_gate_EDF[...], self.w_up_EDF[...],
                 self.w_down_EFD[...])
