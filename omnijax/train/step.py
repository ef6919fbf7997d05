"""One step of training, and one of evaluation. Start reading here.

A step is a function of (state, batch). The batch is a packed one (see DESIGN section 3): B rows
of S positions, with F frames beside them. Shardings ride on the arrays; there are none here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from omnijax import config as config_lib
from omnijax.kernels import compiler
from omnijax.model.transformer import Omni
from omnijax.train import loss as loss_lib
from omnijax.train import optim
from omnijax.train.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_train_step(run: config_lib.Run) -> jax.stages.Wrapped:
  """The jitted (state, batch) -> (state, metrics) on the current mesh.

  It donates the state, whose arrays are gone afterwards.
  """
  tx = optim.make(run.optim, run.train.steps)

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    dens = loss_lib.denominators(batch, run.loss, len(run.data.sources))
    (loss, sums), grads = _gradients(state.model, batch, dens, run)
    updates, opt_state = tx.update(grads, state.opt_state, state.model)
    model = optax.apply_updates(state.model, updates)
    metrics = {"loss": loss, "sums": sums, "dens": dens, "step": state.step,
               "grad_norm": optax.tree.norm(grads), "skipped": opt_state.skipped}
    return TrainState(state.step + 1, model, opt_state), metrics

  kind = jax.sharding.get_mesh().devices.flat[0].device_kind
  return jax.jit(train_step, donate_argnums=0, compiler_options=compiler.options(kind))


def _gradients(model: Omni, batch: Batch, dens: Metrics, run: config_lib.Run):
  """Loss, sums and gradients of the whole batch, in `accumulate` micro-batches.

  Every micro-batch is divided by the denominators of the whole batch, so that the result does
  not depend on how many there are.
  """
  def loss_fn(model: Omni, part: Batch) -> tuple[jax.Array, Metrics]:
    return loss_lib.loss(model, part, dens, run.loss)

  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  parts = run.optim.accumulate
  if parts == 1:
    return grad_fn(model, batch)

  def split(x: jax.Array) -> jax.Array:
    # [B, ...] -> [parts, B / parts, ...], every device keeping rows of every micro-batch.
    rows, *others = jax.typeof(x).sharding.spec
    shape = (x.shape[0] // parts, parts, *x.shape[1:])
    return jnp.moveaxis(jax.lax.reshape(x, shape, out_sharding=jax.P(rows, None, *others)), 1, 0)

  def body(total, part):
    return jax.tree.map(jnp.add, total, grad_fn(model, part)), None

  micro = jax.tree.map(split, batch)
  first = grad_fn(model, jax.tree.map(lambda x: x[0], micro))
  out, _ = jax.lax.scan(body, first, jax.tree.map(lambda x: x[1:], micro))
  return out


def make_eval_step(run: config_lib.Run) -> Callable[[TrainState, Batch], Metrics]:
  """Sums and denominators of a held-out batch under the averaged weights, if there are any."""
  def eval_step(state: TrainState, batch: Batch) -> Metrics:
    model = optim.averaged(state.model, state.opt_state)
    dens = loss_lib.denominators(batch, run.loss, len(run.data.heldout))
    return {"sums": loss_lib.loss(model, batch, dens, run.loss)[1], "dens": dens}

  return jax.jit(eval_step)
