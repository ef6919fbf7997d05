"""The life of a run, top to bottom: resolve, resume, step, log, evaluate, sample, save.

Order of resuming: the newest whole checkpoint of the run directory, else a fresh state from the
seed. The position in the data follows from the step and the run's events.
"""

import contextlib
import dataclasses
import errno
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from omnijax import checkpoint as checkpoint_lib
from omnijax import config as config_lib
from omnijax import sharding
from omnijax import vocab as vocab_lib
from omnijax.checkpoint import replicas
from omnijax.data import loader as loader_lib
from omnijax.evals import samples as samples_lib
from omnijax.job import exits, goodput, processes
from omnijax.job import preemption as preemption_lib
from omnijax.job import watchdog as watchdog_lib
from omnijax.tokenizers import load as tokenizers_lib
from omnijax.train import ahead as ahead_lib
from omnijax.train import directory, events, optim
from omnijax.train import line as line_lib
from omnijax.train import loss as loss_lib
from omnijax.train import metrics as metrics_lib
from omnijax.train import state as state_lib
from omnijax.train import step as step_lib

log = logging.getLogger("omnijax")
_TRIES = 3  # to go back to the same checkpoint
# What a disk says that is full or broken.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE)


class _Resolved(NamedTuple):
  tokenizers: Any
  vocab: vocab_lib.Vocab
  loader: loader_lib.Loader
  identity: checkpoint_lib.Identity


def train(run: config_lib.Run, run_dir: Path, *, change: bool = False, begun: float | None = None
          ) -> bool:
  """Trains until run.train.steps, from wherever the run directory left off.

  Every process of a job calls it, after `job.processes.join`. On SIGTERM to any of them all save
  the same step and return False, else True.

  Args:
    run, run_dir: what to train, and where.
    change: whether settings of data, loss and optimizer may be others than before. It is noted with
      the checkpoints, and the data goes on from the row of the plan where it was.
    begun: when this process did, for the account of its time; now by default.

  Raises:
    ValueError: the config, the data, the run directory and the devices don't fit together, or
      another job is at work in the directory.
    exits.Again: a save failed, or another process is gone.
    exits.Never: there are checkpoints, and none is good; or too many steps changed nothing, and
      going back did not help.
  """
  mesh = sharding.make_mesh(run.mesh)
  sharding.check_divides(run, mesh)
  with jax.set_mesh(mesh):
    r = _resolve(run)
    told = r.loader.forecast(run.train.steps)
    with directory.opened(run, run_dir, change) as log_file:
      log.info("%s", told)
      dog = watchdog_lib.Watchdog(run.train.stuck_after_s, log_file)
      path = run_dir / "goodput.jsonl" if jax.process_index() == 0 else None
      ledger = goodput.Ledger(path, begun)
      try:
        return _train(run, r, run_dir, dog, ledger, change)
      except OSError as error:
        if error.errno not in _DISK:
          raise
        raise exits.Again(f"{error.filename or run_dir} can't be written: {error.strerror}; what "
                          "was saved before is untouched, and the same command goes on from there"
                          ) from error
      finally:
        dog.close()
        with contextlib.suppress(OSError):
          ledger.close()


def _train(run, r, run_dir, dog, ledger, change) -> bool:
  peak = metrics_lib.peak_flops()
  saved = checkpoint_lib.Checkpoints(run_dir / "checkpoints", r.identity, keep=run.train.keep,
                                     keep_every=run.train.keep_every,
                                     keep_best=run.train.keep_best)
  ledger.enter("restore")
  with processes.computing():
    state, happened = _restore_or_init(run, r, saved, change)
  first = int(state.step)
  r.loader.recall(run_dir / directory.COUNTED)
  r.loader.reach(events.first_row(happened, first, run.data.rows))
  writer = metrics_lib.Writer(run_dir, first) if jax.process_index() == 0 else None
  log.info("starting at step %d: %.2fM parameters, mesh %s, %s", first,
           state_lib.parameter_count(state.model) / 1e6,
           dict(jax.sharding.get_mesh().shape), r.loader.stats())
  closing = [saved.close, *([writer.close] if writer is not None else [])]
  try:
    done = _Steps(run, r, saved, writer, run_dir, peak, dog, ledger, happened).run(state, first)
  except BaseException:
    for close in closing:
      with contextlib.suppress(OSError, exits.Again):  # it would hide what happened first
        close()
    raise
  for close in closing:
    close()
  return done


class _Steps:
  """All steps; metrics of a step are fetched after the next one is on its way."""

  def __init__(self, run, r, saved, writer, run_dir, peak, dog, ledger, happened):
    self._run, self._r, self._saved, self._writer = run, r, saved, writer
    self._run_dir, self._dog, self._ledger = run_dir, dog, ledger
    self._events: list[events.Event] = happened
    self._heldout: tuple[int, float] | None = None  # step and loss of the last evaluation
    self._step: Any = step_lib.make_train_step(run)
    self._line = line_lib.Line(run, r.vocab, r.tokenizers, writer, peak)
    self._preemption = preemption_lib.Preemption()

  def run(self, state: state_lib.TrainState, first: int) -> bool:
    """Steps from the first one on; whether to the last."""
    last, done = self._run.train.steps, first
    self._ledger.begin(first)
    while True:
      state, done = self._stretch(state, done)
      self._line.flush()
      if not self._astray():
        break
      state, done = self._go_back(done)
      self._ledger.at(done)
    self._ledger.enter("end")
    if done > first:
      self._save(done, state)
    if done < last:
      log.info("stopped on request after step %d of %d; the same command goes on", done, last)
      return False
    # One program for the whole run: anything else is a step that was compiled twice.
    assert first == last or self._step._cache_size() == 1, self._step._cache_size()
    if first < last:
      self._sample(state, last)
    return True

  def _astray(self) -> bool:
    return self._line.skipped >= self._run.optim.skips

  def _stretch(self, state: state_lib.TrainState, first: int
               ) -> tuple[state_lib.TrainState, int]:
    """Steps to the end of the run, or until asked to stop, or until too many changed nothing."""
    run, last, done = self._run, self._run.train.steps, first
    row = events.first_row(self._events, first, run.data.rows)
    batches = ahead_lib.Ahead(self._r.loader.iterate(first, last, row))
    try:
      stopped = False
      while done < last and not stopped and not self._astray():
        self._dog.alive(f"waiting for the data of step {done + 1}")
        self._ledger.enter("data")
        batch = batches.next(self._preemption)
        if batch is None:  # asked to stop meanwhile
          break
        compiles = not self._step._cache_size()
        self._dog.alive(f"step {done + 1}" + (", which is compiled" if compiles else ""))
        self._ledger.enter("compile" if compiles else "step")
        flops = metrics_lib.model_flops(run.model, self._r.vocab, batch)
        placed = sharding.place(batch, run.data.rows)
        with processes.computing(), jax.transfer_guard("disallow"):
          state, metrics = self._step(state, placed)
        self._ledger.enter("step")
        self._line.dispatched(done, metrics, batch, flops, batches.waited)
        done += 1
        self._ledger.at(done)
        with processes.computing():  # of held-out losses, fingerprints
          stopped = self._between(state, done)
      return state, done
    except BaseException as error:
      if isinstance(error, KeyboardInterrupt):
        log.info("interrupted after step %d; run the same command again to go on", done)
      # On an error inside a step the donated state is gone, and there is nothing to save. Several
      # processes would have to be at the same step, which nobody knows.
      if jax.process_count() == 1 and done > first and not _deleted(state):
        self._line.flush()
        self._save(done, state)
      raise
    finally:
      batches.close()

  def _go_back(self, done: int) -> tuple[state_lib.TrainState, int]:
    """To the newest checkpoint, leaving out the data from there to here (as PaLM, 2022)."""
    self._dog.alive("going back to the newest checkpoint")
    self._ledger.enter("restore")
    self._saved.wait()
    step = self._saved.latest
    before = [e["step"] for e in self._events if e["kind"] == "went back"]
    if step is None or before.count(step) >= _TRIES:
      raise exits.Never(
        f"the last {self._run.optim.skips} steps before {done + 1} changed nothing, for their "
        f"gradients are too large or not finite, and going back to step {step} "
        f"{before.count(step)} times did not help; lower optim.peak_lr or raise optim.warmup_steps "
        "in a new run directory.")
    with processes.computing():
      state, _ = _restore_or_init(self._run, self._r, self._saved, True)
    self._events.append(events.went_back(self._events, step, done, self._run.data.rows))
    log.warning("%d steps in a row changed nothing: back from step %d to %d, leaving out the data "
                "between them", self._run.optim.skips, done, step)
    self._line.forget()
    if self._writer is not None:
      self._writer.go_back(step)
    return state, step

  def _between(self, state: state_lib.TrainState, done: int) -> bool:
    """Whatever is due after a step; whether to stop."""
    run, line = self._run, self._line
    self._saved.poll()
    if run.eval.every and (done % run.eval.every == 0 or done == run.train.steps):
      line.flush()
      self._ledger.enter("eval")
      values = _evaluate(run, self._r, state, self._preemption, self._dog)
      if self._writer is not None and values is not None:
        self._writer.write_eval(done, values)
      self._heldout = (done, values["eval/loss"]) if values is not None else None
      line.restart()
    if run.train.replicas_every and done % run.train.replicas_every == 0:
      self._dog.alive(f"comparing replicas after step {done}")
      replicas.check(state)
    last = done == run.train.steps  # after it samples are made anyhow
    if run.train.sample_every and done % run.train.sample_every == 0 and not last:
      line.flush()
      self._sample(state, done)
      line.restart()
    if done % run.train.save_every == 0 and done < run.train.steps:
      line.flush()
      if not line.skipped:  # else it may be what to go back from
        self._ledger.enter("save")
        self._dog.alive(f"saving step {done}")
        self._begin_save(done, state)
      line.restart()
    return self._preemption.reached()

  def _save(self, done: int, state: state_lib.TrainState) -> None:
    """Saves a step, if it isn't, and waits for it."""
    self._dog.alive(f"saving step {done}")
    self._ledger.enter("save")
    with processes.computing():
      self._saved.wait()
      if self._saved.latest != done:
        self._begin_save(done, state)
      self._saved.wait()

  def _begin_save(self, done: int, state: state_lib.TrainState) -> None:
    if self._run.train.replicas_every:
      replicas.check(state)
    if jax.process_index() == 0:
      self._r.loader.keep(self._run_dir / directory.COUNTED)
    loss = self._heldout[1] if self._heldout is not None and self._heldout[0] == done else None
    self._saved.save(done, state.model, _rest(state), self._events, loss)

  def _sample(self, state: state_lib.TrainState, done: int) -> None:
    if jax.process_count() > 1:
      log.info("samples are written by jobs of one process; `omnijax generate` makes some")
      return
    self._dog.alive(f"writing samples of step {done}")
    self._ledger.enter("sample")
    model = optim.averaged(state.model, state.opt_state)
    assert self._writer is not None
    samples_lib.write(self._run, self._r.vocab, self._r.tokenizers, model, done, self._run_dir,
                      self._writer.board)


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
  with jax.set_mesh(sharding.make_mesh(run.mesh)):
    r = _resolve(run)
    like = state_lib.abstract(run, r.vocab)
    model = checkpoint_lib.read_arrays(run_dir / "checkpoints", step, "model", like.model)
    rest = checkpoint_lib.read_arrays(run_dir / "checkpoints", step, "training", _rest(like))
    state = state_lib.TrainState(rest["step"], model, rest["opt_state"])
    return {"step": step, **(_evaluate(run, r, state) or {})}


def _resolve(run: config_lib.Run) -> _Resolved:
  tokenizers = tokenizers_lib.load_all(run.tokenizers)
  vocab = tokenizers_lib.vocab_of(tokenizers, run.tokenizers)
  prints = {k: t.fingerprint for k, t in tokenizers._asdict().items()}
  loader = loader_lib.Loader(run.data, vocab, seed=run.train.seed, tokenizers=prints,
                             mine=sharding.rows_here(run.data.rows),
                             encode=tokenizers.text.encode)
  identity = checkpoint_lib.Identity(run=run, vocab=vocab, data=loader.fingerprint,
                                     tokenizers=prints)
  return _Resolved(tokenizers, vocab, loader, identity)


def _rest(state: state_lib.TrainState) -> dict[str, Any]:
  return {"step": state.step, "opt_state": state.opt_state}


def _restore_or_init(run, r, saved, change) -> tuple[state_lib.TrainState, list[events.Event]]:
  like = state_lib.abstract(run, r.vocab)
  found = saved.restore(like.model, _rest(like))
  if found is None:
    vectors = tokenizers_lib.vectors_of(r.tokenizers, r.vocab)
    return state_lib.init(run, r.vocab, vectors=vectors), []
  state = state_lib.TrainState(found.training["step"], found.model, found.training["opt_state"])
  happened, step = found.events, int(state.step)
  new = events.changed(happened, step, found.identity.run, run,
                       (found.identity.data, r.identity.data))
  if new is not None and "records" in new["settings"] and not change:
    raise ValueError(f"the records of {', '.join(run.data.sources)} are not those that step "
                     f"{step} was saved with; prepare them as they were, use a new --run-dir, or "
                     "--change to go on with them.")
  if new is not None:
    log.warning("from step %d on other settings: %s", step, ", ".join(
      f"{k} {was!r} -> {now!r}" for k, (was, now) in new["settings"].items()))
    happened = [*happened, new]
  return state, happened


def _deleted(state: state_lib.TrainState) -> bool:
  return any(x.is_deleted() for x in jax.tree.leaves(state))


def _evaluate(run, r, state, preemption=None, dog=None) -> dict[str, Any] | None:
  """Mean held-out losses over run.eval.batches, weighted by targets; None if asked to stop."""
  eval_fn = step_lib.make_eval_step(run)
  held = loader_lib.Loader.heldout(run.data, r.vocab, seed=0, tokenizers=r.identity.tokenizers,
                                   mine=sharding.rows_here(run.data.rows),
                                   encode=r.tokenizers.text.encode)
  total: Any = None
  for i, batch in enumerate(held.iterate(0, min(run.eval.batches, held.steps))):
    if dog is not None:
      dog.alive(f"batch {i + 1} of evaluation")
    with processes.computing():
      one = jax.device_get(eval_fn(state, sharding.place(batch, run.data.rows)))
    total = one if total is None else jax.tree.map(np.add, total, one)
    if preemption is not None and preemption.reached():
      return None
  values: dict[str, Any] = {"eval/loss": loss_lib.mean(total["sums"], total["dens"], run.loss)}
  values |= metrics_lib.losses(total["sums"], total["dens"], "eval/loss/")
  values |= metrics_lib.by_source(total["sums"], total["dens"], run.data.heldout, "eval/loss/")
  return values | line_lib.physical(r.vocab, r.tokenizers, values, None, "eval/loss/")
