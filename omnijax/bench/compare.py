"""Pairs of timed blocks of both sides, and what follows from them."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def side(seconds: Sequence[float], steps: int, about: Mapping[str, Any], *, positions: int,
         flops: float, peak: float) -> dict[str, Any]:
  """Figures of one side.

  Args:
    seconds: of each block.
    steps: of a block.
    about: what the side says of itself.
    positions: of a step, without padding.
    flops: of the model in a step.
    peak: FLOP/s that MFU relates to.
  """
  median = statistics.median(seconds) / steps
  keys = ("compile_s", "peak_memory_gib", "attention")
  return {"ms_per_step": 1e3 * median, "ms_per_step_of_each": [1e3 * s / steps for s in seconds],
          "tokens_per_s": positions / median, "mfu": flops / median / peak,
          "first_loss": about["losses"][0], "last_loss": about["losses"][-1],
          **{k: about[k] for k in keys if k in about}}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
  """How often our step fits into theirs: median over pairs, and the spread."""
  each = [b / a for a, b in zip(ours, theirs, strict=True)]
  return {"ratio": statistics.median(each), "ratio_range": [min(each), max(each)],
          "ratio_of_each": each}


def check_same(ours: float, theirs: float, dtype: str) -> None:
  """Losses of the first step, from the same weights and batch, must agree.

  Raises:
    ValueError: they don't, so the two sides compute different things.
  """
  most = {"float32": 1e-3, "bfloat16": 2e-2}[dtype]
  if not abs(ours - theirs) <= most * abs(ours):
    raise ValueError(f"the first step's loss is {ours:.6g} with us and {theirs:.6g} with the twin, "
                     f"more than {most:g} apart: they are not the same model, so their times can't "
                     "be compared; please report it.")
