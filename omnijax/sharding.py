"""The device mesh, and the one table that says which tensor dimension lives on which axis.

Mesh axis names appear in this file only; everything else speaks of logical axes. The mesh is
explicit: shardings are part of array types, given at birth and at ambiguous contractions.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from omnijax import config as config_lib

AXES = ("data", "fsdp", "context", "expert", "tensor")


def axes_of(dim: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """The mesh axes in one entry of a partition."""
  return () if dim is None else (dim,) if isinstance(dim, str) else dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """Logical axis -> mesh axes. Parameters shard on `embed`, activations on `batch` and `seq`."""

  batch: tuple[str, ...] = ("data", "fsdp", "expert")
  seq: str | None = "context"
  # Positions of all rows, or frames, as one dim.
  flat: tuple[str, ...] = ("data", "fsdp", "expert", "context")
  act_embed: str | None = None
  # Devices along a row would hold the same parameters: they share them out, too.
  embed: tuple[str, ...] = ("fsdp", "context")
  heads: str | None = "tensor"
  kv_heads: str | None = "tensor"
  mlp: str | None = "tensor"
  vocab: str | None = "tensor"
  experts: str | None = "expert"
  layers: str | None = None

  def __call__(self, *axes: str | None) -> jax.P:
    """The partition of a tensor whose dimensions carry these logical axes on the current mesh.

    Mesh axes of size 1 divide nothing and are left out, so that a dim which nothing divides is
    typed as that on every mesh.

    Raises:
      ValueError: two dimensions would live on the same mesh axis.
    """
    spec = [self.mesh_axes(a) for a in axes]
    used = [m for s in spec for m in s]
    if len(set(used)) != len(used):
      raise ValueError(f"logical axes {axes} map to {spec}: a mesh axis is used twice; "
                       "change Rules so that they differ.")
    return jax.P(*(s[0] if len(s) == 1 else s or None for s in spec))

  def mesh_axes(self, axis: str | None) -> tuple[str, ...]:
    """The mesh axes of more than one device that a logical axis lives on."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return tuple(n for n in axes_of(getattr(self, axis) if axis else None) if sizes.get(n, 1) > 1)

  def order(self, length: int) -> np.ndarray:
    """How the positions of a row are laid out over devices: int32 [length], places in the row.

    Each of c devices along `seq` takes runs i and 2c - 1 - i of 2c, an early and a late one, so
    that causal attention is the same work for all ("zigzag", as in Llama 3).
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    ways = math.prod(sizes[n] for n in self.mesh_axes("seq"))
    places = np.arange(length, dtype=np.int32)
    if ways == 1:
      return places
    runs = places.reshape(2 * ways, -1)
    return np.concatenate([runs[j] for i in range(ways) for j in (i, 2 * ways - 1 - i)])

  def lay(self, x_BS: jax.Array) -> jax.Array:
    """Positions of rows [B, S, ...] in the order of `order`, each on its device."""
    if not self.mesh_axes("seq"):
      return x_BS
    laid = x_BS[:, self.order(x_BS.shape[1])]
    return jax.reshard(laid, self("batch", "seq", *[None] * (x_BS.ndim - 2)))


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


def make_mesh(mesh: config_lib.Mesh, devices: list[Any] | None = None) -> Mesh:
  """An explicit mesh over all devices of all hosts (or just the first ones, see below).

  A mesh smaller than the host's devices takes the first ones, so that one process can compare
  meshes; over several hosts every device must be used. Over several slices of a TPU, whose network
  is slow, only `data` reaches from one to another.

  Args:
    mesh: sizes of the axes.
    devices: other ones than jax's own, such as those of a topology to compile for.

  Raises:
    ValueError: the axes don't multiply to the devices, or `data` not to the slices.
  """
  shape = [getattr(mesh, axis) for axis in AXES]
  if devices is None:
    devices = jax.devices()
    if -1 not in shape and jax.process_count() == 1 and math.prod(shape) < len(devices):
      devices = devices[: math.prod(shape)]
  sizes = mesh_shape(mesh, len(devices))
  explicit = (AxisType.Explicit,) * len(AXES)
  # Hosts with GPUs have this number, too, but no torus that ends with them.
  slices = len({getattr(d, "slice_index", 0) for d in devices if d.platform == "tpu"}) or 1
  if slices == 1:
    try:
      return Mesh(mesh_utils.create_device_mesh(sizes, devices), AXES, axis_types=explicit)
    except NotImplementedError as error:
      raise ValueError(f"mesh {dict(zip(AXES, sizes, strict=True))} can't be laid on these devices "
                       f"({error}); make each axis a product of the topology's.") from error
  if sizes[0] % slices:
    raise ValueError(f"mesh.data is {sizes[0]} and there are {slices} slices of devices; make "
                     f"mesh.data a multiple of {slices}, since only data crosses slices.")
  inner = (sizes[0] // slices, *sizes[1:])
  grid = mesh_utils.create_hybrid_device_mesh(inner, (slices, 1, 1, 1, 1), devices)
  return Mesh(grid, AXES, axis_types=explicit)


def check_divides(run: config_lib.Run, mesh: Mesh, rules: Rules = RULES) -> None:
  """Names each configured size that its mesh axes don't divide.

  Raises:
    ValueError: the size, the axes, their product, and the nearest sizes that work.
  """
  m, d, rows = run.model, run.data, run.data.rows // run.optim.accumulate
  ways = math.prod(mesh.shape[a] for a in axes_of(rules.seq))
  if ways > 1 and d.positions % (2 * ways):
    raise ValueError(f"data.positions is {d.positions}; with {ways} devices along a row it must be "
                     f"a multiple of {2 * ways}, an early and a late run of positions for each.")
  sizes = {
    "data.rows / optim.accumulate": (rows, "batch"),
    "data.rows / optim.accumulate * frames": (rows * (d.depth_frames or d.frames), "flat"),
    "model.dim": (m.dim, "embed"), "model.depth_dim": (m.depth_dim, "embed"),
    "model.heads": (m.heads, "heads"), "model.kv_heads": (m.kv_heads, "kv_heads"),
    "model.experts": (m.experts, "experts"), "model.mlp": (m.mlp, "mlp"),
    "model.depth_mlp": (m.depth_mlp, "mlp"),
    "model.depth_heads": (m.depth_heads, "heads"),
  }
  for name, (size, axis) in sizes.items():
    axes = axes_of(getattr(rules, axis))
    ways = math.prod(mesh.shape[a] for a in axes)
    if size % ways:
      low, high = size // ways * ways, -(-size // ways) * ways
      near = " or ".join(str(n) for n in (low, high) if n)
      raise ValueError(f"{name} is {size}, which mesh axes {axes} of product {ways} don't "
                       f"divide; use {near}, or change the mesh.")


def rows_here(rows: int, rules: Rules = RULES) -> range:
  """The rows of a global batch that this process's devices hold, on the current mesh."""
  where = NamedSharding(jax.sharding.get_mesh(), rules("batch"))
  held = [index[0].indices(rows) for index in where.addressable_devices_indices_map(
    (rows,)).values() if index]
  return range(min(h[0] for h in held), max(h[1] for h in held))


def place(batch: dict[str, np.ndarray], rows: int | None = None, rules: Rules = RULES
          ) -> dict[str, jax.Array]:
  """Puts a batch on the devices of this process.

  Args:
    batch: arrays of all rows, or of `rows_here`.
    rows: of the global batch, if the arrays hold only those of this process.
    rules: where rows live.
  """
  where = NamedSharding(jax.sharding.get_mesh(), rules("batch"))
  first = rows_here(rows, rules).start if rows is not None else 0

  def put(x: np.ndarray) -> jax.Array:
    count = len(x) if rows is None else rows

    def part(index: Any) -> np.ndarray:
      start, stop, _ = index[0].indices(count)
      return x[start - first : stop - first]

    return jax.make_array_from_callback((count, *x.shape[1:]), where, part)

  return jax.tree.map(put, batch)


def abstract(tree: Any) -> Any:
  """Shapes, types and shardings of a tree, for restoring into."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
