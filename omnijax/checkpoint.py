"""Checkpoints: the training state, the resolved config, fingerprints and the data position.

One orbax checkpoint per step holds two trees of named arrays, "model" and "training" (step and
optimizer), so that a reader of the model never touches the rest. A checkpoint is whole or
invisible: orbax renames it into place when everything is written.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from omnijax import config as config_lib
from omnijax import sharding
from omnijax import vocab as vocab_lib
from omnijax.model.transformer import Omni
from omnijax.tokenizers import load as tokenizers_lib
from omnijax.tokenizers.load import Tokenizers
from omnijax.train import optim
from omnijax.train import state as state_lib

FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
  """What a checkpoint means: restoring under another identity raises."""

  run: config_lib.Run
  vocab: vocab_lib.Vocab
  tokenizers: dict[str, str]  # fingerprints of the text, image and audio tokenizers
  data: str  # fingerprint of the training records

  def to_json(self) -> dict[str, Any]:
    return {"format": FORMAT, "config": json.loads(config_lib.to_json(self.run)),
            "vocab": dataclasses.asdict(self.vocab), "tokenizers": self.tokenizers,
            "data": self.data}


def _name(path: tuple[Any, ...]) -> str:
  keys = [str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in path]
  return ".".join(k for k in keys if k != "value")


def named(tree: Any) -> dict[str, Any]:
  """The arrays of any pytree by dotted path, a flat dict that outlives its classes."""
  return {_name(path): leaf for path, leaf in jax.tree.flatten_with_path(tree)[0]}


def unnamed(arrays: dict[str, Any], like: Any) -> Any:
  """Puts `named` arrays back into a tree of the structure of `like`."""
  paths, treedef = jax.tree.flatten_with_path(like)
  return jax.tree.unflatten(treedef, [arrays[_name(path)] for path, _ in paths])


class Checkpoints:
  """The checkpoints of one run directory, written by its trainer.

  Raises (constructor):
    ValueError: the newest checkpoint is of another vocabulary, model or tokenizer.
  """

  def __init__(self, directory: Path, identity: Identity, *, keep: int):
    self._identity = identity
    self._orbax = ocp.training.Checkpointer(
      directory.absolute(), cleanup_tmp_directories=True,
      preservation_policy=ocp.training.preservation_policies.LatestN(keep))
    self._pending = None
    latest = self._orbax.latest
    if latest is not None:
      _check_identity(identity, self._metadata(latest.step), directory / str(latest.step))

  @property
  def latest(self) -> int | None:
    """Step of the newest whole checkpoint."""
    return self._orbax.latest.step if self._orbax.latest is not None else None

  def save(self, step: int, model: Any, training: Any) -> None:
    """Copies the state to the host and writes it in the background.

    Raises:
      RuntimeError: the save before this one failed.
    """
    self.wait()
    self._pending = self._orbax.save_checkpointables_async(
      step, {"model": named(model), "training": named(training)},
      custom_metadata=self._identity.to_json())

  def wait(self) -> None:
    """Waits for the save in flight, if any, and raises what it raised."""
    if self._pending is not None:
      pending, self._pending = self._pending, None
      pending.result()

  def restore(self, model: Any, training: Any) -> tuple[Any, Any]:
    """The newest checkpoint, in the shapes, types and shardings of the given (abstract) trees.

    Raises:
      ValueError: a parameter is missing, left over, or of another shape or type.
    """
    step = self.latest
    want = {"model": named(model), "training": named(training)}
    have = self._orbax.checkpointables_metadata(step).metadata
    for part, arrays in want.items():
      _check_arrays(arrays, have[part], f"checkpoint {step}, {part}")
    got = self._orbax.load_checkpointables(step, want)
    return unnamed(got["model"], model), unnamed(got["training"], training)

  def close(self) -> None:
    """Waits for everything in flight and lets go of the directory."""
    self.wait()
    self._orbax.close()

  def _metadata(self, step: int) -> dict[str, Any]:
    return self._orbax.checkpointables_metadata(step).custom_metadata or {}


def _check_identity(mine: Identity, theirs: dict[str, Any], where: Path) -> None:
  if theirs.get("format") != FORMAT:
    raise ValueError(f"{where} has checkpoint format {theirs.get('format')}; this version reads "
                     f"format {FORMAT}: use the omnijax that wrote it.")
  ours = mine.to_json()
  for what, got, want in (
      ("vocabulary", theirs["vocab"], ours["vocab"]),
      ("tokenizers", theirs["tokenizers"], ours["tokenizers"]),
      ("model", theirs["config"]["model"], ours["config"]["model"])):
    if got != want:
      differ = {k: (got.get(k), want.get(k)) for k in sorted({*got, *want})
                if got.get(k) != want.get(k)}
      raise ValueError(f"{where} has another {what}: (checkpoint, this run) differ in {differ}; "
                       "use another --run-dir, or the experiment that wrote it.")


def _check_arrays(want: dict[str, Any], have: dict[str, Any], where: str) -> None:
  if set(want) != set(have):
    raise ValueError(f"{where}: missing {sorted(set(want) - set(have))[:5]}, left over "
                     f"{sorted(set(have) - set(want))[:5]}; the optimizer or model changed.")
  for name, array in want.items():
    got = (tuple(have[name].shape), str(have[name].dtype))
    if got != (tuple(array.shape), str(array.dtype)):
      raise ValueError(f"{where}: {name} is {got[1]}{list(got[0])} on disk and "
                       f"{array.dtype}{list(array.shape)} in this run; use its experiment.")


def read_identity(directory: Path) -> tuple[int, Identity]:
  """Step and identity of the newest checkpoint in a run's `checkpoints` directory.

  A reader: it opens nothing for writing and deletes nothing.

  Raises:
    FileNotFoundError: there is no whole checkpoint.
  """
  steps = sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit())
  if not steps:
    raise FileNotFoundError(f"no checkpoint in {directory}; train the run first, or name "
                            "another run directory.")
  found = ocp.checkpointables_metadata(directory.absolute() / str(steps[-1])).custom_metadata
  if not found or found.get("format") != FORMAT:
    raise ValueError(f"{directory / str(steps[-1])} has checkpoint format "
                     f"{(found or {}).get('format')}; this version reads format {FORMAT}.")
  return steps[-1], Identity(
    run=config_lib.from_json(json.dumps(found["config"])),
    vocab=vocab_lib.Vocab(**found["vocab"]), tokenizers=found["tokenizers"],
    data=found["data"])


def read_arrays(directory: Path, step: int, part: str, like: Any) -> Any:
  """One part ("model" or "training") of a checkpoint in the shardings of `like`; a reader."""
  path = directory.absolute() / str(step)
  got = ocp.load_checkpointables(path, {part: named(like)})
  return unnamed(got[part], like)


def load_for_inference(run_dir: Path) -> tuple[config_lib.Run, vocab_lib.Vocab, Omni, Tokenizers]:
  """The newest checkpoint's model on one device, averaged if the run kept an average.

  Raises:
    FileNotFoundError: there is no checkpoint.
    ValueError: the tokenizers are not those that the model was trained with.
  """
  step, identity = read_identity(run_dir / "checkpoints")
  run, vocab = identity.run, identity.vocab
  tokenizers = tokenizers_lib.load_all(run.tokenizers)
  for name, tokenizer in tokenizers._asdict().items():
    if tokenizer.fingerprint != identity.tokenizers[name]:
      raise ValueError(f"{run_dir} was trained with the {name} tokenizer "
                       f"{identity.tokenizers[name]}, and the one at hand is "
                       f"{tokenizer.fingerprint}; put the old one back, or train again.")
  with jax.set_mesh(sharding.make_mesh(config_lib.Mesh(data=1, fsdp=1))):
    like = state_lib.abstract(run, vocab)
    model = read_arrays(run_dir / "checkpoints", step, "model", like.model)
    if run.optim.ema:
      rest = {"step": like.step, "opt_state": like.opt_state}
      rest = read_arrays(run_dir / "checkpoints", step, "training", rest)
      model = optim.averaged(model, rest["opt_state"])
  return run, vocab, model, tokenizers
