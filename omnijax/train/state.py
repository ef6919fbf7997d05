"""What a run is at a step: the step, the model and the optimizer's state."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.model.transformer import Omni
from omnijax.sharding import RULES, Rules
from omnijax.train import optim


@functools.partial(jax.tree_util.register_dataclass,
                   data_fields=["step", "model", "opt_state"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class TrainState:
  """A pytree; `step` counts finished steps and is also the position in the data."""

  step: jax.Array
  model: Omni
  opt_state: optax.OptState


def init(run: config_lib.Run, vocab: vocab_lib.Vocab, rules: Rules = RULES) -> TrainState:
  """A fresh state on the current mesh, a function of run.train.seed alone."""
  tx = optim.make(run.optim, run.train.steps)

  @jax.jit
  def make(key: jax.Array) -> TrainState:
    model = Omni(run.model, vocab, rules, rngs=nnx.Rngs(key))
    return TrainState(jnp.int32(0), model, tx.init(model))

  # Partitionable threefry: the same draws whatever the sharding of the parameter.
  with jax.threefry_partitionable(True):
    return make(jax.random.key(run.train.seed))


def parameter_count(model: Omni) -> int:
  """Number of trained values."""
  return sum(x.size for x in jax.tree.leaves(model))
