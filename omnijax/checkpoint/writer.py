"""The checkpoints of a run, as its trainer writes them and goes on from them.

One orbax checkpoint per step holds two trees of named arrays, "model" and "training" (step and
optimizer), so that a reader of the model never touches the rest. A checkpoint is whole or
invisible: orbax renames it into place when everything is written. Beside that it has a fingerprint
of each array's bits, and a list of its files with their checksums: orbax notices neither a bit that
flips nor a type that differs.
"""

import logging
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from omnijax.checkpoint import arrays as arrays_lib
from omnijax.checkpoint import identity as identity_lib
from omnijax.checkpoint import manifest
from omnijax.checkpoint.identity import Identity
from omnijax.job import exits, processes

_COMMIT_S = 120  # for a directory to appear everywhere after it is whole
_log = logging.getLogger("omnijax")


class _Other(ValueError):
  """A whole checkpoint of something else."""


class Restored(NamedTuple):
  """What a checkpoint had."""

  model: Any
  training: Any
  events: list[dict[str, Any]]  # of the run, until then
  identity: Identity  # of the run, then


class Checkpoints:
  """The checkpoints of one run directory, written by its trainer; every process makes one.

  Args:
    directory: of the checkpoints; bad ones are moved to `quarantine` beside it.
    identity: of the run.
    keep: how many of the newest stay.
    keep_every: those of every so many steps stay for ever; 0 is none.
    keep_best: how many stay of those with the lowest held-out loss.
  """

  def __init__(self, directory: Path, identity: Identity, *, keep: int, keep_every: int = 0,
               keep_best: int = 0):
    self._directory, self._identity = directory.absolute(), identity
    policies = ocp.training.preservation_policies
    kept = [policies.LatestN(keep), *([policies.EveryNSteps(keep_every)] if keep_every else [])]
    if keep_best:
      kept.append(policies.BestN(get_metric_fn=lambda metrics: -metrics["loss"], n=keep_best,
                                 keep_checkpoints_without_metrics=False))
    self._orbax = ocp.training.Checkpointer(
      self._directory, cleanup_tmp_directories=True,
      preservation_policy=policies.AnyPreservationPolicy(kept))
    self._saving: _Saving | None = None

  @property
  def steps(self) -> list[int]:
    """Of the whole checkpoints, in order."""
    return [c.step for c in self._orbax.checkpoints]

  @property
  def latest(self) -> int | None:
    """Step of the newest whole checkpoint."""
    return self.steps[-1] if self.steps else None

  def save(self, step: int, model: Any, training: Any, events: Sequence[dict[str, Any]] = (),
           loss: float | None = None) -> None:
    """Copies the state to the host and writes it in the background.

    Args:
      step: finished steps.
      model, training: trees of arrays.
      events: what happened to the run so far that its future depends on.
      loss: held-out, of this step, if it is known.

    Raises:
      Again: the save before this one failed.
    """
    begun = time.perf_counter()
    self.wait()
    trees = {"model": arrays_lib.named(model), "training": arrays_lib.named(training)}
    prints = {part: arrays_lib.fingerprints(arrays) for part, arrays in trees.items()}
    try:
      response = self._orbax.save_checkpointables_async(
        step, trees, metrics=None if loss is None else {"loss": loss}, custom_metadata={
          **self._identity.to_json(), "fingerprints": prints, "events": list(events)})
    except Exception as error:
      raise exits.Again(_failed(step, error)) from error
    self._saving = _Saving(step, self._directory / str(step), response)
    _log.info("checkpoint %d: training stood still for %.2f s; the rest is written beside it", step,
              time.perf_counter() - begun)

  def poll(self) -> None:
    """Raises Again if the save in flight has failed."""
    if self._saving is not None and self._saving.done():
      self.wait()

  def wait(self) -> None:
    """Waits for the save in flight, if any, and raises Again if it failed."""
    if self._saving is not None:
      saving, self._saving = self._saving, None
      saving.finish()

  def restore(self, model: Any, training: Any) -> Restored | None:
    """The newest good checkpoint, in the shapes, types and shardings of the given trees.

    Damaged ones are moved to quarantine, as all processes agree, and the next older one is taken.

    Returns:
      What was saved; None if there is no checkpoint at all.

    Raises:
      ValueError: it is of another format, vocabulary, model or tokenizer, or a parameter is
        missing, left over, or of another shape or type.
      Never: there are checkpoints, and none is good.
    """
    want = {"model": arrays_lib.named(model), "training": arrays_lib.named(training)}
    bad: list[str] = []
    for step in reversed(self.steps):
      why, got, found = self._try(step, want)
      if not why:
        assert got is not None and found is not None
        return Restored(arrays_lib.unnamed(got["model"], model),
                        arrays_lib.unnamed(got["training"], training), found["events"],
                        identity_lib.parse(found, self._directory / str(step)))
      bad.append(f"{step} ({why})")
      self._quarantine(step, why)
    if bad or any((self._directory.parent / "quarantine").glob("*")):
      raise exits.Never(
        f"no checkpoint in {self._directory} is good: "
        f"{'; '.join(bad) or 'all are in quarantine'}. To begin again from nothing, use another "
        f"--run-dir or remove {self._directory} and {self._directory.parent / 'quarantine'}.")
    return None

  def _try(self, step: int, want: dict[str, Any]
           ) -> tuple[str, dict[str, Any] | None, dict[str, Any] | None]:
    """Why a step is no good, or its arrays and metadata."""
    path = self._directory / str(step)
    index, count = jax.process_index(), jax.process_count()
    # Before anyone loads: whom a load fails waits for the others, and they for it.
    why = "; ".join(manifest.problems(path, index, count)[:3])
    found = None if why else identity_lib.read(path)
    if not why and found is None:
      why = "its metadata can't be read"
    if not processes.agree(not why):
      return why or "another process found it damaged", None, None
    assert found is not None
    identity_lib.check(self._identity, found, path)
    got = None
    try:
      got = self._load(step, want)
    except _Other:
      raise
    except Exception as error:
      why = f"orbax can't read it: {_cause(error)}"
      if count > 1:  # the others are within the load and can't be asked
        self._quarantine(step, why, alone=True)
        raise exits.Again(f"checkpoint {step} can't be loaded here ({why}) and is put aside") from (
          error)
    if not why:
      assert got is not None
      prints = {part: arrays_lib.fingerprints(arrays) for part, arrays in got.items()}
      wrong = [name for part, names in found["fingerprints"].items() for name, print_ in
               names.items() if prints[part].get(name) != print_]
      why = f"other bits than were saved in {', '.join(wrong[:3])}" if wrong else ""
    if not processes.agree(not why):
      return why or "another process found it damaged", None, None
    return "", got, found

  def _load(self, step: int, want: dict[str, Any]) -> dict[str, Any]:
    have = self._orbax.checkpointables_metadata(step).metadata
    for part, arrays in want.items():
      if differ := arrays_lib.differences(arrays, have[part]):
        raise _Other(f"checkpoint {step}, {part}: {'; '.join(differ[:5])}; the optimizer, the "
                     "model or their types changed: use the experiment that wrote it.")
    return self._orbax.load_checkpointables(step, want)

  def _quarantine(self, step: int, why: str, *, alone: bool = False) -> None:
    """Moves a step out of the way; nothing of it is lost."""
    source, place = self._directory / str(step), self._directory.parent / "quarantine"
    if alone or jax.process_index() == 0:
      _log.warning("checkpoint %d is damaged: %s; it is now in %s", step, why, place)
      place.mkdir(exist_ok=True)
      taken = len(list(place.glob(f"{step}*")))
      source.rename(place / (f"{step}.{taken}" if taken else str(step)))
    if not alone:
      processes.agree(True)  # nobody looks before it is gone
      self._orbax.reload()

  def close(self) -> None:
    """Waits for everything in flight and lets go of the directory."""
    try:
      self.wait()
    finally:
      self._orbax.close()


class _Saving:
  """A save in flight: a thread that waits for it and then lists its files."""

  def __init__(self, step: int, path: Path, response: Any):
    self._step, self._path, self._response = step, path, response
    self._index, self._count = jax.process_index(), jax.process_count()
    self._error: Exception | None = None
    self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
    self._thread.start()

  def _run(self) -> None:
    try:
      self._response.result()
      for _ in range(int(_COMMIT_S / 0.05)):
        if self._path.is_dir():
          break
        time.sleep(0.05)
      manifest.write(self._path, self._index, self._count)
    except Exception as error:
      self._error = error

  def done(self) -> bool:
    return not self._thread.is_alive()

  def finish(self) -> None:
    self._thread.join()
    if self._error is not None:
      if self._index == 0:  # what was written of it keeps a full disk full
        for part in self._path.parent.glob(f"{self._step}.orbax-checkpoint-tmp*"):
          shutil.rmtree(part, ignore_errors=True)
      raise exits.Again(_failed(self._step, self._error)) from self._error


def _failed(step: int, error: Exception) -> str:
  return (f"saving step {step} failed: {_cause(error)}; what was saved before is untouched, and "
          "the same command goes on from there")


def _cause(error: BaseException) -> str:
  """The innermost message: orbax wraps each in others that say less."""
  while error.__cause__ is not None:
    error = error.__cause__
  return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
