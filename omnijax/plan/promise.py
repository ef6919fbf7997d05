"""What a run's train step promises before it is compiled: rough seconds and bytes.

Good for an order in which to compile variants of a run, and for leaving out those that can't fit;
a search corrects both by what its first compilations find.
"""

import dataclasses

import jax

from omnijax import config as config_lib
from omnijax import sharding
from omnijax import vocab as vocab_lib
from omnijax.model import transformer
from omnijax.plan.chips import Slice
from omnijax.train import metrics
from omnijax.train import state as state_lib

_MATMUL = 0.8  # of peak
_EXPOSED = 0.3  # of gathers of weights, what nothing hides
_PASSES = 40  # over a position's hidden state in a layer, forward and backward


@dataclasses.dataclass(frozen=True)
class Promise:
  """Of a step, and of one device."""

  seconds: float
  state: float  # bytes of parameters and the optimizer
  others: float  # bytes beside the state

  @property
  def bytes(self) -> float:
    return self.state + self.others


def parameters(run: config_lib.Run, vocab: vocab_lib.Vocab) -> int:
  """How many a run's model has."""
  one = sharding.make_mesh(config_lib.Mesh(fsdp=1), jax.devices()[:1])
  with jax.set_mesh(one):
    return state_lib.parameter_count(jax.eval_shape(
      lambda: transformer.init(run.model, vocab, sharding.RULES, jax.random.key(0))))


def promise(run: config_lib.Run, vocab: vocab_lib.Vocab, where: Slice, count: int) -> Promise:
  """What compiling would roughly find.

  Args:
    run: its mesh has no -1.
    vocab: its id space.
    where: the slice.
    count: of parameters.
  """
  m, d, mesh, chip = run.model, run.data, run.mesh, where.chip
  size = 2 if m.dtype == "bfloat16" else 4
  shards = mesh.fsdp * mesh.context * mesh.tensor * mesh.expert
  moments = 8 if run.optim.kind == "adamw" and run.optim.moment_dtype == "float32" else 6
  positions = d.rows * d.positions / where.chips  # a device's share of a step
  at_once = positions / run.optim.accumulate
  kept = m.layers * at_once * kept_values(m, mesh.tensor) * size
  gradients = 4 * count / shards * (2 if run.optim.accumulate > 1 else 1)
  logits = 2 * 4 * min(run.loss.chunk, at_once * mesh.tensor) * vocab.size / mesh.tensor
  head = 4 * m.dim * vocab.size / mesh.tensor

  flops = metrics.flops_of(m, vocab, positions=d.rows * d.positions,
                           pairs=d.rows * d.positions * (d.positions + 1) / 2,
                           frames=d.rows * (d.depth_frames or d.frames))
  again = 4 / 3 if m.remat == "full" else 1.0
  share = {k: v * (again if k in ("trunk", "attention") else 1) / where.chips
           for k, v in flops.items()}
  # Blocks on the diagonal are done whole.
  whole = 1 + max(m.attention_blocks) / d.positions
  attention = whole * share.pop("attention") / (chip.attention * chip.flops)
  products = sum(share.values()) / (_MATMUL * chip.flops)
  moved = m.layers * positions * mesh.tensor * _PASSES * m.dim * size + 20 * count / shards
  busy = attention + products + moved / chip.hbm_rate
  wire = 2 * chip.dims * chip.link_rate
  gathers = (3 * run.optim.accumulate * size * count / (mesh.tensor * mesh.expert) / wire
             if mesh.fsdp * mesh.context > 1 else 0.0)
  sums = 0.0
  if mesh.tensor > 1:  # of activations, twice forward and twice backward in each layer
    sums += 8 * m.layers * positions * (mesh.tensor - 1) * m.dim * size / (2 * chip.link_rate)
  if mesh.data > 1:  # of gradients
    sums += 8 * count / shards / (chip.network_rate if where.slices > 1 else wire)
  exposed = max(_EXPOSED * gathers, gathers - busy)
  return Promise(busy + exposed + sums,
                 (4 + moments) * count / shards, kept + gradients + logits + head)


def kept_values(m: config_lib.Model, tensor: int = 1) -> float:
  """Values that a layer keeps of each position for the backward pass, on one of `tensor` devices.
  """
  query, key = m.head_dim * m.heads, m.head_dim * m.kv_heads
  active, whole = m.mlp * (m.experts_per_token if m.experts else 1), m.dim * tensor
  each = {"input": whole, "query": query, "key": key, "value": key, "attention": query,
          "attended": whole, "gate": active, "up": active}
  # Norms, rotations and products of gates are in float32, each with its copies: four times what
  # their inputs take, in the two programs that this was compared with.
  wide = {"full": whole, "minimal": sum(each.values()),
          "none": 4 * (6 * whole + 4 * (query + key + active)),
          "names": sum(each[n] for n in {*m.saved, "input"} - {*m.offloaded})}
  return wide[m.remat]
