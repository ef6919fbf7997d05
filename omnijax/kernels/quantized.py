"""Matrix products of 8-bit numbers in training (SwitchBack, Wortsman et al., 2023).

Each row of the activations and each column of the weights is scaled to the type's range and
rounded; so is each row of the gradient for that of the activations, by the same rounded weights.
The gradient of the weights, a sum over thousands of positions, stays a product of what came in. On
meshes the weights travel over `fsdp` as 8 bits, too.

I inputs  O outputs
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

Kind = Literal["int8", "fp8"]
# The type, the largest number that is used, and the type of sums.
_TYPES: dict[str, tuple[Any, float, Any]] = {
  "int8": (jnp.int8, 127.0, jnp.int32),
  "fp8": (jnp.float8_e4m3fn, 448.0, jnp.float32),
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(kind: Kind, out: jax.P | None, x: jax.Array, w_IO: jax.Array) -> jax.Array:
  """x @ w, rounded to so many bits.

  Args:
    kind: of the numbers that are multiplied.
    out: partition of the result where that isn't plain, as of `jnp.einsum`.
    x: [..., I]
    w_IO: of x's type.

  Returns:
    [..., O] of x's type. A row with something that isn't finite is not finite as a whole.
  """
  return _forward(kind, out, x, w_IO)[0]


def _forward(kind: Kind, out: jax.P | None, x: jax.Array, w_IO: jax.Array
             ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  x8, unit = _rounded(kind, x, -1)
  w8_IO, unit_1O = _rounded(kind, w_IO, 0)
  y = jnp.einsum("...i,io->...o", x8, w8_IO, preferred_element_type=_TYPES[kind][2],
                 out_sharding=out)
  return (y * unit * _beside(unit_1O, y)).astype(x.dtype), (x, w_IO)


def _backward(kind: Kind, out: jax.P | None, kept: tuple[jax.Array, jax.Array], slope: jax.Array
              ) -> tuple[jax.Array, jax.Array]:
  x, w_IO = kept
  w8_IO, unit_1O = _rounded(kind, w_IO, 0)
  slope8, unit = _rounded(kind, slope * _beside(unit_1O, slope), -1)
  dx = jnp.einsum("...o,io->...i", slope8, w8_IO, preferred_element_type=_TYPES[kind][2],
                  out_sharding=jax.typeof(x).sharding.spec)
  plain = lambda w_IO: jnp.einsum("...i,io->...o", x, w_IO, out_sharding=out)
  return (dx * unit).astype(x.dtype), jax.vjp(plain, w_IO)[1](slope)[0]


product.defvjp(_forward, _backward)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values", "unit"],
                   meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Rounded:
  """Weights at rest in 8 bits, which are made whole where they are used, in generation."""

  values: jax.Array  # int8
  unit: jax.Array  # float32, of each output

  @property
  def shape(self) -> tuple[int, ...]:
    return self.values.shape

  def __getitem__(self, index: Any) -> "Rounded":
    """As `param[...]` reads it."""
    assert index is ...
    return self

  def astype(self, dtype: Any) -> jax.Array:
    return (self.values * self.unit).astype(dtype)


def rounded(w: jax.Array, dims: tuple[int, ...]) -> Rounded:
  """Weights in 8 bits; dims: the inputs, over which an output has one unit."""
  return Rounded(*_rounded("int8", w, dims))


def _rounded(kind: Kind, x: jax.Array, axis: int | tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  """x in units of which the largest number along an axis is the most, and those units."""
  dtype, most, _ = _TYPES[kind]
  top = jnp.max(jnp.abs(x.astype(jnp.float32)), axis, keepdims=True)
  unit = jnp.maximum(top, jnp.finfo(jnp.float32).tiny * most) / most
  scaled = x / unit
  return (jnp.round(scaled) if jnp.issubdtype(dtype, jnp.integer) else scaled).astype(dtype), unit


def _beside(unit_1O: jax.Array, y: jax.Array) -> jax.Array:
  """Units of columns, in the dims of y and laid out as its last one."""
  lead = (None,) * (y.ndim - 1)
  return jax.reshard(jnp.expand_dims(unit_1O[0], range(len(lead))),
                     jax.P(*lead, jax.typeof(y).sharding.spec[-1]))
