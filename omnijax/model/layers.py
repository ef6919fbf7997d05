"""Parameters with a sharding at birth, norms, and the gated feed-forward layer.

B batch  S positions  D embed  F mlp
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from omnijax.kernels import compiler
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


def unflatten(y: jax.Array, like: jax.Array) -> jax.Array:
  """Splits the first dim of y into the first two of `like`, sharded as they are there."""
  spec = jax.P(*jax.typeof(like).sharding.spec[:2], *jax.typeof(y).sharding.spec[1:])
  return jax.lax.reshape(y, (*like.shape[:2], *y.shape[1:]), out_sharding=spec)


def dense(x: jax.Array, w: jax.Array, *, inputs: int = 1, out: jax.P | None = None) -> jax.Array:
  """Contracts the last `inputs` dims of x with the first of w, in the type of x.

  Works on two plain matrices where it can: with a batch and a sequence dim of its own, the
  gradient of a weight makes XLA's CPU backend transpose whole activations, which doubles a layer's
  time.

  Args:
    x: [B, S, inputs...]; S may be sharded.
    w: [inputs..., outputs...].
    out: partition of the outputs as one dim; needed where the inputs are sharded, since a sum over
      them could end up in several places.

  Returns:
    [B, S, outputs...].
  """
  outputs = w.shape[inputs:]
  size = math.prod(w.shape[:inputs])
  batch, seq, *_ = jax.typeof(x).sharding.spec
  # One group of dims at a time: the type of a sharded array follows no other reshape.
  w_IO = w.reshape(size, *outputs).reshape(size, -1).astype(x.dtype)
  if seq:
    x_BSI = x.reshape(*x.shape[:2], size)
    y_BSO = jnp.einsum("bsi,io->bso", x_BSI, w_IO,
                       out_sharding=None if out is None else jax.P(batch, seq, *out))
    return y_BSO.reshape(*x.shape[:2], *outputs)
  x_MI = x.reshape(-1, *w.shape[:inputs]).reshape(-1, size)
  y_MO = jnp.einsum("mi,io->mo", x_MI, w_IO,
                    out_sharding=None if out is None else jax.P(batch, *out))
  return unflatten(y_MO.reshape(-1, *outputs), x)


class Mlp(nnx.Module):
  """SwiGLU (Shazeer, 2020): down(silu(gate(x)) * up(x))."""

  def __init__(self, dim: int, mlp: int, rules: Rules, *, out_std: float, rngs: nnx.Rngs):
    self.rules = rules
    std = dim**-0.5
    self.w_gate_DF = param(rngs, (dim, mlp), ("embed", "mlp"), rules, std=std)
    self.w_up_DF = param(rngs, (dim, mlp), ("embed", "mlp"), rules, std=std)
    self.w_down_FD = param(rngs, (mlp, dim), ("mlp", "embed"), rules, std=out_std * mlp**-0.5)

  def __call__(self, x_BSD: jax.Array) -> jax.Array:
    gate_BSF = checkpoint_name(dense(x_BSD, self.w_gate_DF[...]), "gate")
    up_BSF = checkpoint_name(dense(x_BSD, self.w_up_DF[...]), "up")
    return _down(self.rules("act_embed"), gate_BSF, up_BSF, self.w_down_FD[...])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _down(out: jax.P, gate_BSF: jax.Array, up_BSF: jax.Array, w_FD: jax.Array) -> jax.Array:
  return dense(_gated(gate_BSF, up_BSF), w_FD, out=out)


def _down_forward(out: jax.P, *args: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  return _down(out, *args), args


def _down_backward(out: jax.P, args: tuple[jax.Array, ...], slope_BSD: jax.Array
                   ) -> tuple[jax.Array, ...]:
  """Makes what the products of the gradient need in one pass over gate and up.

  On its own XLA makes it anew for each of them.
  """
  gate_BSF, up_BSF, w_FD = args
  h_BSF, gated = jax.vjp(_gated, gate_BSF, up_BSF)
  dh_BSF, = jax.vjp(lambda h_BSF: dense(h_BSF, w_FD, out=out), h_BSF)[1](slope_BSD)
  if compiler.platform() != "tpu":  # a TPU does what follows while it writes dh
    dh_BSF = jax.lax.optimization_barrier(dh_BSF)
  h_BSF, dgate_BSF, dup_BSF = jax.lax.optimization_barrier((h_BSF, *gated(dh_BSF)))
  dw_FD, = jax.vjp(lambda w_FD: dense(h_BSF, w_FD, out=out), w_FD)[1](slope_BSD)
  return dgate_BSF, dup_BSF, dw_FD


_down.defvjp(_down_forward, _down_backward)


def _gated(gate_BSF: jax.Array, up_BSF: jax.Array) -> jax.Array:
  return jax.nn.silu(gate_BSF) * up_BSF
