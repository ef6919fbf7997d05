"""Attention of rows laid out over devices: plain, by the TPU's kernel, by a GPU's (played)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from omnijax.kernels import attention, compiler, cudnn
from omnijax.sharding import AXES, RULES
from tests.kernels.test_cudnn import played

B, S, N, K, H = 2, 512, 4, 2, 16


def inputs():
  r = np.random.default_rng(0)
  q, k, v = (r.normal(size=(B, S, n, H)).astype(np.float32) for n in (N, K, K))
  segment = np.cumsum(r.random((B, S)) < 0.02, 1).astype(np.int32) + 1
  segment[:, -37:] = 0
  return q, k, v, segment


def plain(q, k, v, segment, window=S):
  s = jnp.einsum("btkgh,bskh->bkgts", q.reshape(B, S, K, N // K, H), k) * H**-0.5
  keep = (segment[:, :, None] == segment[:, None]) & np.tril(np.ones((S, S), bool))[None]
  keep &= ~np.tril(np.ones((S, S), bool), -window)[None]
  p = jax.nn.softmax(jnp.where(keep[:, None, None], s, -1e30), -1)
  return jnp.einsum("bkgts,bskh->btkgh", p, v).reshape(B, S, N, H)


def score(f):
  """Output where it means something, and the gradients of a function of it."""
  def total(q, k, v, segment):
    out = jnp.where((segment > 0)[..., None, None], f(q, k, v, segment), 0)
    return jnp.sum(jnp.sin(out)), out
  return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))


@pytest.fixture(scope="module")
def want():
  return {w: jax.device_get(score(functools.partial(plain, window=w or S))(*inputs()))
          for w in (0, 37)}


@pytest.mark.parametrize("kernel", ["plain", "tpu", "gpu", "gpu, any documents",
                                    "gpu, too many"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 1, 1, 1, 2), (1, 1, 2, 1, 1),
                                   (1, 1, 2, 1, 2), (1, 1, 4, 1, 2)])
@pytest.mark.parametrize("window", [0, 37])
def test_rows_on_every_layout(kernel, shape, window, want, monkeypatch):
  want = want[window]
  monkeypatch.setattr(attention, "_INTERPRET", kernel == "tpu")
  monkeypatch.setattr(attention, "_CHUNK", 200)
  if kernel.startswith("gpu"):
    monkeypatch.setattr(compiler, "platform", lambda: "gpu")
    monkeypatch.setattr(cudnn, "usable", lambda q: True)
    monkeypatch.setattr(cudnn, "_DOCUMENTS", 4 if kernel == "gpu, too many" else 32)
    monkeypatch.setattr(fused_attention_stablehlo, "dot_product_attention", played)
  mesh = jax.make_mesh(shape, AXES, (jax.sharding.AxisType.Explicit,) * 5,
                       devices=jax.devices()[: int(np.prod(shape))])
  with jax.set_mesh(mesh):
    order = RULES.order(S)
    assert (np.sort(order) == np.arange(S)).all()
    assert shape[2] == 1 or order[S // (2 * shape[2])] > S // 2  # a late run beside an early one
    wide = RULES("batch", "seq", "heads", None)
    put = lambda x, spec: jax.device_put(x[:, order], jax.NamedSharding(mesh, spec))
    q, k, v, segment = inputs()
    args = [*(put(x, wide) for x in (q, k, v)), put(segment, RULES("batch", "seq"))]
    rows = functools.partial(attention.rows, order_S=order, blocks=(128, 128),
                             documents=32 if kernel == "gpu" else 0, window=window)
    (total, out), grads = jax.device_get(score(rows)(*args))
  back = np.argsort(order)
  np.testing.assert_allclose(total, want[0][0], rtol=1e-4)
  np.testing.assert_allclose(out[:, back], want[0][1], atol=2e-5)
  for got, right in zip(grads, want[1], strict=True):
    np.testing.assert_allclose(got[:, back], right, atol=2e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (2, 1, 1, 1, 2)])
@pytest.mark.parametrize("T", [1, 4])
def test_what_is_new_is_appended_in_a_ring(shape, T):
  L, room = 3, 10
  r = np.random.default_rng(0)
  mesh = jax.make_mesh(shape, AXES, (jax.sharding.AxisType.Explicit,) * 5,
                       devices=jax.devices()[: int(np.prod(shape))])
  for lengths, counts in (((0, 3), (4, 2)), ((6, 7), (4, 4)), ((19, 12), (0, 1)), ((9, 8), (4, 3))):
    cache = r.normal(size=(L, B, K, room, H)).astype(np.float32)
    new = r.normal(size=(L, B, T, K, H)).astype(np.float32)
    want = cache.copy()
    for b, (length, count) in enumerate(zip(lengths, counts, strict=True)):
      for t in range(min(count, T)):
        want[:, b, :, (length + t) % room] = new[:, b, t]
    with jax.set_mesh(mesh):
      put = lambda x, *axes: jax.device_put(x, jax.NamedSharding(mesh, RULES(*axes)))
      at = attention.Lengths(*(put(np.int32(x), "batch") for x in (lengths, lengths, counts)))
      got = jax.jit(attention.append)(
        put(cache, "layers", "batch", "kv_heads", None, None),
        put(new, "layers", "batch", None, "kv_heads", None), at)
    np.testing.assert_array_equal(got, want)
