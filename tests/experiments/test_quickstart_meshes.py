"""The quickstart itself on every mesh of eight devices. Slow: five minutes."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import quickstart
from experiments.digits import manifest
from omnijax import config, sharding
from omnijax.data import encode, loader, prepare
from omnijax.tokenizers import load
from omnijax.train import state as state_lib
from omnijax.train import step as step_lib

MESHES = [(8, 1, 1, 1, 1), (1, 8, 1, 1, 1), (2, 2, 1, 1, 2), (1, 1, 1, 1, 8)]
STEPS = 20


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
  folder = tmp_path_factory.mktemp("quickstart")
  train, _ = manifest.write(folder, seed=0, docs=4000)
  run = quickstart.run()
  tokenizers = load.load_all(run.tokenizers)
  prepare.prepare(train, folder / "records", tokenizers=encode.Tokenizers(*tokenizers))
  data = dataclasses.replace(run.data, sources=(str(folder / "records"),))
  return dataclasses.replace(run, data=data), tokenizers


def first_losses(settings, tokenizers, shape):
  """Losses of the first steps on a mesh."""
  run = dataclasses.replace(settings, mesh=config.Mesh(**dict(zip(sharding.AXES, shape,
                                                                  strict=True))))
  vocab = load.vocab_of(tokenizers, run.tokenizers.codebooks)
  batches = loader.Loader(run.data, vocab, seed=run.train.seed)
  mesh = sharding.make_mesh(run.mesh)
  sharding.check_divides(run, mesh)
  with jax.set_mesh(mesh):
    state = state_lib.init(run, vocab, vectors=load.vectors_of(tokenizers, vocab))
    step, losses = step_lib.make_train_step(run), []
    for i in range(STEPS):
      state, metrics = step(state, sharding.place(batches.batch_at(i)))
      losses.append(metrics["loss"])
    return np.array([float(x) for x in losses])


@pytest.mark.slow
def test_losses_of_the_first_steps_are_equal_on_every_mesh(settings):
  run, tokenizers = settings
  alone = first_losses(run, tokenizers, (1, 1, 1, 1, 1))
  assert alone[-1] < 0.8 * alone[0]
  for shape in MESHES:
    losses = first_losses(run, tokenizers, shape)
    np.testing.assert_allclose(losses, alone, atol=1e-4, rtol=0, err_msg=str(shape))
