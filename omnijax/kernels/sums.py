"""Sums over a leading dim as additions, in functions of libraries."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

Function = Callable[..., Any]


def by_addition(f: Function) -> Function:
  """The same function, whose sums over one dim before the last two are chains of additions.

  XLA:TPU estimates five times the cycles for a reduction over a leading dim that it does for
  additions of its slices, which go through memory once.
  """
  def run(*args: Any) -> Any:
    closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
    return jax.tree.unflatten(jax.tree.structure(shape),
                              _evaluate(closed, jax.tree.leaves(args)))

  return run


def _evaluate(closed: Any, args: Sequence[Any]) -> list[Any]:
  jaxpr = closed.jaxpr
  values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
  values.update(zip(jaxpr.invars, args, strict=True))
  widened: dict[Any, Any] = {}  # values before they were converted to another type
  read = lambda v: v.val if isinstance(v, core.Literal) else values[v]
  for eqn in jaxpr.eqns:
    name, inputs = eqn.primitive.name, [read(v) for v in eqn.invars]
    if name in ("jit", "pjit"):
      outputs = _evaluate(eqn.params["jaxpr"], inputs)
    elif name == "reduce_sum" and _leading(eqn):
      (axis,), out = eqn.params["axes"], eqn.outvars[0].aval
      whole = widened.get(eqn.invars[0], inputs[0])  # or all of it would be stored converted
      outputs = [sum(jax.lax.index_in_dim(whole, i, axis, keepdims=False).astype(out.dtype)
                     for i in range(whole.shape[axis]))]
    else:
      with jax.named_scope(str(eqn.source_info.name_stack) or name):
        made = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
      outputs = made if eqn.primitive.multiple_results else [made]
      if name == "convert_element_type":
        widened[eqn.outvars[0]] = inputs[0]
    values.update(zip(eqn.outvars, outputs, strict=True))
  return [read(v) for v in jaxpr.outvars]


def _leading(eqn: Any) -> bool:
  axes = eqn.params["axes"]
  return len(axes) == 1 and axes[0] < eqn.invars[0].aval.ndim - 2
