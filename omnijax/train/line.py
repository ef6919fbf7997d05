"""A step's line in metrics.jsonl and, at times, on the screen."""

import logging
import time
from typing import Any

import jax
import numpy as np

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.job import processes
from omnijax.tokenizers.load import Tokenizers
from omnijax.train import metrics as metrics_lib

_log = logging.getLogger("omnijax")


class Line:
  """Turns the metrics of each step into a line of metrics.jsonl and, at times, of the screen."""

  def __init__(self, run: config_lib.Run, vocab: vocab_lib.Vocab, tokenizers: Tokenizers,
               writer: metrics_lib.Writer | None, peak: float):
    self._run, self._vocab, self._tokenizers = run, vocab, tokenizers
    self._writer, self._peak = writer, peak
    self._waiting = None
    self.skipped = 0  # steps in a row that changed nothing, as far as is known
    # When the step before the waiting one was finished; the first step's time has its compile.
    self._mark = time.perf_counter()

  def dispatched(self, step, metrics, batch, flops, waited) -> None:
    """Remembers this step and reports the one before it, which has been computed meanwhile."""
    self.flush()
    self._waiting = (step, metrics, batch, flops, waited)

  def forget(self) -> None:
    """What was remembered will be run again."""
    self._waiting, self.skipped = None, 0
    self.restart()

  def restart(self) -> None:
    """The next step's time starts now: what came between is not its."""
    self._mark = time.perf_counter()

  def flush(self) -> None:
    """Waits for the remembered step and reports it."""
    if self._waiting is None:
      return
    step, metrics, batch, flops, waited = self._waiting
    self._waiting = None
    with processes.computing():
      got = jax.device_get(metrics)
    now = time.perf_counter()
    seconds, self._mark = now - self._mark, now
    values: dict[str, Any] = {"loss": float(got["loss"])}
    values |= metrics_lib.losses(got["sums"], got["dens"])
    sources = self._run.data.sources
    values |= metrics_lib.by_source(got["sums"], got["dens"], sources)
    values |= physical(self._vocab, self._tokenizers, values, batch)
    # Of all rows, taking those here for all: what the others read is not known here.
    share = self._run.data.rows / len(batch["segment"])
    positions = int((batch["segment"] > 0).sum()) * share
    if "source" in batch:
      used = np.bincount(batch["source"][batch["segment"] > 0], minlength=len(sources))
      values |= {f"tokens/{name}": int(n * share) for name, n in zip(
        metrics_lib.labels(sources), used, strict=True)}
    skipped = int(got["skipped"])
    if skipped:
      _log.warning("step %d changed nothing: the norm of its gradients is %.3g (loss %.4g)",
                   step + 1, got["grad_norm"], got["loss"])
    values |= {"grad_norm": float(got["grad_norm"]), "skipped": skipped, "data_wait_s": waited,
               "step_s": seconds, "tokens_per_s": positions / seconds,
               "mfu": share * sum(flops.values()) / seconds / (self._peak * jax.process_count())}
    if self._writer is not None:
      self._writer.write(step, values)
    if step % self._run.train.log_every == 0 or step + 1 == self._run.train.steps:
      self._print(step, values)
    self.skipped = skipped

  def _print(self, step: int, v: dict[str, Any]) -> None:
    means = {k: v["loss/" + k] for k in vocab_lib.MODALITIES}
    parts = [f"{k} {mean:.3f}" for k, mean in means.items() if mean is not None]
    left = int(v["step_s"] * (self._run.train.steps - step - 1))
    _log.info("step %d/%d  loss %.3f  %s  %.0f tok/s  mfu %.1f%%  %d:%02d left", step + 1,
             self._run.train.steps, v["loss"], "  ".join(parts), v["tokens_per_s"],
             v["mfu"] * 100, left // 60, left % 60)


def physical(vocab: vocab_lib.Vocab, tokenizers: Tokenizers, values: dict[str, float | None],
             batch: Any, prefix: str = "loss/") -> dict[str, float]:
  """The losses of a step in units that people know, see `metrics.physical`."""
  return metrics_lib.physical(
    values, codebooks=vocab.codebooks, frame_rate=tokenizers.audio.frame_rate,
    bytes_per_piece=metrics_lib.bytes_per_piece(tokenizers.text, vocab, batch),
    pixels_per_code=tokenizers.image.downsample ** 2, prefix=prefix)
