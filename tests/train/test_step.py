"""The train step: the same on every mesh, for every split into micro-batches, compiled once."""

import jax
import numpy as np
import pytest
import tiny

from omnijax import checkpoint, config, sharding
from omnijax.train import state as state_lib
from omnijax.train import step as step_lib

ONE, MANY = (1, 1, 1, 1, 1), (1, 2, 2, 2, 1)  # all meshes: test_meshes.py


def train(shape, steps=3, **changes):
  """Losses of the first steps, the final state's arrays, and how often the step compiled."""
  run = tiny.run(mesh=config.Mesh(**dict(zip(sharding.AXES, shape, strict=True))), **changes)
  mesh = sharding.make_mesh(run.mesh)
  sharding.check_divides(run, mesh)
  with jax.set_mesh(mesh):
    state = state_lib.init(run, tiny.VOCAB, vectors=tiny.VECTORS)
    step = step_lib.make_train_step(run)
    losses = []
    for i in range(steps):
      state, metrics = step(state, sharding.place(tiny.batch(i)))
      losses.append(float(metrics["loss"]))
    arrays = {k: np.asarray(v) for k, v in checkpoint.named(state).items()}
    return np.array(losses), arrays, step._cache_size()


@pytest.fixture(scope="module")
def reference():
  return train(ONE)


def test_same_losses_on_a_mesh(reference):
  losses, _, compiled = train(MANY)
  np.testing.assert_allclose(losses, reference[0], atol=1e-4, rtol=0)
  assert compiled == 1
  assert reference[0][2] < reference[0][0] - 0.01  # it learns, so equality isn't trivial


def test_same_losses_with_a_head_on_each_device():
  heads = {"heads": 8, "kv_heads": 8, "head_dim": 8, "depth_heads": 8}
  alone, _, _ = train(ONE, model=heads)
  spread, _, _ = train((1, 1, 1, 1, 8), model=heads)
  np.testing.assert_allclose(spread, alone, atol=1e-4, rtol=0)


def test_micro_batches_add_up_to_the_batch(reference):
  # Rows hold unequal numbers of targets, so that a mean of means would differ.
  losses, arrays, compiled = train((2, 1, 1, 1, 1), optim={"accumulate": 4})
  np.testing.assert_allclose(losses, reference[0], atol=1e-5, rtol=0)
  assert compiled == 1
  for name in ("model.head_DV", "model.depth.w_out_QEC"):
    np.testing.assert_allclose(arrays[name], reference[1][name], atol=1e-4)


@pytest.mark.parametrize("remat", ["minimal", "full"])
def test_remat_changes_nothing(remat, reference):
  losses, _, _ = train(ONE, steps=2, model={"remat": remat})
  np.testing.assert_allclose(losses, reference[0][:2], atol=1e-5, rtol=0)


def test_muon_and_average_on_a_mesh():
  changes = {"optim": {"kind": "muon", "ema": 0.5, "warmup_steps": 0, "peak_lr": 1e-2}}
  one, arrays, _ = train(ONE, **changes)
  many, sharded, compiled = train((2, 2, 1, 1, 2), **changes)
  np.testing.assert_allclose(one, many, atol=1e-4, rtol=0)
  assert compiled == 1
  average = next(v for k, v in sharded.items() if "average" in k and k.endswith("head_DV"))
  assert 0 < np.abs(average - sharded["model.head_DV"]).max() < 0.1
  np.testing.assert_allclose(arrays["model.head_DV"], sharded["model.head_DV"], atol=1e-3)


def test_first_moment_may_be_half_as_large(reference):
  losses, arrays, compiled = train(ONE, optim={"moment_dtype": "bfloat16"})
  np.testing.assert_allclose(losses, reference[0], atol=2e-3, rtol=0)
  moments = {k: v.dtype for k, v in arrays.items() if ".mu." in k}
  assert moments and set(map(str, moments.values())) == {"bfloat16"} and compiled == 1
  assert {str(v.dtype) for k, v in arrays.items() if ".nu." in k} == {"float32"}


def test_seed_decides_the_first_state():
  a, b = (train(ONE, steps=0, train={"seed": seed})[1] for seed in (0, 1))
  assert np.abs(a["model.head_DV"] - b["model.head_DV"]).max() > 0.1


@pytest.mark.parametrize("kind,near", [("int8", 5e-3), ("fp8", 2e-2)])
def test_products_of_8_bits_are_near_and_the_same_on_a_mesh(kind, near, reference):
  changes = {"model": {"matmuls": kind, "remat": "minimal"}}
  losses, _, compiled = train(ONE, **changes)
  assert compiled == 1
  assert 1e-6 < np.abs(losses - reference[0]).max() < near, losses - reference[0]
  many, _, _ = train((1, 2, 2, 1, 2), **changes)
  # Sums in another order tip what is about to be rounded up or down, the more so the coarser.
  np.testing.assert_allclose(many, losses, atol=near / 5, rtol=0)


def test_all_products_of_the_trunk_are_of_8_bits():
  """Seven weights of a layer, forward and for the gradient of what they multiply."""
  counts = {}
  for kind in ("dtype", "int8"):
    run = tiny.run(mesh=config.Mesh(), model={"matmuls": kind})
    with jax.set_mesh(sharding.make_mesh(run.mesh)):
      state = state_lib.abstract(run, tiny.VOCAB)
      batch = sharding.place(tiny.batch(0))
      text = step_lib.make_train_step(run).lower(state, batch).as_text()
    counts[kind] = sum("dot_general" in line and "xi8>" in line for line in text.splitlines())
  assert counts == {"dtype": 0, "int8": 14}
