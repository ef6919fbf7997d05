"""Checkpoints restore byte for byte on any mesh, and refuse what they are not."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny

from omnijax import checkpoint, config, sharding
from omnijax.train import state as state_lib

MESHES = [(8, 1, 1, 1, 1), (1, 8, 1, 1, 1), (2, 2, 1, 1, 2), (1, 1, 1, 1, 2)]
IDENTITY = checkpoint.Identity(run=tiny.run(), vocab=tiny.VOCAB, data="d",
                               tokenizers={"text": "t", "image": "i", "audio": "a"})


def on(shape):
  axes = dict(zip(sharding.AXES, shape, strict=True))
  return jax.set_mesh(sharding.make_mesh(config.Mesh(**axes)))


def rest(state):
  return {"step": state.step, "opt_state": state.opt_state}


@functools.cache
def initial(shape):
  with on(shape):
    return state_lib.init(tiny.run(), tiny.VOCAB)


@functools.cache
def wanted(shape, run):
  with on(shape):
    return state_lib.abstract(run, tiny.VOCAB)


def save(directory, shape, identity=IDENTITY):
  with on(shape):
    state = initial(shape)
    saved = checkpoint.Checkpoints(directory, identity, keep=2)
    saved.save(1, state.model, rest(state))
    saved.close()
    return {k: np.asarray(v) for k, v in checkpoint.named(state).items()}


def restore(directory, shape, run=None, identity=IDENTITY):
  with on(shape):
    like = wanted(shape, run or tiny.run())
    saved = checkpoint.Checkpoints(directory, identity, keep=2)
    try:
      model, training, *_ = saved.restore(like.model, rest(like))
    finally:
      saved.close()
    return checkpoint.named(state_lib.TrainState(training["step"], model, training["opt_state"]))


@pytest.mark.parametrize("source", MESHES)
def test_any_mesh_to_any_mesh(tmp_path, source):
  before = save(tmp_path, source)
  for target in MESHES:
    after = restore(tmp_path, target)
    assert before.keys() == after.keys()
    for name, array in after.items():
      assert np.asarray(array).tobytes() == before[name].tobytes(), name
  # The arrays really are where the mesh wants them.
  assert after["model.blocks.mlp.w_up_DF"].sharding.shard_shape((2, 32, 64)) == (2, 32, 32)


def test_newest_ones_are_kept(tmp_path):
  with on(MESHES[0]):
    state = initial(MESHES[0])
    saved = checkpoint.Checkpoints(tmp_path, IDENTITY, keep=2)
    for step in (1, 2, 3):
      saved.save(step, state.model, rest(state))
    saved.close()
  assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "3"]
  step, identity = checkpoint.read_identity(tmp_path)
  assert step == 3 and identity == IDENTITY


def test_another_vocabulary_is_refused(tmp_path):
  save(tmp_path, MESHES[0])
  other = dataclasses.replace(IDENTITY, vocab=dataclasses.replace(tiny.VOCAB, text=300))
  with pytest.raises(ValueError, match=r"another vocabulary.*'text': \(200, 300\)"):
    restore(tmp_path, MESHES[0], identity=other)


def test_another_tokenizer_is_refused(tmp_path):
  save(tmp_path, MESHES[0])
  other = dataclasses.replace(IDENTITY, tokenizers={"text": "t", "image": "i", "audio": "b"})
  with pytest.raises(ValueError, match=r"another tokenizers.*'audio': \('a', 'b'\)"):
    restore(tmp_path, MESHES[0], identity=other)


def test_another_optimizer_is_refused(tmp_path):
  save(tmp_path, MESHES[0])
  with pytest.raises(ValueError, match="average.* is missing"):
    restore(tmp_path, MESHES[0], run=tiny.run(optim={"ema": 0.9}))


def test_nothing_to_read(tmp_path):
  with pytest.raises(FileNotFoundError, match="no checkpoint in"):
    checkpoint.read_identity(tmp_path)
