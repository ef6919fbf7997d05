"""The quickstart itself on every mesh of eight devices. Slow: eight minutes."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np
import pytest

from experiments import quickstart
from experiments.digits import manifest
from omnijax import checkpoint, config, sharding
from omnijax.data import encode, loader, prepare
from omnijax.tokenizers import load
from omnijax.train import state as state_lib
from omnijax.train import step as step_lib

MESHES = [(8, 1, 1, 1, 1), (1, 8, 1, 1, 1), (2, 2, 1, 1, 2), (1, 1, 1, 1, 8)]
STEPS = 20


@dataclasses.dataclass
class Case:
  """The quickstart on a few of its documents, and where its checkpoints go."""

  run: config.Run
  tokenizers: load.Tokenizers
  folder: pathlib.Path

  @functools.cached_property
  def vocab(self):
    return load.vocab_of(self.tokenizers, self.run.tokenizers)

  def on(self, shape):
    axes = dict(zip(sharding.AXES, shape, strict=True))
    mesh = sharding.make_mesh(config.Mesh(**axes))
    sharding.check_divides(self.run, mesh)
    return jax.set_mesh(mesh)

  def checkpoints(self, shape):
    identity = checkpoint.Identity(run=self.run, vocab=self.vocab, data="d", tokenizers={})
    return checkpoint.Checkpoints(self.folder / str(shape), identity, keep=1)

  def train(self, shape):
    """Losses of the first steps on a mesh, and the state after them, which is also saved."""
    batches = loader.Loader(self.run.data, self.vocab, seed=self.run.train.seed)
    vectors = load.vectors_of(self.tokenizers, self.vocab)
    with self.on(shape):
      state = state_lib.init(self.run, self.vocab, vectors=vectors)
      step, losses = step_lib.make_train_step(self.run), []
      for i in range(STEPS):
        state, metrics = step(state, sharding.place(batches.batch_at(i)))
        losses.append(metrics["loss"])
      saved = self.checkpoints(shape)
      saved.save(STEPS, state.model, {"step": state.step, "opt_state": state.opt_state})
      saved.close()
      return np.array([float(x) for x in losses]), arrays(state)

  def restore(self, shape, source):
    """What was saved on the mesh `source`, restored on another."""
    with self.on(shape):
      like = state_lib.abstract(self.run, self.vocab)
      saved = self.checkpoints(source)
      model, rest, *_ = saved.restore(like.model, {"step": like.step, "opt_state": like.opt_state})
      saved.close()
      return arrays(state_lib.TrainState(rest["step"], model, rest["opt_state"]))


def arrays(state):
  return {name: np.asarray(x) for name, x in checkpoint.named(state).items()}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
  folder = tmp_path_factory.mktemp("quickstart")
  train, _ = manifest.write(folder, seed=0, docs=4000)
  run = quickstart.run()
  tokenizers = load.load_all(run.tokenizers)
  prepare.prepare(train, folder / "records", tokenizers=encode.Tokenizers(*tokenizers))
  data = dataclasses.replace(run.data, sources=(str(folder / "records"),))
  return Case(dataclasses.replace(run, data=data), tokenizers, folder)


@pytest.mark.slow
def test_every_mesh_learns_alike_and_reads_what_the_others_saved(case):
  alone, _ = case.train((1, 1, 1, 1, 1))
  assert alone[-1] < 0.8 * alone[0]
  for source in MESHES:
    losses, before = case.train(source)
    np.testing.assert_allclose(losses, alone, atol=1e-4, rtol=0, err_msg=str(source))
    for target in MESHES:
      after = case.restore(target, source)
      assert before.keys() == after.keys()
      for name, array in after.items():
        assert array.tobytes() == before[name].tobytes(), (source, target, name)
