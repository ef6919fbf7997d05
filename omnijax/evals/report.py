"""The quickstart's report: report.json for programs, and one self-contained report.html.

`Material` is everything that the page shows, already computed; nothing here trains or generates.
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from omnijax import vocab as vocab_lib
from omnijax.evals import directions as directions_lib
from omnijax.evals import report_html


class Picture(NamedTuple):
  """A picture and what its codes keep of it, uint8 [H, W, C]."""

  label: str
  original: np.ndarray
  decoded: np.ndarray


class Sound(NamedTuple):
  """A sound and what its codes keep of it, float [T]."""

  label: str
  original: np.ndarray
  decoded: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Material:
  """All that a report shows.

  judges, tokenizers, train, stages: go into report.json as they are.
  metrics: lines of metrics.jsonl.
  answers: by direction; their files are relative to `answers_dir`.
  batch: one packed batch of training, with its `vocab` and the text `piece` of an id.
  image_use, audio_use: how often each code occurs in the records: [codes], [Q, codes].
  sources: Markdown about where the data come from.
  """

  title: str
  judges: Mapping[str, Any]
  tokenizers: Mapping[str, Any]
  train: Mapping[str, Any]
  stages: Mapping[str, float]
  metrics: Sequence[Mapping[str, Any]]
  answers: Mapping[str, Sequence[directions_lib.Answer]]
  answers_dir: Path
  rate: int
  batch: Mapping[str, np.ndarray]
  vocab: vocab_lib.Vocab
  piece: Callable[[int], str]
  image_use: np.ndarray
  audio_use: np.ndarray
  pictures: Sequence[Picture]
  sounds: Sequence[Sound]
  sources: str


def summary(material: Material) -> dict[str, Any]:
  """What report.json holds; see the README for its fields."""
  return {
    "directions": {k: directions_lib.score(v) for k, v in material.answers.items()},
    "judges": material.judges,
    "tokenizers": material.tokenizers,
    "train": material.train,
    "stages": material.stages,
  }


def write(material: Material, out: Path) -> dict[str, Any]:
  """Writes report.json and report.html into a directory, each whole or not at all."""
  values = summary(material)
  _replace(out / "report.html", report_html.page(material, values))
  _replace(out / "report.json", json.dumps(values, indent=1, ensure_ascii=False) + "\n")
  return values


def learning(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Typical speed of training, from its lines: medians, so that pauses don't count."""
  steps = [m for m in metrics if "step_s" in m]
  # The first step of every start compiles; the median passes over it.
  middle = lambda key: statistics.median(m[key] for m in steps)
  seconds = sum(m["step_s"] for m in steps)
  return {"tokens_per_s": middle("tokens_per_s"), "mfu": middle("mfu"),
          "step_s": middle("step_s"),
          "data_wait": sum(m["data_wait_s"] for m in steps[1:]) / max(seconds, 1e-9)}


def _replace(path: Path, text: str) -> None:
  part = path.with_suffix(".part")
  part.write_text(text, "utf-8")
  part.replace(path)
