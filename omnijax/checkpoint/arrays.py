"""Trees as flat dicts of named arrays, and fingerprints of their bits."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _name(path: tuple[Any, ...]) -> str:
  keys = [str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in path]
  return ".".join(k for k in keys if k != "value")


def named(tree: Any) -> dict[str, Any]:
  """The arrays of any pytree by dotted path, a flat dict that outlives its classes."""
  return {_name(path): leaf for path, leaf in jax.tree.flatten_with_path(tree)[0]}


def unnamed(arrays: Mapping[str, Any], like: Any) -> Any:
  """Puts `named` arrays back into a tree of the structure of `like`."""
  paths, treedef = jax.tree.flatten_with_path(like)
  return jax.tree.unflatten(treedef, [arrays[_name(path)] for path, _ in paths])


def differences(want: Mapping[str, Any], have: Mapping[str, Any]) -> list[str]:
  """In words, which names, shapes and types are not as wanted, leaf by leaf.

  orbax itself casts types without a word.
  """
  out = [f"{name} is missing" for name in sorted(set(want) - set(have))]
  out += [f"{name} is left over" for name in sorted(set(have) - set(want))]
  kind = lambda x: f"{x.dtype}{list(x.shape)}"
  return out + [f"{name} is {kind(have[name])} where {kind(x)} is wanted"
                for name, x in want.items() if name in have and kind(have[name]) != kind(x)]


def fingerprints(arrays: Mapping[str, Any]) -> dict[str, str]:
  """16 hex digits of the bits of each array, the same on any mesh and any number of processes.

  Every process must call it. Each element's bits are mixed with its place and added up modulo
  2^32, in whatever order the devices like.
  """
  pairs = jax.device_get(_all_words(dict(arrays)))
  return {name: "".join(f"{int(w):08x}" for w in np.asarray(pair)) for name, pair in pairs.items()}


@jax.jit
def _all_words(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
  return {name: words(x) for name, x in arrays.items()}


def words(x: jax.Array) -> jax.Array:
  """The fingerprint of an array as two uint32."""
  unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
  bits = (x if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, unsigned)).astype(
    jnp.uint32)
  place, stride = jnp.uint32(0), 1
  for dim in reversed(range(bits.ndim)):
    place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dim) * np.uint32(stride % 2**32)
    stride *= bits.shape[dim]
  mixed = _mix(bits ^ (place * np.uint32(0x9E3779B9) + np.uint32(0x7F4A7C15)))
  return jnp.stack([jnp.sum(mixed, dtype=jnp.uint32),
                    jnp.sum(mixed * (2 * place + 1), dtype=jnp.uint32)])


def _mix(h: jax.Array) -> jax.Array:
  """The finaliser of MurmurHash3 (Appleby): every bit of the input changes half of the output's."""
  h = (h ^ h >> 16) * np.uint32(0x85EBCA6B)
  h = (h ^ h >> 13) * np.uint32(0xC2B2AE35)
  return h ^ h >> 16
