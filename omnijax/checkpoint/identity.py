"""What a checkpoint means, and whether a run may go on from it."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib

FORMAT = 3
_log = logging.getLogger("omnijax")


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


def read(step_dir: Path) -> dict[str, Any] | None:
  """What was saved beside the arrays of a checkpoint; None if it can't be read or is empty."""
  try:
    return ocp.checkpointables_metadata(step_dir.absolute()).custom_metadata or None
  except Exception as error:  # of damaged files orbax raises whatever it meets first
    _log.debug("the metadata of %s can't be read: %s", step_dir, error)
    return None


def parse(found: dict[str, Any] | None, where: Path) -> Identity:
  """The identity in a checkpoint's metadata.

  Raises:
    ValueError: it is of another format.
  """
  check_format(found, where)
  assert found is not None
  return Identity(run=config_lib.from_json(json.dumps(found["config"])),
                  vocab=vocab_lib.Vocab(**found["vocab"]), tokenizers=found["tokenizers"],
                  data=found["data"])


def check_format(found: dict[str, Any] | None, where: Path) -> None:
  """Raises ValueError for a checkpoint of another format."""
  have = (found or {}).get("format")
  if have != FORMAT:
    newer = isinstance(have, int) and have > FORMAT
    raise ValueError(f"{where} has checkpoint format {have}; this version reads format {FORMAT}: "
                     f"use {'a newer omnijax' if newer else 'the omnijax that wrote it'}.")


def check(mine: Identity, found: dict[str, Any], where: Path) -> None:
  """Raises ValueError for a checkpoint of another vocabulary, model or tokenizer."""
  check_format(found, where)
  ours = mine.to_json()
  for what, got, want in (
      ("vocabulary", found["vocab"], ours["vocab"]),
      ("tokenizers", found["tokenizers"], ours["tokenizers"]),
      ("model", found["config"]["model"], ours["config"]["model"])):
    if got != want:
      differ = {k: (got.get(k), want.get(k)) for k in sorted({*got, *want})
                if got.get(k) != want.get(k)}
      raise ValueError(f"{where} has another {what}: (checkpoint, this run) differ in {differ}; "
                       "use another --run-dir, or the experiment that wrote it.")
