"""A run's real train step, compiled for a mesh of devices that needn't be here.

B rows  S positions  F frames  P frames with targets  Q codebooks
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from omnijax import config as config_lib
from omnijax import sharding
from omnijax import vocab as vocab_lib
from omnijax.train import state as state_lib
from omnijax.train import step as step_lib


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled step, and the bytes of a device that its state takes."""

  executable: Any  # None if the compiler gave up for lack of memory
  parameters: int
  optimizer: int
  needed: float = 0.0  # bytes beside the state that there was no memory for

  @property
  def text(self) -> str:
    """The scheduled HLO; empty if there is none."""
    return self.executable.as_text() if self.executable is not None else ""


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


def train_step(run: config_lib.Run, vocab: vocab_lib.Vocab, devices: list[Any]) -> Compiled:
  """Compiles the step of a run for these devices, without touching any.

  Raises:
    ValueError: the run's sizes and mesh don't fit the number of devices.
  """
  mesh = sharding.make_mesh(run.mesh, devices)
  sharding.check_divides(run, mesh)
  with jax.set_mesh(mesh):
    state = state_lib.abstract(run, vocab)
    lowered = step_lib.make_train_step(run).lower(state, batch(run, vocab))
    sizes = _bytes(state.model), _bytes(state.opt_state)
    try:
      return Compiled(lowered.compile(), *sizes)
    except jax.errors.JaxRuntimeError as error:
      over = re.search(r"memory required for HLO temporaries \(([\d.]+)([MGT])\)", str(error))
      if not over:
        raise
      return Compiled(None, *sizes, float(over[1]) * 2 ** {"M": 20, "G": 30, "T": 40}[over[2]])


def _bytes(tree: Any) -> int:
  """Bytes of one device's part."""
  return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
             for x in jax.tree.leaves(tree))
