"""Our side: the real train step on a batch that stays on its devices."""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from omnijax import checkpoint, sharding
from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.bench import cpu_name, host_memory
from omnijax.train import metrics as metrics_lib
from omnijax.train import state as state_lib
from omnijax.train import step as step_lib


class Side:
  """The state of a run, and its step, compiled and run once.

  Args:
    run: its mesh must fit the devices.
    vocab: its id space.
    batch: a packed batch.
    weights: where to write the first weights, for the other side to begin with.
  """

  def __init__(self, run: config_lib.Run, vocab: vocab_lib.Vocab, batch: dict[str, np.ndarray],
               weights: Path | None):
    self._mesh = sharding.make_mesh(run.mesh)
    sharding.check_divides(run, self._mesh)
    with jax.set_mesh(self._mesh):
      self._state = state_lib.init(run, vocab)
      if weights is not None:
        arrays: dict[str, Any] = checkpoint.named(self._state.model)
        np.savez(weights, **arrays)
      self._batch = sharding.place(batch)
      self._step: Any = step_lib.make_train_step(run)
      begun = time.perf_counter()
      self._losses = [self._once()]
      jax.block_until_ready(self._state)
      self._compile_s = time.perf_counter() - begun

  def _once(self) -> jax.Array:
    self._state, metrics = self._step(self._state, self._batch)
    return metrics["loss"]

  def steps(self, count: int) -> float:
    """Seconds of so many steps, waited for once."""
    with jax.set_mesh(self._mesh):
      begun = time.perf_counter()
      for _ in range(count):
        loss = self._once()
      jax.block_until_ready((self._state, loss))
      seconds = time.perf_counter() - begun
    self._losses.append(loss)
    # Anything else would be a step that was compiled again.
    assert self._step._cache_size() == 1, self._step._cache_size()
    return seconds

  def about(self) -> dict[str, Any]:
    """What it runs on, what compiling took, losses of the first step and after each block."""
    devices = self._mesh.devices.flat
    kind = devices[0].device_kind
    peak, source = metrics_lib.peak_flops(), "data sheet, bfloat16"
    if devices[0].platform == "cpu":
      kind, source = cpu_name(), "measured, a float32 product of 1024 x 1024 matrices"
    else:
      peak *= len(devices) / jax.local_device_count()
    return {"device": kind, "devices": len(devices), "peak_flops": peak, "peak_flops_of": source,
            "jax": jax.__version__, "compile_s": self._compile_s,
            "parameters": state_lib.parameter_count(self._state.model),
            "losses": [float(x) for x in self._losses], "peak_memory_gib": self._memory() / 2**30}

  def _memory(self) -> float:
    stats = self._mesh.devices.flat[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", host_memory())
