"""The life of a run, top to bottom: resolve, resume, step, log, evaluate, sample, save.

Order of resuming: the newest whole checkpoint of the run directory, else a fresh state from the
seed. The position in the data is the step itself.
"""

import dataclasses
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from omnijax import checkpoint as checkpoint_lib
from omnijax import config as config_lib
from omnijax import sharding
from omnijax import vocab as vocab_lib
from omnijax.data import loader as loader_lib
from omnijax.evals import samples as samples_lib
from omnijax.tokenizers import load as tokenizers_lib
from omnijax.train import metrics as metrics_lib
from omnijax.train import optim
from omnijax.train import state as state_lib
from omnijax.train import step as step_lib

log = logging.getLogger("omnijax")

# Fields that may change when a run resumes, because they don't change what is computed.
_FREE = {"train": ("steps", "log_every", "save_every", "keep", "sample_every"),
         "data": ("workers", "read_threads", "prefetch"), "eval": ("every", "batches"),
         "mesh": sharding.AXES}


class _Resolved(NamedTuple):
  tokenizers: Any
  vocab: vocab_lib.Vocab
  loader: loader_lib.Loader
  identity: checkpoint_lib.Identity


def train(run: config_lib.Run, run_dir: Path) -> None:
  """Trains until run.train.steps, from wherever the run directory left off.

  Raises:
    ValueError: the config, the data, the run directory and the devices don't fit together.
  """
  r = _resolve(run)
  mesh = sharding.make_mesh(run.mesh)
  sharding.check_divides(run, mesh)
  _open_directory(run, run_dir)
  peak = metrics_lib.peak_flops()
  with jax.set_mesh(mesh):
    saved = checkpoint_lib.Checkpoints(run_dir / "checkpoints", r.identity, keep=run.train.keep)
    state = _restore_or_init(run, r, saved)
    first = int(state.step)
    writer = metrics_lib.Writer(run_dir, first)
    log.info("starting at step %d: %.2fM parameters, mesh %s, %s", first,
             state_lib.parameter_count(state.model) / 1e6, dict(mesh.shape), r.loader.stats())
    try:
      state = _steps(run, r, state, first, saved, writer, run_dir, peak)
    finally:
      saved.close()
      writer.close()


def _steps(run, r, state, first, saved, writer, run_dir, peak):
  """All steps; metrics of a step are fetched after the next one is on its way."""
  step_fn: Any = step_lib.make_train_step(run)
  line = _Line(run, r, writer, peak)
  done = first
  try:
    batches = _timed(r.loader.iterate(first, run.train.steps))
    for step, (batch, waited) in zip(range(first, run.train.steps), batches, strict=True):
      flops = metrics_lib.model_flops(run.model, r.vocab, batch)
      placed = sharding.place(batch)
      with jax.transfer_guard("disallow"):
        state, metrics = step_fn(state, placed)
      line.dispatched(step, metrics, batch, flops, waited)
      done = step + 1
      if run.eval.every and done % run.eval.every == 0:
        line.flush()
        writer.write_eval(done, _evaluate(run, r, state))
        line.restart()
      if run.train.sample_every and done % run.train.sample_every == 0:
        line.flush()
        _sample(run, r, state, done, run_dir, writer)
        line.restart()
      if done % run.train.save_every == 0 and done < run.train.steps:
        line.flush()
        saved.save(done, state.model, _rest(state))
        line.restart()
  except KeyboardInterrupt:
    log.info("interrupted: saving step %d; run the same command again to go on", done)
    raise
  finally:
    line.flush()
    # On an error inside a step the donated state is gone, and there is nothing to save.
    if done > first and not _deleted(state) and saved.latest != done:
      saved.save(done, state.model, _rest(state))
      saved.wait()
  # One program for the whole run: anything else is a step that was compiled twice.
  assert first == run.train.steps or step_fn._cache_size() == 1, step_fn._cache_size()
  if first < run.train.steps:
    _sample(run, r, state, run.train.steps, run_dir, writer)
  return state


def evaluate(run_dir: Path, *, data: Path | None = None, batches: int | None = None
             ) -> dict[str, Any]:
  """Losses of a run's newest checkpoint on held-out records, in nats and physical units.

  Args:
    run_dir: is only read.
    data: records to evaluate on, instead of the run's held-out ones.
    batches: how many at most, instead of the run's own number.
  """
  step, identity = checkpoint_lib.read_identity(run_dir / "checkpoints")
  run = identity.run
  if batches:
    run = dataclasses.replace(run, eval=dataclasses.replace(run.eval, batches=batches))
  if data is not None:
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, heldout=(str(data),)))
  if not run.data.heldout:
    raise ValueError(f"{run_dir} was trained without held-out data (data.heldout is empty), so "
                     "there is nothing to evaluate on; name records with --data.")
  r = _resolve(run)
  with jax.set_mesh(sharding.make_mesh(run.mesh)):
    like = state_lib.abstract(run, r.vocab)
    model = checkpoint_lib.read_arrays(run_dir / "checkpoints", step, "model", like.model)
    rest = checkpoint_lib.read_arrays(run_dir / "checkpoints", step, "training", _rest(like))
    state = state_lib.TrainState(rest["step"], model, rest["opt_state"])
    return {"step": step, **_evaluate(run, r, state)}


def _resolve(run: config_lib.Run) -> _Resolved:
  tokenizers = tokenizers_lib.load_all(run.tokenizers)
  vocab = tokenizers_lib.vocab_of(tokenizers, run.tokenizers)
  prints = {k: t.fingerprint for k, t in tokenizers._asdict().items()}
  loader = loader_lib.Loader(run.data, vocab, seed=run.train.seed, tokenizers=prints,
                             process_index=jax.process_index(),
                             process_count=jax.process_count())
  identity = checkpoint_lib.Identity(run=run, vocab=vocab, data=loader.fingerprint,
                                     tokenizers=prints)
  return _Resolved(tokenizers, vocab, loader, identity)


def _open_directory(run: config_lib.Run, run_dir: Path) -> None:
  """Makes the run directory self-describing, and refuses one of another experiment."""
  try:
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "config.json"
    if path.exists():
      _check_same(run, config_lib.from_json(path.read_text()), run_dir)
    part = path.with_suffix(".part")
    part.write_text(config_lib.to_json(run))
    part.replace(path)
  except OSError as error:
    raise ValueError(f"the run directory {run_dir} can't be written ({error.strerror}); wanted a "
                     "writable directory: change --run-dir or its permissions.") from error
  handler = logging.FileHandler(run_dir / "log.txt")
  handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
  log.addHandler(handler)


def _check_same(run: config_lib.Run, before: config_lib.Run, run_dir: Path) -> None:
  now, then = dataclasses.asdict(run), dataclasses.asdict(before)
  for section, fields in _FREE.items():
    for field in fields:
      now[section].pop(field), then[section].pop(field)
  for section in now:
    if now[section] != then[section]:
      raise ValueError(f"{run_dir} holds another run: {section} was {then[section]} and is now "
                       f"{now[section]}; use a new --run-dir, or the first settings again.")


def _rest(state: state_lib.TrainState) -> dict[str, Any]:
  return {"step": state.step, "opt_state": state.opt_state}


def _restore_or_init(run, r, saved) -> state_lib.TrainState:
  if saved.latest is None:
    return state_lib.init(run, r.vocab, vectors=tokenizers_lib.vectors_of(r.tokenizers, r.vocab))
  like = state_lib.abstract(run, r.vocab)
  model, rest = saved.restore(like.model, _rest(like))
  return state_lib.TrainState(rest["step"], model, rest["opt_state"])


def _sample(run, r, state, step, run_dir, writer) -> None:
  model = optim.averaged(state.model, state.opt_state)
  samples_lib.write(run, r.vocab, r.tokenizers, model, step, run_dir, writer.board)


def _deleted(state: state_lib.TrainState) -> bool:
  return any(x.is_deleted() for x in jax.tree.leaves(state))


def _timed(batches: Iterator[Any]) -> Iterator[tuple[Any, float]]:
  """Each batch with the seconds that the loop stood still for it."""
  while True:
    start = time.perf_counter()
    try:
      batch = next(batches)
    except StopIteration:
      return
    yield batch, time.perf_counter() - start


def _evaluate(run, r, state) -> dict[str, Any]:
  """Mean held-out losses over run.eval.batches, weighted by targets."""
  eval_fn = step_lib.make_eval_step(run)
  held = loader_lib.Loader.heldout(run.data, r.vocab, seed=0, tokenizers=r.identity.tokenizers,
                                   process_index=jax.process_index(),
                                   process_count=jax.process_count())
  total: Any = None
  for batch in held.iterate(0, min(run.eval.batches, held.steps)):
    one = jax.device_get(eval_fn(state, sharding.place(batch)))
    total = one if total is None else jax.tree.map(np.add, total, one)
  values = metrics_lib.losses(total["sums"], total["dens"], "eval/loss/")
  return values | _physical(r, values, None, "eval/loss/")


def _physical(r, values, batch, prefix="loss/") -> dict[str, float]:
  return metrics_lib.physical(
    values, codebooks=r.vocab.codebooks, frame_rate=r.tokenizers.audio.frame_rate,
    bytes_per_piece=metrics_lib.bytes_per_piece(r.tokenizers.text, r.vocab, batch),
    pixels_per_code=r.tokenizers.image.downsample ** 2, prefix=prefix)


class _Line:
  """Turns the metrics of each step into a line of metrics.jsonl and, at times, of the screen."""

  def __init__(self, run, r, writer, peak):
    self._run, self._r, self._writer, self._peak = run, r, writer, peak
    self._waiting = None
    # When the step before the waiting one was finished; the first step's time has its compile.
    self._mark = time.perf_counter()

  def dispatched(self, step, metrics, batch, flops, waited) -> None:
    """Remembers this step and reports the one before it, which has been computed meanwhile."""
    self.flush()
    self._waiting = (step, metrics, batch, flops, waited)

  def restart(self) -> None:
    """The next step's time starts now: what came between is not its."""
    self._mark = time.perf_counter()

  def flush(self) -> None:
    """Waits for the remembered step and reports it."""
    if self._waiting is None:
      return
    step, metrics, batch, flops, waited = self._waiting
    self._waiting = None
    got = jax.device_get(metrics)
    now = time.perf_counter()
    seconds, self._mark = now - self._mark, now
    values: dict[str, Any] = {"loss": float(got["loss"])}
    values |= metrics_lib.losses(got["sums"], got["dens"])
    values |= _physical(self._r, values, batch)
    positions = int((batch["segment"] > 0).sum()) * jax.process_count()
    values |= {"grad_norm": float(got["grad_norm"]), "data_wait_s": waited, "step_s": seconds,
               "tokens_per_s": positions / seconds,
               "mfu": sum(flops.values()) / seconds / self._peak}
    self._writer.write(step, values)
    if step % self._run.train.log_every == 0 or step + 1 == self._run.train.steps:
      self._print(step, values)
    if not np.isfinite(values["loss"]):
      raise FloatingPointError(f"the loss of step {step} is {values['loss']}; lower "
                               "optim.peak_lr, or resume from an older checkpoint.")

  def _print(self, step: int, v: dict[str, Any]) -> None:
    means = {k: v["loss/" + k] for k in vocab_lib.MODALITIES}
    parts = [f"{k} {mean:.3f}" for k, mean in means.items() if mean is not None]
    left = int(v["step_s"] * (self._run.train.steps - step - 1))
    log.info("step %d/%d  loss %.3f  %s  %.0f tok/s  mfu %.1f%%  %d:%02d left", step + 1,
             self._run.train.steps, v["loss"], "  ".join(parts), v["tokens_per_s"],
             v["mfu"] * 100, left // 60, left % 60)
