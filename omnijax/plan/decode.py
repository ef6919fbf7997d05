"""What serving a run's model will need and do on a slice of TPUs: a step of generation."""

import dataclasses
from collections.abc import Callable
from typing import Any

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.generate import step as generate_step
from omnijax.plan import child, hlo
from omnijax.plan import compile as compile_lib
from omnijax.plan import cost as cost_lib
from omnijax.plan.chips import RESERVED, Slice
from omnijax.plan.plan import would
from omnijax.train import metrics

_GIB = 2**30
_FRAME = 0.08  # seconds of speech in a position, see DESIGN section 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
  """Bytes of one chip, by what they hold."""

  parameters: float  # in the type of the computation
  cache: float
  buffers: float  # all else

  @property
  def total(self) -> float:
    return sum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """The compiled loop of an engine, read: one round writes a position of every stream."""

  run: config_lib.Run  # data.rows streams at once, data.positions each
  where: Slice
  memory: Memory
  model_flops: dict[str, float]  # of a step that writes speech, forward only, by component
  cost: cost_lib.Cost | None  # of a step in which a stream speaks; None if it can't be compiled
  text_cost: cost_lib.Cost | None  # of one in which none does
  text: str  # the scheduled HLO
  advice: tuple[str, ...]  # changes that would make it fit; none if it does

  @property
  def fits(self) -> bool:
    return self.cost is not None and self.memory.total <= self.where.chip.hbm * (1 - RESERVED)

  def as_json(self, price: float | None = None) -> dict[str, Any]:
    """All figures; price: of a chip and hour, for the cost of a billion tokens."""
    m, chips, d = self.memory, self.where.chips, self.run.data
    out: dict[str, Any] = {
      "experiment": self.run.name, "step": "decode", "topology": self.where.name,
      "slices": self.where.slices, "chips": chips, "mesh": dataclasses.asdict(self.run.mesh),
      "rows": d.rows, "positions": d.positions,
      "fits": self.fits if self.where.hbm_gib else None, "advice": list(self.advice),
      "hbm_gib": m.total / _GIB, "hbm_of_chip_gib": self.where.hbm_gib,
      "memory_gib": {k: v / _GIB for k, v in dataclasses.asdict(m).items()},
      "tokens_per_chip": d.rows / chips,
      "model_flops_per_chip": sum(self.model_flops.values()) / chips,
      "model_flops_share": metrics.shares(self.model_flops),
    }
    if self.cost is None or self.text_cost is None:
      return out
    out["collectives"] = self.cost.collectives_by_bytes(self.where.chip.timed)
    if not self.where.chip.timed:
      return out
    seconds, text, error = self.cost.seconds, self.text_cost.seconds, cost_lib.ERROR
    rate = d.rows / text / chips
    out |= {
      "hlo_flops_per_chip": self.cost.flops,
      "step_s_estimate": seconds, "step_s_range": [seconds * (1 - error), seconds * (1 + error)],
      "text_step_s_estimate": text, "text_step_s_range": [text * (1 - error), text * (1 + error)],
      # If nothing were done but reading parameters and cache once.
      "step_s_of_memory": (m.parameters + m.cache) / self.where.chip.hbm_rate,
      "mfu_estimate": sum(self.model_flops.values()) / chips / seconds / self.where.chip.flops,
      "tokens_per_s_per_chip": rate,
      # Of each stream: seconds of speech in a second.
      "speech_per_second": _FRAME / seconds,
      "speech_per_second_range": [_FRAME / seconds / (1 + error), _FRAME / seconds / (1 - error)],
      "seconds_by_kind": dict(self.cost.by_kind),
    }
    if price is not None:
      out["cost_per_billion_tokens"] = 1e9 / rate / 3600 * price
    return out


def plan(run: config_lib.Run, vocab: vocab_lib.Vocab, where: Slice, *,
         stage: Callable[[str], None] = lambda name: None) -> Plan:
  """Compiles the engine's loop for a slice and reads the program.

  Args:
    run: its mesh must multiply to the slice's devices; data.rows streams at once, each with a cache
      of data.positions.
    vocab: its id space.
    where: the slice.
    stage: told what is being done.

  Raises:
    ValueError: the run's mesh doesn't fit the slice, or its compiler fails on the program.
    ModuleNotFoundError: the TPU's compiler isn't installed.
  """
  where.need_compiler()
  compiled = child.call(compile_lib.decode_loop, run, vocab, where, stage=stage,
                        what=f"the decode step of {run.name} for {where.name}")
  stage("read")
  rows, positions = run.data.rows, run.data.positions
  flops = metrics.flops_of(run.model, vocab, positions=rows, pairs=float(rows * positions),
                           frames=rows)
  cost = text_cost = None
  if compiled.text:
    module = hlo.parse(compiled.text)
    cost, text_cost = (
      cost_lib.Estimator(module, where, compiled.grid, run.model.experts, without).round()
      for without in ("", generate_step.FRAME))
  memory = Memory(parameters=compiled.parameters, cache=compiled.other,
                  buffers=compiled.peak - compiled.parameters - compiled.other)
  out = Plan(run=run, where=where, memory=memory, cost=cost, text_cost=text_cost,
             model_flops={k: v / 3 for k, v in flops.items()},  # backwards is twice as much
             text=compiled.text, advice=())
  return out if out.fits else dataclasses.replace(out, advice=_advice(out))


def _advice(plan: Plan) -> tuple[str, ...]:
  """Changes that would make a plan fit, with what they would leave."""
  m, most, d = plan.memory, plan.where.chip.hbm * (1 - RESERVED), plan.run.data
  fewer = m.parameters + (m.total - m.parameters) / 2
  return (f"{(m.total - most) / _GIB:.1f} GiB too much for {plan.where.chip.name}",
          would(f"data.rows {d.rows // 2}, or data.positions {d.positions // 2}", fewer, most),
          would("twice the chips, on mesh.tensor", m.total / 2, most))
