"""A run's real train step, compiled for a mesh of devices that aren't here.

B rows  S positions  F frames  P frames with targets  Q codebooks
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omnijax import config as config_lib
from omnijax import sharding
from omnijax import vocab as vocab_lib
from omnijax.plan.chips import Slice
from omnijax.train import state as state_lib
from omnijax.train import step as step_lib


@dataclasses.dataclass(frozen=True)
class Place:
  """A device as one of a topology, for the paths of collectives."""

  coords: tuple[int, ...]
  slice_index: int


@dataclasses.dataclass(frozen=True)
class Grid:
  """A mesh of places."""

  axis_names: tuple[str, ...]
  devices: np.ndarray  # of Place, as many dims as axes


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What there is to know of a compiled step, in bytes of a device where not said otherwise."""

  text: str  # the scheduled HLO; empty if the compiler gave up for lack of memory
  peak: float  # of all memory in use at once
  parameters: int
  optimizer: int
  grid: Grid
  needed: float = 0.0  # beside the state, if there is no memory for it


def batch(run: config_lib.Run, vocab: vocab_lib.Vocab) -> dict[str, jax.ShapeDtypeStruct]:
  """The global batch of a run on the current mesh: shapes, types, shardings."""
  mesh = jax.sharding.get_mesh()
  d, Q = run.data, vocab.codebooks
  place = jax.NamedSharding(mesh, sharding.RULES("batch"))
  array = lambda dtype, *shape: jax.ShapeDtypeStruct((d.rows, *shape), dtype, sharding=place)
  S, F, P = d.positions, d.frames, d.depth_frames or d.frames
  return {"main": array(jnp.int32, S), "modality": array(jnp.int8, S),
          "segment": array(jnp.int32, S), "position": array(jnp.int32, S, 3),
          "weight": array(jnp.float32, S), "frame_at": array(jnp.int32, F),
          "frames": array(jnp.int32, F, 2 * Q), "frame_weight": array(jnp.float32, P, Q)}


def train_step(run: config_lib.Run, vocab: vocab_lib.Vocab, where: Slice,
               stage: Callable[[str], None]) -> Compiled:
  """Compiles the step of a run for a slice, without touching any device.

  Raises:
    ValueError: the run's sizes and mesh don't fit the slice, or there is no such topology.
  """
  stage("topology")
  mesh = sharding.make_mesh(run.mesh, where.devices())
  sharding.check_divides(run, mesh)
  stage("compile")
  with jax.set_mesh(mesh):
    state = state_lib.abstract(run, vocab)
    lowered = step_lib.make_train_step(run).lower(state, batch(run, vocab))
  return _compile(lowered, mesh, _bytes(state.model), _bytes(state.opt_state))


def _compile(lowered: Any, mesh: jax.sharding.Mesh, parameters: int, optimizer: int) -> Compiled:
  places = [Place(tuple(d.coords), getattr(d, "slice_index", 0)) for d in mesh.devices.flat]
  at = np.empty(len(places), object)
  at[:] = places
  grid = Grid(mesh.axis_names, at.reshape(mesh.devices.shape))
  try:
    made = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    over = re.search(r"memory required for HLO temporaries \(([\d.]+)([MGT])\)", str(error))
    if not over:
      raise
    needed = float(over[1]) * 2 ** {"M": 20, "G": 30, "T": 40}[over[2]]
    return Compiled("", parameters + optimizer + needed, parameters, optimizer, grid, needed)
  peak = made.memory_analysis().peak_memory_in_bytes
  return Compiled(made.as_text(), peak, parameters, optimizer, grid)


def _bytes(tree: Any) -> int:
  """Bytes of one device's part."""
  return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
             for x in jax.tree.leaves(tree))
