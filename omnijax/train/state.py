"""What a run is at a step: the step, the model and the optimizer's state."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.model import transformer
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


def init(run: config_lib.Run, vocab: vocab_lib.Vocab, rules: Rules = RULES, *,
         vectors: vocab_lib.Vectors | None = None) -> TrainState:
  """A fresh state on the current mesh, a function of run.train.seed and the codes' vectors."""
  return _maker(run, vocab, rules)(jax.random.key(run.train.seed), vectors)


def abstract(run: config_lib.Run, vocab: vocab_lib.Vocab, rules: Rules = RULES) -> TrainState:
  """Shapes, types and shardings of a state on the current mesh, at no cost."""
  mesh = jax.sharding.get_mesh()

  def leaf(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    place = jax.sharding.NamedSharding(mesh, x.sharding.spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.tree.map(leaf, jax.eval_shape(_maker(run, vocab, rules), key))


def _maker(run: config_lib.Run, vocab: vocab_lib.Vocab, rules: Rules):
  tx = optim.make(run.optim, run.train.steps)

  def make(key: jax.Array, vectors: vocab_lib.Vectors | None = None) -> TrainState:
    model = transformer.init(run.model, vocab, rules, key, vectors)
    state = TrainState(jnp.int32(0), model, tx.init(model))
    # Constants of the optimizer are born untyped; give them the type a step gives back, or the
    # second step compiles again.
    return jax.tree.map(lambda x: jax.reshard(x, jax.typeof(x).sharding.spec), state)

  # It runs once, so a quick compilation is worth more: 4 s on CPU, 6 with XLA's optimisation, for
  # the same bits; each million values then takes 0.1 s longer to draw.
  quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
  return jax.jit(make, compiler_options=quick)


def parameter_count(model: Omni) -> int:
  """Number of trained values."""
  return sum(x.size for x in jax.tree.leaves(model))
