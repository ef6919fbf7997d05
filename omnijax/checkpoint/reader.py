"""Reads checkpoints for evaluation, generation and people; opens nothing for writing."""

import logging
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from omnijax import config as config_lib
from omnijax import sharding
from omnijax import vocab as vocab_lib
from omnijax.checkpoint import arrays as arrays_lib
from omnijax.checkpoint import identity as identity_lib
from omnijax.checkpoint import manifest
from omnijax.checkpoint.identity import Identity
from omnijax.job.saved import steps
from omnijax.model.transformer import Omni
from omnijax.tokenizers import load as tokenizers_lib
from omnijax.tokenizers.load import Tokenizers
from omnijax.train import optim
from omnijax.train import state as state_lib

_log = logging.getLogger("omnijax")


def read_identity(directory: Path) -> tuple[int, Identity]:
  """Step and identity of the newest undamaged checkpoint in a run's `checkpoints` directory.

  Raises:
    FileNotFoundError: there is no whole checkpoint.
    ValueError: all are damaged, or the newest is of another format.
  """
  found = steps(directory)
  if not found:
    raise FileNotFoundError(f"no checkpoint in {directory}; train the run first, or name "
                            "another run directory.")
  for step in reversed(found):
    path = directory / str(step)
    wrong = manifest.problems(path)
    metadata = None if wrong else identity_lib.read(path)
    if metadata is not None:
      return step, identity_lib.parse(metadata, path)
    _log.warning("checkpoint %s is damaged, an older one is read: %s", path,
                 "; ".join(wrong[:3]) or "its metadata can't be read")
  raise ValueError(f"all checkpoints in {directory} are damaged; `omnijax checkpoint verify` says "
                   "how. Restore them from a copy, or name another run directory.")


def read_arrays(directory: Path, step: int, part: str, like: Any) -> Any:
  """One part ("model" or "training") of a checkpoint in the shardings of `like`.

  Raises:
    ValueError: its arrays are not those of `like`, or other bits than were saved.
  """
  path = directory.absolute() / str(step)
  want = arrays_lib.named(like)
  have = ocp.checkpointables_metadata(path)
  if differ := arrays_lib.differences(want, have.metadata[part]):
    raise ValueError(f"{path}, {part}: {'; '.join(differ[:5])}; read it with the omnijax and the "
                     "experiment that wrote it.")
  got = ocp.load_checkpointables(path, {part: want})[part]
  prints = arrays_lib.fingerprints(got)
  saved = (have.custom_metadata or {})["fingerprints"][part]
  if wrong := [name for name in want if prints[name] != saved.get(name)]:
    raise ValueError(f"{path} is damaged: {', '.join(wrong[:5])} have other bits than were saved; "
                     "restore it from a copy.")
  return arrays_lib.unnamed(got, like)


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
