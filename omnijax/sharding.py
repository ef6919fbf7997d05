"""The device mesh, and the one table that says which tensor dimension lives on which axis.

Mesh axis names appear in this file only; everything else speaks of logical axes. The mesh is
explicit: shardings are part of array types, given at birth and at ambiguous contractions.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from omnijax import config as config_lib

AXES = ("data", "fsdp", "context", "expert", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """Logical axis -> mesh axes. Parameters shard on `embed`, activations on `batch`."""

  batch: tuple[str, ...] = ("data", "fsdp")
  seq: str | None = None
  act_embed: str | None = None
  embed: str | None = "fsdp"
  heads: str | None = "tensor"
  kv_heads: str | None = "tensor"
  mlp: str | None = "tensor"
  vocab: str | None = "tensor"
  layers: str | None = None

  def __call__(self, *axes: str | None) -> jax.P:
    """The partition of a tensor whose dimensions carry these logical axes.

    Raises:
      ValueError: two dimensions would live on the same mesh axis.
    """
    spec = [None if a is None else getattr(self, a) for a in axes]
    used = [m for s in spec if s for m in ((s,) if isinstance(s, str) else s)]
    if len(set(used)) != len(used):
      raise ValueError(f"logical axes {axes} map to {spec}: a mesh axis is used twice; "
                       "change Rules so that they differ.")
    return jax.P(*spec)


RULES = Rules()


def mesh_shape(mesh: config_lib.Mesh, devices: int) -> tuple[int, ...]:
  """Axis sizes for this many devices, with a -1 filled in.

  Raises:
    ValueError: the axes don't multiply to the number of devices.
  """
  shape = [getattr(mesh, axis) for axis in AXES]
  known = math.prod(n for n in shape if n != -1)
  filled = tuple(devices // known if n == -1 else n for n in shape)
  if math.prod(filled) != devices:
    named = dict(zip(AXES, shape, strict=True))
    raise ValueError(f"mesh {named} needs a multiple of {known} devices, and there are "
                     f"{devices}; make the axes multiply to {devices}.")
  return filled


def make_mesh(mesh: config_lib.Mesh) -> Mesh:
  """An explicit mesh over all devices of all hosts (or just the first ones, see below).

  A mesh smaller than the host's devices takes the first ones, so that one process can compare
  meshes; over several hosts every device must be used.
  """
  devices = jax.devices()
  shape = [getattr(mesh, axis) for axis in AXES]
  if -1 not in shape and jax.process_count() == 1 and math.prod(shape) < len(devices):
    devices = devices[: math.prod(shape)]
  sizes = mesh_shape(mesh, len(devices))
  return jax.make_mesh(sizes, AXES, (AxisType.Explicit,) * len(AXES), devices=devices)


def check_divides(run: config_lib.Run, mesh: Mesh, rules: Rules = RULES) -> None:
  """Names each configured size that its mesh axes don't divide.

  Raises:
    ValueError: the size, the axes, their product, and the nearest sizes that work.
  """
  m = run.model
  sizes = {
    "data.rows / optim.accumulate": (run.data.rows // run.optim.accumulate, "batch"),
    "model.dim": (m.dim, "embed"), "model.depth_dim": (m.depth_dim, "embed"),
    "model.heads": (m.heads, "heads"), "model.kv_heads": (m.kv_heads, "kv_heads"),
    "model.mlp": (m.mlp, "mlp"), "model.depth_mlp": (m.depth_mlp, "mlp"),
    "model.depth_heads": (m.depth_heads, "heads"),
  }
  for name, (size, axis) in sizes.items():
    axes = getattr(rules, axis) or ()
    axes = (axes,) if isinstance(axes, str) else axes
    ways = math.prod(mesh.shape[a] for a in axes)
    if size % ways:
      low, high = size // ways * ways, -(-size // ways) * ways
      near = " or ".join(str(n) for n in (low, high) if n)
      raise ValueError(f"{name} is {size}, which mesh axes {axes} of product {ways} don't "
                       f"divide; use {near}, or change the mesh.")


def place(batch: dict[str, np.ndarray], rules: Rules = RULES) -> dict[str, jax.Array]:
  """Puts this host's rows [B/hosts, ...] on its devices, as its part of the global batch."""
  mesh = jax.sharding.get_mesh()

  def put(x: np.ndarray) -> jax.Array:
    return jax.make_array_from_process_local_data(NamedSharding(mesh, rules("batch")), x)

  return jax.tree.map(put, batch)


def abstract(tree: Any) -> Any:
  """Shapes, types and shardings of a tree, for restoring into."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
