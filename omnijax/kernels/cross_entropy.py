"""Cross-entropy over a large vocabulary that never holds the logits of all positions.

Positions are taken a chunk at a time; each chunk's gradients are made where its logits are, in the
forward pass, so that nothing is computed twice and no [B, S, V] exists (as in Liger's fused linear
cross-entropy, Hsu et al., 2024). This works because the loss is one scalar whose weights are
known beforehand.

B batch  S positions  D embed  V vocabulary  L positions of a device  N chunks  C of a chunk
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from omnijax.kernels import compiler
from omnijax.kernels.embedding import reduce_scatter
from omnijax.sharding import axes_of


class Nats(NamedTuple):
  """A weighted loss, differentiable, and its parts, which are not."""

  total: jax.Array  # float32 []
  nll_BS: jax.Array  # negative log-likelihood of each label
  log_z_BS: jax.Array  # log-partition


def cross_entropy(hidden_BSD: jax.Array, w_DV: jax.Array, labels_BS: jax.Array,
                  weight_BS: jax.Array, z_weight_BS: jax.Array, *, chunk: int) -> Nats:
  """sum(weight * nll + z_weight * log_z ** 2) of the labels under softmax(hidden @ w).

  Each device works on its own positions and its own slice of the vocabulary.

  Args:
    hidden_BSD: as sharded over B and S as it likes; also the type of the matrix products.
    w_DV: float32; its V may be sharded, and its D over axes that B is sharded on, too.
    labels_BS: int32.
    weight_BS: float32, of each position's nll in the total.
    z_weight_BS: float32, of each squared log-partition (z-loss).
    chunk: positions of a device whose logits, float32 [C, V], exist together.
  """
  total, nll_BS, log_z_BS = _cross_entropy(chunk, hidden_BSD, w_DV, labels_BS, weight_BS,
                                           z_weight_BS)
  return Nats(total, jax.lax.stop_gradient(nll_BS), jax.lax.stop_gradient(log_z_BS))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(chunk, hidden_BSD, w_DV, labels_BS, weight_BS, z_weight_BS):
  return _run(chunk, False, hidden_BSD, w_DV, labels_BS, weight_BS, z_weight_BS)[0]


def _forward(chunk, *args):
  out, grads = _run(chunk, True, *args)
  # Together, or each device would keep its unsummed gradient of w through the backward pass.
  return out, jax.lax.optimization_barrier(grads)


def _backward(chunk, grads, cotangents):
  del chunk
  dhidden_BSD, dw_DV = grads
  g = cotangents[0]
  return (dhidden_BSD * g.astype(dhidden_BSD.dtype), dw_DV * g, None, None, None)


_cross_entropy.defvjp(_forward, _backward)


def _run(chunk, with_grads, hidden_BSD, w_DV, labels_BS, weight_BS, z_weight_BS):
  """The outputs, and with_grads the gradients of the total; sharded as what they belong to."""
  batch, seq, _ = jax.typeof(hidden_BSD).sharding.spec
  embed, vocab = jax.typeof(w_DV).sharding.spec
  at = jax.P(batch, seq)
  grads = (jax.P(batch, seq, None), jax.P(embed, vocab)) if with_grads else None

  @functools.partial(jax.shard_map, in_specs=(jax.P(batch, seq, None), jax.P(embed, vocab), at, at,
                                              at), out_specs=((jax.P(), at, at), grads))
  def local(hidden_BSD, w_DV, labels_BS, weight_BS, z_weight_BS):
    dtype, (B, S, D) = hidden_BSD.dtype, hidden_BSD.shape
    whole_DV = w_DV.astype(dtype)
    if embed:
      whole_DV = jax.lax.all_gather(whole_DV, embed, axis=0, tiled=True)
    first = jax.lax.axis_index(vocab) * w_DV.shape[1] if vocab else 0
    N = -(-B * S // chunk)
    C = -(-B * S // N)

    def split(x):
      x = x.reshape(B * S, *x.shape[2:])
      return jnp.pad(x, ((0, N * C - B * S), *((0, 0),) * (x.ndim - 1))).reshape(N, C, *x.shape[1:])

    def body(dw_DV, part):
      hidden_CD, labels_C, weight_C, z_weight_C = part
      logits_CV = jnp.einsum("cd,dv->cv", hidden_CD, whole_DV, preferred_element_type=jnp.float32)
      sums = _in_one_pass if compiler.platform() == "gpu" else _in_passes
      own_C, mass_C, score_C = sums(logits_CV, labels_C - first)
      top_C = _over(jax.lax.pmax, own_C, vocab)
      log_z_C = top_C + jnp.log(_over(jax.lax.psum, mass_C * jnp.exp(own_C - top_C), vocab))
      score_C = _over(jax.lax.psum, score_C, vocab)
      out = (log_z_C - score_C, log_z_C)
      if not with_grads:
        return dw_DV, (out, None)
      slope_C = weight_C + 2 * z_weight_C * log_z_C
      p_CV = jnp.exp(logits_CV - log_z_C[:, None])
      hit_CV = _hits(labels_C - first, logits_CV)
      d_CV = (p_CV * slope_C[:, None] - jnp.where(hit_CV, weight_C[:, None], 0.0)).astype(dtype)
      dhidden_CD = _over(jax.lax.psum, jnp.einsum(
        "cv,dv->cd", d_CV, whole_DV, preferred_element_type=jnp.float32), vocab)
      dw_DV += jnp.einsum("cd,cv->dv", hidden_CD, d_CV, preferred_element_type=jnp.float32)
      return dw_DV, (out, dhidden_CD.astype(dtype))

    parts = tuple(map(split, (hidden_BSD, labels_BS, weight_BS, z_weight_BS)))
    # The sum of gradients differs from device to device until it is added up below.
    varies = tuple({*axes_of(batch), *axes_of(seq), *axes_of(embed), *axes_of(vocab)})
    start_DV = jnp.zeros(whole_DV.shape if with_grads else (), jnp.float32)
    start_DV = jax.lax.pcast(start_DV, varies, to="varying")
    dw_DV, ((nll_NC, log_z_NC), dhidden_NCD) = jax.lax.scan(body, start_DV, parts)
    join = lambda x, *shape: x.reshape(N * C, *shape)[: B * S].reshape(B, S, *shape)
    nll_BS, log_z_BS = join(nll_NC), join(log_z_NC)
    total = jnp.sum(weight_BS * nll_BS + z_weight_BS * jnp.square(log_z_BS))
    out = jax.lax.psum(total, axes_of(batch) + axes_of(seq)), nll_BS, log_z_BS
    if not with_grads:
      return out, None
    # Over devices in the type of the products, as everywhere else.
    dw_DV = (reduce_scatter(dw_DV, embed, dim=0, dtype=dtype) if embed else dw_DV.astype(dtype))
    others = tuple(a for a in axes_of(batch) + axes_of(seq) if a not in axes_of(embed))
    dw_DV = _over(jax.lax.psum, dw_DV, others).astype(jnp.float32)
    return out, (join(dhidden_NCD, D), dw_DV)

  return local(hidden_BSD, w_DV, labels_BS, weight_BS, z_weight_BS)


def _hits(at_C, logits_CV):
  """Where the label is, if it is in this shard of the vocabulary."""
  return at_C[:, None] == jnp.arange(logits_CV.shape[1])[None]


def _in_passes(logits_CV, at_C):
  """Of each row: the largest logit, the sum of exp(logit - largest), and the label's or 0."""
  top_C = logits_CV.max(1)
  mass_C = jnp.exp(logits_CV - top_C[:, None]).sum(1)
  return top_C, mass_C, jnp.where(_hits(at_C, logits_CV), logits_CV, 0.0).sum(1)


def _in_one_pass(logits_CV, at_C):
  """The same, reading the logits once (Milakov and Gimelshein, 2018); for a CPU this is slower."""
  def join(a, b):
    (top_a, mass_a), (top_b, mass_b) = a, b
    less = jnp.exp(-jnp.abs(top_a - top_b))
    mass = jnp.where(top_a > top_b, mass_a + mass_b * less, mass_a * less + mass_b)
    return jnp.maximum(top_a, top_b), mass

  start = jnp.float32(jnp.finfo(jnp.float32).min), jnp.float32(0)
  top_C, mass_C = jax.lax.reduce((logits_CV, jnp.ones_like(logits_CV)), start, join, (1,))
  score_C = jnp.take_along_axis(logits_CV, at_C[:, None], 1, mode="fill", fill_value=0)[:, 0]
  return top_C, mass_C, jnp.where(at_C < 0, 0.0, score_C)


def _over(reduce, x, axes):
  return reduce(x, axes) if axes else x
