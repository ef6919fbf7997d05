"""What `omnijax tokenizer eval` does."""

import os
import sys
from pathlib import Path
from typing import Any

from omnijax.evals import codec, images, manifest, text
from omnijax.tokenizers import load


def tokenizer(kind: str, path: str, data: Path) -> dict[str, Any]:
  """What a tokenizer loses, on the entries of a manifest that are its kind's.

  Args:
    kind: text, image or audio.
    path: directory of the tokenizer, or "packaged".
    data: JSONL file.
  """
  found = load.directory(kind, path)
  if kind == "text":
    return text.evaluate(load.text.load(found), manifest.texts(data))
  if kind == "image":
    return images.evaluate(load.image.load(found), manifest.files(data, "image"))
  manifest.files(data, "audio")  # says what is wrong with it
  return codec.evaluate(load.audio.load(found), data, _recogniser())


def whisper_directory() -> Path:
  """Where the weights of whisper-base are joined: in the user's cache."""
  cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "omnijax"
  return cache / "whisper-base"


def _recogniser() -> Any:
  """Whisper-base where the extra `eval` is installed."""
  try:
    return codec.whisper(whisper_directory())
  except (ImportError, ValueError) as error:
    print(f"omnijax: no word error rate: {error}", file=sys.stderr)
    return None
