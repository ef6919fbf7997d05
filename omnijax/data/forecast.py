"""What a run will read, before it starts: passes over each source, and when the data run out."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from omnijax import config as config_lib
from omnijax.data import fit
from omnijax.data.lengths import Lengths
from omnijax.data.mixture import Stream
from omnijax.data.plan import stages


class Forecast(NamedTuple):
  """Passes over each source in all steps, and the step at which there are no more data, if any.

  Estimates: rows are taken as full as their budgets allow, documents as rendered plain.
  """

  epochs: list[float]
  ends: int | None


def forecast(lengths: Sequence[Lengths], data: config_lib.Data, steps: int) -> Forecast:
  """What so many steps of a mixture read."""
  sizes = [len(x) for x in lengths]
  # Rows that a document of each source takes, by the budget that it takes more of.
  need_N = np.array([(fit.mean_positions(x) / data.positions,
                      float(x.rows["frames"].mean(dtype=np.float64)) / data.frames)
                     for x in lengths])
  last = steps * data.rows
  plan = [*stages(lengths, data), (last, [])]
  stream = Stream(sizes, plan[0][1], data.epochs or [0.0] * len(sizes), 0)
  place, ends = 0.0, None
  for (row, _), (after, weights) in zip(plan, plan[1:], strict=False):
    left = float(max(0, min(after, last) - min(row, last)))
    for start, stop, share_N in stream.mixed():
      begin = max(place, start)
      if stop is not None and stop <= begin:
        continue
      each = float((share_N @ need_N).max())
      docs = left / each if stop is None else min(left / each, stop - begin)
      place, left = begin + docs, left - docs * each
      if left <= 0:
        break
    if left > 1 and after >= last:
      ends = int((min(after, last) - left) / data.rows)
    if weights:
      stream.change(int(place), weights)
  drawn = stream.drawn(int(place))
  return Forecast([n / max(1, size) for n, size in zip(drawn, sizes, strict=True)], ends)


def told(names: Sequence[str], sizes: Sequence[int], found: Forecast, steps: int) -> str:
  """One sentence of what will be read.

  Raises:
    ValueError: the data run out long before the last step.
  """
  each = ", ".join(f"{name} ({size:,} documents) {epochs:.2f} times" for name, size, epochs in zip(
    names, sizes, found.epochs, strict=True))
  if found.ends is not None and found.ends < 0.9 * steps:
    raise ValueError(f"the data run out after about {found.ends} of {steps} steps: {each}, as "
                     "Data.epochs allows; raise it, add sources, or lower Train.steps.")
  end = "" if found.ends is None else f"; the data may run out after about {found.ends} steps"
  return f"{steps} steps read about: {each}{end}"
