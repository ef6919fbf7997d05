"""The chunked cross-entropy against a plain statement of it, on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnijax.kernels import compiler
from omnijax.kernels import cross_entropy as cross_entropy_lib
from omnijax.kernels.cross_entropy import cross_entropy
from omnijax.sharding import AXES

B, S, D, V = 4, 6, 16, 64


def plain(hidden, w, labels, weight, z_weight):
  """Total, nll and log-partition without chunks, shardings or gradients of our own."""
  logits = jnp.einsum("bsd,dv->bsv", hidden, w)
  log_z = jax.nn.logsumexp(logits, -1)
  nll = log_z - jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
  return jnp.sum(weight * nll + z_weight * log_z**2), nll, log_z


def inputs(seed=0):
  r = np.random.default_rng(seed)
  weight = r.random((B, S)) * (r.random((B, S)) > 0.3)
  return (r.normal(size=(B, S, D)), r.normal(size=(D, V)), r.integers(0, V, (B, S)), weight,
          0.1 * weight)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("shape,batch,seq,embed,vocab", [
  ((1, 1, 1, 1, 1), None, None, None, None),
  ((2, 2, 1, 1, 2), ("data", "fsdp"), None, "fsdp", "tensor"),
  ((1, 4, 2, 1, 1), ("data", "fsdp"), "context", "fsdp", None),
  ((1, 1, 2, 1, 4), None, "context", None, "tensor"),
])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_equals_a_plain_statement_on_every_mesh(shape, batch, seq, embed, vocab, chunk, platform,
                                                monkeypatch):
  monkeypatch.setattr(compiler, "platform", lambda: platform)
  hidden, w, labels, weight, z_weight = inputs()
  devices = jax.devices()[: int(np.prod(shape))]
  mesh = jax.make_mesh(shape, AXES, (jax.sharding.AxisType.Explicit,) * 5, devices=devices)
  single = jax.make_mesh((1,) * 5, AXES, (jax.sharding.AxisType.Explicit,) * 5,
                         devices=devices[:1])
  total = lambda f: lambda h, w, *rest: (lambda out: (3 * out[0], out[1:]))(f(h, w, *rest))
  f32 = lambda *xs: [np.float32(x) for x in xs]
  with jax.set_mesh(single):
    args = (*f32(hidden, w), np.int32(labels), *f32(weight, z_weight))
    want = jax.jit(jax.value_and_grad(total(plain), (0, 1), has_aux=True))(*args)
  with jax.set_mesh(mesh):
    put = lambda x, *spec: jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec)))
    args = [put(*f32(hidden), batch, seq, None), put(*f32(w), embed, vocab),
            *(put(x, batch, seq) for x in (np.int32(labels), *f32(weight, z_weight)))]
    f = lambda *args: cross_entropy(*args, chunk=chunk)
    got = jax.jit(jax.value_and_grad(total(f), (0, 1), has_aux=True))(*args)
    bare = jax.jit(f)(*args)
    assert [x.sharding.spec for x in got[1]] == [x.sharding.spec for x in args[:2]]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), got, want)
  np.testing.assert_allclose(bare.total * 3, want[0][0], rtol=1e-5)


@pytest.mark.parametrize("spread", [1e-3, 10, 3000])
def test_one_pass_gives_what_several_do(spread):
  r = np.random.default_rng(1)
  logits = np.float32(r.normal(size=(8, 500)) * spread)
  at = np.int32([0, 3, 499, 250, -1, -500, 500, 1000])  # the last four are in other shards
  whole = jax.jit(cross_entropy_lib._in_one_pass)(logits, at)
  parts = jax.jit(cross_entropy_lib._in_passes)(logits, at)
  np.testing.assert_array_equal(whole[0], parts[0])
  np.testing.assert_allclose(whole[1], parts[1], rtol=1e-5)
  np.testing.assert_array_equal(whole[2], parts[2])
  np.testing.assert_array_equal(whole[2][4:], 0)


def test_one_pass_lets_nothing_that_is_not_finite_through():
  for wrong in (np.nan, np.inf):
    logits = np.zeros((1, 100), np.float32)
    logits[0, 50] = wrong
    top, mass, _ = jax.jit(cross_entropy_lib._in_one_pass)(logits, np.int32([0]))
    assert not np.isfinite(top + np.log(mass)), (wrong, top, mass)


def test_takes_less_than_an_eighth_of_the_memory_of_all_logits(mesh):
  """Of the loss and its gradients at a large vocabulary, as compiled."""
  rows, length, dim, size = 2, 512, 32, 196_608
  like = lambda shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
  args = (like((rows, length, dim)), like((dim, size)), like((rows, length), jnp.int32),
          like((rows, length)), like((rows, length)))

  def taken(f):
    grad = jax.jit(jax.grad(lambda *args: f(*args)[0], (0, 1)))
    return grad.lower(*args).compile().memory_analysis().temp_size_in_bytes

  whole, chunked = taken(plain), taken(lambda *args: cross_entropy(*args, chunk=64))
  assert whole > rows * length * size * 4  # all logits are in it
  assert chunked < whole / 8, (chunked, whole)
