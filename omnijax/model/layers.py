"""Parameters with a sharding at birth, norms, and the gated feed-forward layer.

B batch  S positions  D embed  F mlp
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from omnijax import config as config_lib
from omnijax.kernels import compiler, quantized
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


def dense(x: jax.Array, w: jax.Array, *, inputs: int = 1, out: jax.P | None = None,
          kind: str = "dtype") -> jax.Array:
  """Contracts the last `inputs` dims of x with the first of w.

  Works on two plain matrices where it can: with a batch and a sequence dim of its own, the
  gradient of a weight makes XLA's CPU backend transpose whole activations, which doubles a layer's
  time.

  Args:
    x: [B, S, inputs...]; S may be sharded.
    w: [inputs..., outputs...].
    out: partition of the outputs as one dim; needed where the inputs are sharded, since a sum over
      them could end up in several places.
    kind: of the numbers that are multiplied, see `config.Model.matmuls`.

  Returns:
    [B, S, outputs...] in the type of x.
  """
  outputs = w.shape[inputs:]
  size = math.prod(w.shape[:inputs])
  batch, seq, *_ = jax.typeof(x).sharding.spec
  # One group of dims at a time: the type of a sharded array follows no other reshape.
  w_IO = w.astype(x.dtype).reshape(size, *outputs).reshape(size, -1)
  matmul = _matmul if kind == "dtype" else functools.partial(quantized.product, kind)
  if seq:
    x_BSI = x.reshape(*x.shape[:2], size)
    y_BSO = matmul(None if out is None else jax.P(batch, seq, *out), x_BSI, w_IO)
    return y_BSO.reshape(*x.shape[:2], *outputs)
  x_MI = x.reshape(-1, *w.shape[:inputs]).reshape(-1, size)
  y_MO = matmul(None if out is None else jax.P(batch, *out), x_MI, w_IO)
  return unflatten(y_MO.reshape(-1, *outputs), x)


def _matmul(out: jax.P | None, x: jax.Array, w_IO: jax.Array) -> jax.Array:
  return jnp.einsum("...i,io->...o", x, w_IO, out_sharding=out)


class Mlp(nnx.Module):
  """SwiGLU (Shazeer, 2020): down(silu(gate(x)) * up(x))."""

  def __init__(self, cfg: config_lib.Model, rules: Rules, *, out_std: float, rngs: nnx.Rngs):
    D, F, std = cfg.dim, cfg.mlp, cfg.dim**-0.5
    self.rules, self.kind = rules, cfg.matmuls
    self.w_gate_DF = param(rngs, (D, F), ("embed", "mlp"), rules, std=std)
    self.w_up_DF = param(rngs, (D, F), ("embed", "mlp"), rules, std=std)
    self.w_down_FD = param(rngs, (F, D), ("mlp", "embed"), rules, std=out_std * F**-0.5)

  def __call__(self, x_BSD: jax.Array) -> jax.Array:
    gate_BSF, up_BSF = (checkpoint_name(dense(x_BSD, w[...], kind=self.kind), name)
                        for w, name in ((self.w_gate_DF, "gate"), (self.w_up_DF, "up")))
    down = functools.partial(dense, out=self.rules("act_embed"), kind=self.kind)
    return _down(down, gate_BSF, up_BSF, self.w_down_FD[...])


Product = Callable[[jax.Array, jax.Array], jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _down(down: Product, gate_BSF: jax.Array, up_BSF: jax.Array, w_FD: jax.Array) -> jax.Array:
  return down(_gated(gate_BSF, up_BSF), w_FD)


def _down_forward(down: Product, *args: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  return _down(down, *args), args


def _down_backward(down: Product, args: tuple[jax.Array, ...], slope_BSD: jax.Array
                   ) -> tuple[jax.Array, ...]:
  """Makes what the products of the gradient need in one pass over gate and up.

  On its own XLA makes it anew for each of them.
  """
  gate_BSF, up_BSF, w_FD = args
  h_BSF, gated = jax.vjp(_gated, gate_BSF, up_BSF)
  dh_BSF, = jax.vjp(lambda h_BSF: down(h_BSF, w_FD), h_BSF)[1](slope_BSD)
  if compiler.platform() != "tpu":  # a TPU does what follows while it writes dh
    dh_BSF = jax.lax.optimization_barrier(dh_BSF)
  h_BSF, dgate_BSF, dup_BSF = jax.lax.optimization_barrier((h_BSF, *gated(dh_BSF)))
  dw_FD, = jax.vjp(lambda w_FD: down(h_BSF, w_FD), w_FD)[1](slope_BSD)
  return dgate_BSF, dup_BSF, dw_FD


_down.defvjp(_down_forward, _down_backward)


def _gated(gate_BSF: jax.Array, up_BSF: jax.Array) -> jax.Array:
  return jax.nn.silu(gate_BSF) * up_BSF
