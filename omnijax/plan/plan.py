"""What a run will need and do on a slice of TPUs: memory, FLOPs, collectives, time, cost."""

import dataclasses
from collections.abc import Callable
from typing import Any

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.plan import child, hlo
from omnijax.plan import compile as compile_lib
from omnijax.plan import cost as cost_lib
from omnijax.plan.chips import RESERVED, Slice
from omnijax.plan.promise import kept_values
from omnijax.train import metrics

_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
  """Bytes of one chip, by what they hold."""

  parameters: float
  optimizer: float
  gradients: float  # those that layers' loops stack up
  activations: float  # kept from the forward pass for the backward one
  buffers: float  # all else: the batch, work space, what is on its way

  @property
  def total(self) -> float:
    return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """A compiled run, read."""

  run: config_lib.Run
  where: Slice
  memory: Memory
  model_flops: dict[str, float]  # of the whole step, by component
  cost: cost_lib.Cost | None  # None if it takes too much memory to be compiled
  text: str  # the scheduled HLO
  host: float  # bytes that a chip's activations take in its host's memory
  advice: tuple[str, ...]  # changes that would make it fit; none if it does

  @property
  def fits(self) -> bool:
    return self.cost is not None and self.memory.total <= self.where.chip.hbm * (1 - RESERVED)

  @property
  def tokens(self) -> int:
    """Positions of a step."""
    return self.run.data.rows * self.run.data.positions

  def as_json(self, price: float | None = None) -> dict[str, Any]:
    """All figures; price: of a chip and hour, for the cost of a billion tokens."""
    m, chips = self.memory, self.where.chips
    out: dict[str, Any] = {
      "experiment": self.run.name, "step": "train", "topology": self.where.name,
      "slices": self.where.slices, "chips": chips, "mesh": dataclasses.asdict(self.run.mesh),
      "remat": self.run.model.remat,
      "rows": self.run.data.rows, "positions": self.run.data.positions,
      "fits": self.fits if self.where.hbm_gib else None, "advice": list(self.advice),
      "hbm_gib": m.total / _GIB, "hbm_of_chip_gib": self.where.hbm_gib,
      "host_gib": self.host / _GIB,
      "memory_gib": {k: v / _GIB for k, v in dataclasses.asdict(m).items()},
      "tokens_per_chip": self.tokens / chips,
      "model_flops_per_chip": sum(self.model_flops.values()) / chips,
      "model_flops_share": metrics.shares(self.model_flops),
    }
    if self.cost is None:
      return out
    out["collectives"] = self.cost.collectives_by_bytes(self.where.chip.timed)
    return out | self._speed(self.cost, price) if self.where.chip.timed else out

  def _speed(self, cost: cost_lib.Cost, price: float | None) -> dict[str, Any]:
    seconds, chips = cost.seconds, self.where.chips
    rate = self.tokens / seconds / chips
    flops = sum(self.model_flops.values()) / chips
    out = {
      "hlo_flops_per_chip": cost.flops,
      "step_s_estimate": seconds,
      "step_s_range": [seconds * (1 - cost_lib.ERROR), seconds * (1 + cost_lib.ERROR)],
      "mfu_estimate": flops / seconds / self.where.chip.flops,
      "tokens_per_s_per_chip": rate,
      "seconds_by_kind": dict(cost.by_kind),
    }
    if price is not None:
      out["cost_per_billion_tokens"] = 1e9 / rate / 3600 * price
    return out


def plan(run: config_lib.Run, vocab: vocab_lib.Vocab, where: Slice, *, document: int | None = None,
         stage: Callable[[str], None] = lambda name: None) -> Plan:
  """Compiles a run's train step for a slice and reads the program.

  Args:
    run: its mesh must multiply to the slice's devices.
    vocab: its id space.
    where: the slice.
    document: positions of a document, for the FLOPs of attention; a whole row without it.
    stage: told what is being done, since compiling takes minutes.

  Raises:
    ValueError: the run's mesh doesn't fit the slice, or its compiler fails on the program.
    ModuleNotFoundError: the TPU's compiler isn't installed.
  """
  where.need_compiler()
  compiled = child.call(compile_lib.train_step, run, vocab, where, stage=stage,
                        what=f"the train step of {run.name} for {where.name}")
  stage("read")
  d = run.data
  length = min(document or d.positions, d.positions)
  flops = metrics.flops_of(run.model, vocab, positions=d.rows * d.positions,
                           pairs=d.rows * d.positions * (length + 1) / 2,
                           frames=d.rows * (d.depth_frames or d.frames))
  if not compiled.text:
    memory = Memory(parameters=compiled.parameters, optimizer=compiled.other, gradients=0,
                    activations=0, buffers=compiled.needed)
    cost = None
  else:
    module = hlo.parse(compiled.text)
    memory = _memory(compiled, module)
    cost = cost_lib.Estimator(module, where, compiled.grid, run.model.experts).step()
  out = Plan(run=run, where=where, memory=memory, model_flops=flops, cost=cost,
             text=compiled.text, host=compiled.host, advice=())
  return out if out.fits else dataclasses.replace(out, advice=_advice(out))


def _memory(compiled: compile_lib.Compiled, module: hlo.Module) -> Memory:
  state = compiled.parameters + compiled.other
  kept = {"gradients": 0.0, "activations": 0.0}
  for loop in module.computations[module.entry].values():
    if loop.opcode == "while":
      kind = "gradients" if "transpose(" in loop.op_name else "activations"
      kept[kind] = max(kept[kind], sum(a.bytes for a in _stacked(loop, module)))
  return Memory(parameters=compiled.parameters, optimizer=compiled.other, **kept,
                buffers=compiled.peak - state - sum(kept.values()))


def _stacked(loop: hlo.Instruction, module: hlo.Module) -> list[hlo.Array]:
  """What a loop over layers fills layer by layer: its arrays that begin as nothing."""
  entry = module.computations[module.entry]
  start = entry[loop.operands[0]]
  out = []
  for array, name in zip(loop.outputs, start.operands, strict=False):
    made = entry[name]
    while made.opcode in ("copy", "bitcast") and made.operands[0] in entry:
      made = entry[made.operands[0]]
    # The compiler may take the last round out of the loop.
    if made.opcode in ("custom-call", "broadcast", "pad") and array.shape and not array.host and (
        array.shape[0] - module.trips(loop) in (0, 1)):
      out.append(array)
  return out


def _advice(plan: Plan) -> tuple[str, ...]:
  """Changes that would make a plan fit, with what they would leave, the least costly first."""
  chip, m, run = plan.where.chip, plan.memory, plan.run
  most = chip.hbm * (1 - RESERVED)
  kept = m.activations or _kept(plan, run.model.remat)
  out = [f"{(m.total - most) / _GIB:.1f} GiB too much for {chip.name}"]
  for remat in ("minimal", "full"):
    less = kept - _kept(plan, remat)
    if less > 0.1 * kept and remat != run.model.remat:
      out.append(would(f"model.remat {remat}", m.total - less, most))
  state = m.parameters + m.optimizer + m.gradients
  out.append(would(f"data.rows {run.data.rows // 2}", state + (m.total - state) / 2, most))
  out.append(would("twice the chips, on mesh.fsdp", m.total - state / 2, most))
  return tuple(out)


def _kept(plan: Plan, remat: Any) -> float:
  """Bytes of a chip that the layers keep for the backward pass."""
  m = plan.run.model
  if remat != m.remat:
    m = dataclasses.replace(m, remat=remat, saved=(), offloaded=())
  size = 2 if m.dtype == "bfloat16" else 4
  return m.layers * plan.tokens / plan.where.chips * kept_values(m) * size


def would(change: str, left: float, most: float) -> str:
  """A change, the bytes of a chip that it would leave in use, and whether that is few enough."""
  verdict = "fits" if left <= most else "still too much"
  return f"{change}: about {left / _GIB:.1f} GiB, {verdict}"
