"""Products of 8-bit numbers against the products that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnijax.kernels import quantized
from omnijax.sharding import AXES

ROWS, INPUTS, OUTPUTS = 8, 64, 32
NEAR = {"int8": 0.012, "fp8": 0.04}  # of the norm; measured 0.0096 and 0.034
MESHES = {
  # Of positions, inputs and outputs of the weights, and the result where it isn't plain.
  "fsdp": ((1, 8, 1, 1, 1), "fsdp", "fsdp", None, None),
  "outputs by tensor": ((1, 2, 1, 1, 4), "fsdp", "fsdp", "tensor", None),
  "inputs by tensor": ((1, 2, 1, 1, 4), "fsdp", "tensor", "fsdp", jax.P("fsdp", None)),
}


def drawn():
  r = np.random.default_rng(0)
  scale = np.exp(r.normal(size=(ROWS, 1)))  # rows and columns of all sizes
  shapes = ((ROWS, INPUTS), (INPUTS, OUTPUTS), (ROWS, OUTPUTS))
  x, w, slope = (r.normal(size=shape) for shape in shapes)
  return [np.float32(a) for a in (x * scale, w, slope / scale)]


def pulled(f, x, w, slope):
  y, vjp = jax.vjp(f, x, w)
  return y, *vjp(slope)


def single():
  return jax.make_mesh((1,) * 5, AXES, (jax.sharding.AxisType.Explicit,) * 5,
                       devices=jax.devices()[:1])


@pytest.mark.parametrize("kind", NEAR)
def test_is_near_the_product_and_its_gradients(kind):
  with jax.set_mesh(single()):
    x, w, slope = drawn()
    got = pulled(lambda x, w: quantized.product(kind, None, x, w), x, w, slope)
    want = pulled(jnp.matmul, x, w, slope)
  for a, b, near in zip(got, want, (NEAR[kind], NEAR[kind], 1e-6), strict=True):
    off = np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)
    assert off.mean() < near, off


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("kind", NEAR)
def test_is_the_same_on_every_mesh(kind, name):
  shape, rows, inputs, outputs, out = MESHES[name]
  x, w, slope = drawn()
  with jax.set_mesh(single()):
    want = pulled(lambda x, w: quantized.product(kind, None, x, w), x, w, slope)
  mesh = jax.make_mesh(shape, AXES, (jax.sharding.AxisType.Explicit,) * 5)
  put = lambda a, *spec: jax.device_put(a, jax.NamedSharding(mesh, jax.P(*spec)))
  with jax.set_mesh(mesh):
    f = jax.jit(lambda *args: pulled(lambda x, w: quantized.product(kind, out, x, w), *args))
    shared = inputs if inputs == "tensor" else None
    args = (put(x, rows, shared), put(w, inputs, outputs),
            put(slope, rows, None if out else outputs))
    got = f(*args)
    assert [a.sharding.spec for a in got[1:]] == [a.sharding.spec for a in args[:2]]
    text = f.lower(*args).compile().as_text()
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  if kind == "int8" and name == "fsdp":
    gathered = [line for line in text.splitlines() if " all-gather(" in line]
    assert any("s8[" in line for line in gathered), gathered


@pytest.mark.parametrize("kind", NEAR)
def test_what_is_not_finite_stays_so(kind):
  x, w, _ = drawn()
  with jax.set_mesh(single()):
    for wrong in (np.nan, np.inf):
      x[2, 5] = wrong
      y = quantized.product(kind, None, x, w)
      assert not np.isfinite(y[2]).any() and np.isfinite(np.delete(y, 2, 0)).all()


@pytest.mark.parametrize("kind", NEAR)
def test_nothing_is_nothing(kind):
  with jax.set_mesh(single()):
    y = quantized.product(kind, None, jnp.zeros((ROWS, INPUTS)), jnp.zeros((INPUTS, OUTPUTS)))
  np.testing.assert_array_equal(y, 0)
