"""Sums over leading dims become additions, with the same results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from omnijax.kernels import sums


@jax.jit
def inner(x, y):
  return x.sum(0) * y, x.sum((1, 2)), x.sum(-1), y


def f(x, y):
  a, b, c, y = inner(x, y)
  return {"a": a, "b": b + 1, "c": c}, y


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_same_results_without_a_reduction_of_a_leading_dim(dtype):
  r = np.random.default_rng(0)
  x, y = jnp.asarray(r.normal(size=(5, 6, 7)), dtype), jnp.asarray(r.normal(size=(6, 7)), dtype)
  got, want = sums.by_addition(f)(x, y), f(x, y)
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=1e-6)
  axes = lambda g: str(jax.make_jaxpr(g)(x, y)).count("axes=(0,)")
  assert axes(f) == 1 and axes(sums.by_addition(f)) == 0
