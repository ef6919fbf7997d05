"""Schedules, and AdamW or Muon by the role of each parameter.

Roles: `matrix` (weights of trunk and depth blocks: decayed, Muon's when it is chosen), `table`
(embeddings and heads: decayed, always AdamW), `gain` (norms: AdamW without decay), `fixed`
(never changed).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from omnijax import config as config_lib


def schedule(cfg: config_lib.Optim, steps: int, peak: float) -> optax.Schedule:
  """Linear warm-up to `peak`, then cosine or warm-up-stable-decay (Hu et al., 2024)."""
  warm = min(cfg.warmup_steps, max(steps - 1, 0))
  up = optax.linear_schedule(peak / (warm + 1), peak, warm)
  if cfg.schedule == "cosine":
    down = optax.cosine_decay_schedule(peak, max(steps - warm, 1), cfg.final_lr)
    return optax.join_schedules([up, down], [warm])
  decay = max(int(steps * cfg.decay_fraction), 1)
  down = optax.linear_schedule(peak, peak * cfg.final_lr, decay)
  return optax.join_schedules([up, optax.constant_schedule(peak), down],
                              [warm, max(steps - decay, warm)])


def _names(path: tuple[Any, ...]) -> list[str]:
  names = [str(getattr(key, "name", getattr(key, "key", key))) for key in path]
  return [n for n in names if n != "value"]


def role(path: tuple[Any, ...]) -> str:
  """matrix, table, gain or fixed, from a parameter's path in the model."""
  names = _names(path)
  if names[-1].startswith("fixed_"):
    return "fixed"
  if "gain" in names[-1]:
    return "gain"
  return "matrix" if names[-1].startswith("w_") and "blocks" in names else "table"


def roles(params: Any) -> Any:
  """The role of every parameter, in the tree of the parameters."""
  return jax.tree.map_with_path(lambda path, _: role(path), params)


def muon_dims(params: Any) -> Any:
  """Which dims of a stacked weight are inputs and outputs of its matrix; the others are a batch.

  Every weight has a leading layer dim, those of the depth transformer (suffix _Q...) and of experts
  (_E...) one more;
  w_o sums over two dims, the rest over one.
  """
  def dims(path, p):
    name = _names(path)[-1]
    first = 1 + name.split("_")[-1].startswith(("Q", "E"))
    inputs = 2 if name.startswith("w_o_") else 1
    return contrib.MuonDimensionNumbers(tuple(range(first, first + inputs)),
                                        tuple(range(first + inputs, p.ndim)))
  return jax.tree.map_with_path(dims, params)


def _widen(updates: Any, params: Any) -> Any:
  """Scales by sqrt(outputs / inputs) where that is above 1, as Muon's reference does."""
  del params
  def scale(u, dims):
    inputs, outputs = (math.prod(u.shape[i] for i in d) for d in dims)
    return u * max(1.0, outputs / inputs) ** 0.5
  return jax.tree.map(scale, updates, muon_dims(updates))


def _on_gathered(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Runs a transformation on whole arrays: Newton-Schulz contracts every dim of a matrix."""
  def specs(tree):
    return jax.tree.map(lambda x: jax.typeof(x).sharding.spec, tree)

  def move(x: jax.Array, spec: jax.P) -> jax.Array:
    # Left alone where nothing moves: even a no-op reshard would change the array's type.
    there = jax.typeof(x).sharding.spec
    return x if not any(there) and not any(spec) else jax.reshard(x, spec)

  def gather(tree):
    return jax.tree.map(lambda x: move(x, jax.P(*[None] * x.ndim)), tree)

  def update(updates, state, params=None):
    whole, after = inner.update(gather(updates), gather(state), params)
    return (jax.tree.map(move, whole, specs(updates)),
            jax.tree.map(move, after, specs(state)))

  return optax.GradientTransformation(inner.init, update)


class EmaState(NamedTuple):
  """A decayed average of the weights."""

  average: Any


def _ema(decay: float) -> optax.GradientTransformation:
  def update(updates, state, params=None):
    new = optax.apply_updates(params, updates)
    mix = lambda a, p: a * decay + p * (1 - decay)
    return updates, EmaState(jax.tree.map(mix, state.average, new))
  return optax.GradientTransformation(lambda p: EmaState(jax.tree.map(jnp.copy, p)), update)


class GuardState(NamedTuple):
  """Of `_guarded`."""

  usual: jax.Array  # float32 [], decayed mean of the norms of gradients that were taken
  taken: jax.Array  # int32 [], how many
  skipped: jax.Array  # int32 [], in a row until now
  inner: optax.OptState


_MEMORY = 0.98  # decay of the usual norm
_KNOWN = 50  # norms taken until the usual one is known


def _guarded(inner: optax.GradientTransformation, spike: float) -> optax.GradientTransformation:
  """Leaves everything as it is where gradients aren't finite, or far above what is usual.

  Spikes of the gradients' norm come before those of the loss (OLMo 2, 2025).
  """
  def init(params):
    return GuardState(jnp.float32(0), jnp.int32(0), jnp.int32(0), inner.init(params))

  def update(updates, state, params=None):
    norm = optax.tree.norm(updates).astype(jnp.float32)
    fine = jnp.isfinite(norm)
    if spike:
      usual = state.usual / (1 - _MEMORY ** jnp.maximum(state.taken, 1).astype(jnp.float32))
      fine &= (state.taken < _KNOWN) | (norm <= spike * usual)
    made, after = inner.update(updates, state.inner, params)
    pick = lambda new, old: jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, old)
    mean = _MEMORY * state.usual + (1 - _MEMORY) * norm
    return pick(made, jax.tree.map(jnp.zeros_like, made)), GuardState(
      jnp.where(fine, mean, state.usual), state.taken + fine, jnp.where(fine, 0, state.skipped + 1),
      pick(after, state.inner))

  return optax.GradientTransformation(init, update)


def make(cfg: config_lib.Optim, steps: int) -> optax.GradientTransformation:
  """The whole optimizer: clipping, one transformation per role, the average of weights, a guard.

  Its state is a `GuardState`.
  """
  def adamw(decay: float) -> optax.GradientTransformation:
    return optax.adamw(schedule(cfg, steps, cfg.peak_lr), cfg.b1, cfg.b2, cfg.eps,
                       mu_dtype=cfg.moment_dtype, weight_decay=decay)
  # Almost-orthogonal scaling first makes four steps of Newton-Schulz as good as five (Boissin et
  # al., 2025: Turbo-Muon).
  muon = optax.chain(
    _on_gathered(contrib.scale_by_muon(beta=0.95, ns_steps=4, preconditioning="aol",
                                       weight_dimension_numbers=muon_dims)),
    optax.stateless(_widen),
    optax.add_decayed_weights(cfg.weight_decay),
    optax.scale_by_learning_rate(schedule(cfg, steps, cfg.muon_lr)))
  matrix = muon if cfg.kind == "muon" else adamw(cfg.weight_decay)
  parts = [optax.clip_by_global_norm(cfg.clip_norm),
           optax.partition({"matrix": matrix, "table": adamw(cfg.weight_decay),
                            "gain": adamw(0.0), "fixed": optax.set_to_zero()}, roles)]
  if cfg.ema:
    parts.append(_ema(cfg.ema))
  return _guarded(optax.chain(*parts), cfg.spike)


def averaged(model: Any, opt_state: optax.OptState) -> Any:
  """The averaged weights when the optimizer keeps them, else the model itself."""
  found = [s for s in jax.tree.leaves(opt_state, is_leaf=lambda s: isinstance(s, EmaState))
           if isinstance(s, EmaState)]
  return found[0].average if found else model
