"""Loss and gradients of every modality are the same on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from omnijax import checkpoint, config, sharding
from omnijax.kernels import embedding
from omnijax.train import loss as loss_lib
from omnijax.train import state as state_lib

# Axes data, fsdp, context, expert, tensor: each alone, and every pair.
MESHES = [(8, 1, 1, 1, 1), (1, 8, 1, 1, 1), (1, 1, 8, 1, 1), (1, 1, 1, 8, 1), (1, 1, 1, 1, 2),
          (2, 2, 2, 1, 1), (2, 1, 1, 2, 2), (1, 2, 1, 2, 2), (1, 1, 2, 2, 2), (1, 2, 4, 1, 1),
          (1, 4, 1, 2, 1), (4, 1, 1, 1, 2)]
MODELS = {"dense": {}, "moe": {"experts": 8, "experts_per_token": 2, "mlp": 32,
                               "modality_experts": (1, 1, 1)}}
GIVEN_UP = "Involuntary full rematerialization"  # says XLA where it can't get from one to another


def graded(shape, model, weights=None):
  """Loss, the gradient of each parameter by name, whole, and the weights; from the same weights."""
  run = tiny.run(mesh=config.Mesh(**dict(zip(sharding.AXES, shape, strict=True))), model=model)
  mesh = sharding.make_mesh(run.mesh)
  sharding.check_divides(run, mesh)

  def score(model, batch):
    return loss_lib.loss(model, batch, loss_lib.denominators(batch, run.loss), run.loss)[0]

  with jax.set_mesh(mesh):
    if weights is None:
      made = state_lib.init(run, tiny.VOCAB, vectors=tiny.VECTORS).model
    else:
      like = state_lib.abstract(run, tiny.VOCAB).model
      made = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), weights, like)
    loss, grads = jax.jit(jax.value_and_grad(score))(made, sharding.place(tiny.batch(0)))
    assert all(g.sharding == p.sharding for g, p in zip(*map(jax.tree.leaves, (grads, made)),
                                                        strict=True))
    named = {k: np.asarray(v) for k, v in checkpoint.named(grads).items()}
    return float(loss), named, jax.device_get(made)


@pytest.fixture(scope="module", params=MODELS)
def model(request):
  return MODELS[request.param], graded((1, 1, 1, 1, 1), MODELS[request.param])


@pytest.mark.parametrize("shape", MESHES)
def test_same_loss_and_gradients_on_every_mesh(model, shape, capfd, monkeypatch):
  monkeypatch.setattr(embedding, "_PIECE", 100)  # several, the last one smaller
  settings, (loss, grads, weights) = model
  got, others, _ = graded(shape, settings, weights)
  assert GIVEN_UP not in capfd.readouterr().err
  np.testing.assert_allclose(got, loss, atol=1e-5)
  moved = [name for name in grads if np.abs(grads[name]).max() > 1e-3]
  assert len(moved) > 20, moved  # embeddings of every modality, trunk, heads, depth transformer
  for name in grads:
    np.testing.assert_allclose(others[name], grads[name], atol=1e-4, err_msg=name)


def test_xla_says_so_when_it_gives_up_on_a_sharding(capfd):
  mesh = jax.make_mesh((2, 2, 2), tuple("abc"), (jax.sharding.AxisType.Auto,) * 3)
  by_columns = jax.NamedSharding(mesh, jax.P(None, ("a", "b", "c")))
  by_rows = jax.NamedSharding(mesh, jax.P(("a", "b"), None))

  def move(x):
    x = jnp.sin(jax.lax.with_sharding_constraint(x, by_columns))
    return jax.lax.with_sharding_constraint(x, by_rows)

  jax.jit(move).lower(jnp.ones((16, 64))).compile()
  assert GIVEN_UP in capfd.readouterr().err
