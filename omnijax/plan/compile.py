"""A run's real steps of training and of generation, compiled for devices that aren't here.

B rows  S positions  F frames  P frames with targets  Q codebooks
"""

import dataclasses
import math
import re
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from omnijax import config as config_lib
from omnijax import sharding
from omnijax import vocab as vocab_lib
from omnijax.generate import cache, grammar, weights
from omnijax.generate import step as generate_step
from omnijax.generate.sample import Sampling
from omnijax.model import transformer
from omnijax.model.transformer import Omni
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
  other: int  # state beside the parameters: the optimizer's, or the cache
  grid: Grid
  needed: float = 0.0  # beside the state, if there is no memory for it
  host: float = 0.0  # of the host's memory


def batch(run: config_lib.Run, vocab: vocab_lib.Vocab) -> dict[str, jax.ShapeDtypeStruct]:
  """The global batch of a run on the current mesh: shapes, types, shardings."""
  mesh = jax.sharding.get_mesh()
  d, Q = run.data, vocab.codebooks
  place = jax.NamedSharding(mesh, sharding.RULES("batch"))
  array = lambda dtype, *shape: jax.ShapeDtypeStruct((d.rows, *shape), dtype, sharding=place)
  S, F, P = d.positions, d.frames, d.depth_frames or d.frames
  several = {"source": array(jnp.int16, S), "frame_source": array(jnp.int16, P)}
  return {**(several if len(d.sources) > 1 else {}),
          "main": array(jnp.int32, S), "modality": array(jnp.int8, S),
          "segment": array(jnp.int32, S), "position": array(jnp.int32, S, 3),
          "weight": array(jnp.float32, S), "frame_at": array(jnp.int32, F),
          "frames": array(jnp.int32, F, 2 * Q), "frame_weight": array(jnp.float32, P, Q)}


def train_step(run: config_lib.Run, vocab: vocab_lib.Vocab, where: Slice,
               stage: Callable[[str], None]) -> Compiled:
  """Compiles the step of a run for a slice, without touching any device.

  Raises:
    ValueError: the run's sizes and mesh don't fit the slice, or there is no such topology.
  """
  mesh = _mesh(run, where, stage)
  with jax.set_mesh(mesh):
    state = state_lib.abstract(run, vocab)
    lowered = step_lib.make_train_step(run).lower(state, batch(run, vocab))
  return _compile(lowered, mesh, _bytes(state.model), _bytes(state.opt_state))


def decode_loop(run: config_lib.Run, vocab: vocab_lib.Vocab, where: Slice,
                stage: Callable[[str], None]) -> Compiled:
  """Compiles the engine's loop of steps for data.rows streams and caches of data.positions.

  Raises:
    ValueError: the run's sizes and mesh don't fit the slice, or there is no such topology.
  """
  mesh = _mesh(run, where, stage)
  with jax.set_mesh(mesh):
    model, state, turn = streams(run, vocab)
    layout = grammar.Layout(vocab, run.data.text_delay, run.data.acoustic_delay)
    lowered = generate_step.run.lower(model, state, turn, layout=layout, guided=False)
  return _compile(lowered, mesh, _bytes(model), _bytes(state.cache))


def _mesh(run: config_lib.Run, where: Slice, stage: Callable[[str], None]) -> jax.sharding.Mesh:
  """The run's mesh of a slice's devices, to compile for."""
  stage("topology")
  mesh = sharding.make_mesh(run.mesh, where.devices())
  sharding.check_divides(run, mesh)
  stage("compile")
  return mesh


def streams(run: config_lib.Run, vocab: vocab_lib.Vocab
            ) -> tuple[Omni, cache.State, generate_step.Turn]:
  """What the engine has before a step on the current mesh: shapes, types, shardings."""
  mesh, rows = jax.sharding.get_mesh(), run.data.rows

  def make() -> tuple[Omni, cache.State, generate_step.Turn]:
    model = weights.prepare(transformer.init(run.model, vocab, sharding.RULES, jax.random.key(0)))
    state = cache.empty(model, rows=rows, positions=run.data.positions)
    number_B = jnp.zeros(rows, jnp.int32, out_sharding=sharding.RULES("batch"))
    kinds = typing.get_type_hints(grammar.Grammar)
    flags = {"draws_B", "speaks_B", "once_B"}
    g = grammar.Grammar(**{k: number_B > 0 if k in flags else number_B for k in kinds})
    wide = lambda *dims, dtype=jnp.int32: jnp.zeros(
      (rows, *dims), dtype, out_sharding=sharding.RULES("batch", *[None] * len(dims)))
    then = generate_step.Next(number_B, number_B, wide(3), wide(2 * vocab.codebooks), number_B == 0)
    turn = generate_step.Turn(
      grammar=g, next=then, written_B=number_B, limit_B=number_B, key_B=wide(2, dtype=jnp.uint32),
      setting_BK3=wide(*np.shape(Sampling().table()), dtype=jnp.float32),
      guidance_B=wide(dtype=jnp.float32))
    return model, state, turn

  def leaf(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    place = jax.NamedSharding(mesh, x.sharding.spec if x.sharding else jax.P())
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

  return jax.tree.map(leaf, jax.eval_shape(make))


def _compile(lowered: Any, mesh: jax.sharding.Mesh, parameters: int, other: int) -> Compiled:
  places = [Place(tuple(getattr(d, "coords", (d.id,))), getattr(d, "slice_index", 0))
            for d in mesh.devices.flat]
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
    return Compiled("", parameters + other + needed, parameters, other, grid, needed)
  m = made.memory_analysis()
  peak = m.peak_memory_in_bytes
  if mesh.devices.flat[0].platform != "tpu":  # a CPU's leaves out what is temporary
    peak = (m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
            + m.temp_size_in_bytes)
  return Compiled(made.as_text(), peak, parameters, other, grid, host=m.host_temp_size_in_bytes)


def _bytes(tree: Any) -> int:
  """Bytes of one device's part."""
  return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
             for x in jax.tree.leaves(tree))
