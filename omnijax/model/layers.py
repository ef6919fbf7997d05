"""Parameters with a sharding at birth, norms, and the gated feed-forward layer.

B batch  S positions  D embed  F mlp
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from omnijax.sharding import Rules


def param(rngs: nnx.Rngs, shape: Sequence[int], axes: Sequence[str | None], rules: Rules, *,
          std: float) -> nnx.Param:
  """A float32 parameter drawn from a normal distribution of this deviation, sharded at birth."""
  draw = nnx.initializers.normal(std) if std else nnx.initializers.zeros_init()
  return nnx.Param(draw(rngs.params(), tuple(shape), jnp.float32, out_sharding=rules(*axes)))


def scale(size: int, rules: Rules, axes: tuple[str | None, ...] = (None,),
          lead: tuple[int, ...] = ()) -> nnx.Param:
  """The gain of an RMSNorm, ones of shape lead + (size,)."""
  ones = jnp.ones((*lead, size), jnp.float32, out_sharding=rules(*axes))
  return nnx.Param(ones)


def rms_norm(x: jax.Array, gain: jax.Array, eps: float) -> jax.Array:
  """Divides by the root mean square of the last dim, in float32 (Zhang and Sennrich, 2019).

  Args:
    x: [..., D].
    gain: [D], or any shape that ends in x's last dims and has x's rank when larger.
    eps: added to the mean square.
  """
  x32 = x.astype(jnp.float32)
  y = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps)
  gain = gain.reshape((1,) * (x.ndim - gain.ndim) + gain.shape)
  return (y * gain).astype(x.dtype)


class Mlp(nnx.Module):
  """SwiGLU (Shazeer, 2020): down(silu(gate(x)) * up(x))."""

  def __init__(self, dim: int, mlp: int, rules: Rules, *, out_std: float, rngs: nnx.Rngs):
    self.rules = rules
    std = dim**-0.5
    self.w_gate_DF = param(rngs, (dim, mlp), ("embed", "mlp"), rules, std=std)
    self.w_up_DF = param(rngs, (dim, mlp), ("embed", "mlp"), rules, std=std)
    self.w_down_FD = param(rngs, (mlp, dim), ("mlp", "embed"), rules, std=out_std * mlp**-0.5)

  def __call__(self, x_BSD: jax.Array) -> jax.Array:
    dtype = x_BSD.dtype
    gate_BSF = jnp.einsum("bsd,df->bsf", x_BSD, self.w_gate_DF[...].astype(dtype))
    up_BSF = jnp.einsum("bsd,df->bsf", x_BSD, self.w_up_DF[...].astype(dtype))
    return jnp.einsum("bsf,fd->bsd", jax.nn.silu(gate_BSF) * up_BSF,
                      self.w_down_FD[...].astype(dtype),
                      out_sharding=self.rules("batch", "seq", "act_embed"))
