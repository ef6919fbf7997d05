"""The batch of a step of training as a page: what it is made of, read back from its arrays.

The batch is that of `Loader.iterate`, from the row of the plan that `events.first_row` tells: what
training calls, and as training calls it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnijax import config as config_lib
from omnijax import experiment as experiment_lib
from omnijax import vocab as vocab_lib
from omnijax.checkpoint import identity as identity_lib
from omnijax.data import loader as loader_lib
from omnijax.evals import media as media_lib
from omnijax.evals import segments, show_html
from omnijax.job import saved
from omnijax.tokenizers import load as tokenizers_lib
from omnijax.train import directory
from omnijax.train import events as events_lib

ROWS = 4  # shown, if nothing else is said


@dataclasses.dataclass(frozen=True)
class Document:
  """One document of a row: what the plan says of it, and what is in the arrays."""

  placed: loader_lib.Placed
  pieces: list[segments.Piece]


@dataclasses.dataclass(frozen=True)
class Shown:
  """All that a page shows.

  batch: the first rows of the global batch, as training gets them.
  rows: their documents.
  everything: the documents of all rows of the global batch.
  first: row of the plan that the batch begins with.
  stats: of the loader, there.
  epochs: passes over each source, from and to, of which its documents are.
  notes: what else to know about the step.
  media: pictures and sounds by `media.key` of their codes.
  rate, frame_s: of sounds: samples of a second, seconds of a frame.
  """

  run: config_lib.Run
  step: int
  first: int
  vocab: vocab_lib.Vocab
  batch: Mapping[str, np.ndarray]
  rows: list[list[Document]]
  everything: list[loader_lib.Placed]
  stats: Mapping[str, Any]
  epochs: Mapping[str, tuple[float, float]]
  notes: Sequence[str]
  media: Mapping[bytes, np.ndarray]
  rate: int
  frame_s: float
  text: Any  # tokenizer


def show(path: Path, run: config_lib.Run | None, step: int, rows: int, out: Path | None) -> Path:
  """Writes the page of a step and tells where it is.

  Args:
    path: of the experiment, or the directory of a run.
    run: of the experiment; None for the directory of a run.
    step: from 0, as in metrics.jsonl.
    rows: of the global batch, at most so many.
    out: the page; by default it is in the current directory, named after run and step.

  Raises:
    ValueError: no such run, step or records.
  """
  if step < 0 or rows < 1:
    raise ValueError(f"--step is {step} and --rows {rows}; wanted a step from 0 on, and at least "
                     "one row.")
  past = Past()
  if run is None:
    run, past = of_run(path, step)
  tokenizers = tokenizers_lib.load_all(run.tokenizers)
  vocab = tokenizers_lib.vocab_of(tokenizers, run.tokenizers)
  shown = collect(run, step, rows, tokenizers, vocab, past)
  out = Path(f"{run.name}_step_{step}.html") if out is None else out
  part = out.with_suffix(".part")
  try:
    part.write_text(show_html.page(shown), "utf-8")
    part.replace(out)
  except OSError as error:
    raise ValueError(f"{out} can't be written ({error.strerror}); name another file with --out."
                     ) from error
  print(f"{out}: step {step} of {run.name}, rows 0 to {len(shown.rows) - 1} of {run.data.rows}, "
        f"{sum(map(len, shown.rows))} documents; open it in a browser.")
  return out


@dataclasses.dataclass(frozen=True)
class Past:
  """What the directory of a run tells of a step.

  events: of the run, until then.
  data: fingerprint that the data had, if known.
  counted: where the run keeps what it knows of the plan.
  notes: for the page.
  """

  events: Sequence[events_lib.Event] = ()
  data: str = ""
  counted: Path | None = None
  notes: Sequence[str] = ()


def of_run(run_dir: Path, step: int) -> tuple[config_lib.Run, Past]:
  """The settings of a run as they were at a step, and what happened to it until then.

  What happened is saved with checkpoints: what the newest doesn't know yet is unknown here, too.
  """
  path = run_dir / "config.json"
  if not path.is_file():
    raise ValueError(f"{run_dir} is no run: there is no {path.name}; name a directory that "
                     "`omnijax train --run-dir` wrote, or an experiment file.")
  run, notes = experiment_lib.load(path), list[str]()
  happened, identity = list[events_lib.Event](), None
  for saved_step in reversed(saved.steps(run_dir / "checkpoints")):
    where = run_dir / "checkpoints" / str(saved_step)
    found = identity_lib.read(where)
    if found is not None:
      identity, happened = identity_lib.parse(found, where), list(found["events"])
      # What the run has changed since is no event before it is saved, but will be one.
      new = events_lib.changed(happened, saved_step, identity.run, run, ("", ""))
      happened += [] if new is None else [new]
      notes.append(f"What happened to the run is known up to its newest checkpoint, {saved_step}.")
      break
  until, run, same = events_lib.at(happened, step, run)
  if not same:
    raise ValueError(f"{run_dir} read other records at step {step} than it does now; they can't be "
                     "shown: choose a later step.")
  for event in until:
    told = f"from step {event['from']} to {event['step']}" if "from" in event else (
      f"at step {event['step']}: " + ", ".join(f"{k} {old} \u2192 {new}" for k, (old, new)
                                               in event["settings"].items()))
    notes.append(f"The run {event['kind']} {told}; from there on batches begin with row "
                 f"{event['row']} of the plan.")
  if step >= run.train.steps:
    notes.append(f"The run ends after step {run.train.steps - 1}: this is what would come next.")
  data = ""
  if identity is not None and not any(
      name.startswith("data.") for name in events_lib.settings(identity.run, run)):
    data = identity.data
  return run, Past(until, data, run_dir / directory.COUNTED, notes)


def collect(run: config_lib.Run, step: int, rows: int, tokenizers: Any, vocab: vocab_lib.Vocab,
            past: Past = Past()) -> Shown:
  """Everything about the batch of a step.

  Args:
    run: its settings at that step.
    step: from 0.
    rows: of the global batch, at most so many.
    tokenizers: has text, image and audio, with `decode`.
    vocab: of the model.
    past: what happened to a run until then.
  """
  # The same rows come from whatever makes them ahead, so nothing does.
  data = dataclasses.replace(run.data, workers=0, read_threads=0, prefetch=0)
  prints = {name: getattr(tokenizers, name).fingerprint for name in vocab_lib.MODALITIES}
  rows = min(rows, data.rows)
  loader = loader_lib.Loader(data, vocab, seed=run.train.seed, mine=range(rows), tokenizers=prints,
                             encode=tokenizers.text.encode)
  if past.data and past.data != loader.fingerprint:
    raise ValueError(f"the records of {', '.join(data.sources)} are not those that the run was "
                     "trained on; prepare them as they were.")
  first = events_lib.first_row(past.events, step, data.rows)
  if past.counted is not None:
    loader.recall(past.counted)
  loader.reach(first)
  (batch,) = loader.iterate(step, step + 1, first)
  placed = [loader.placed(first + i) for i in range(data.rows)]
  found = [[Document(one, segments.read(batch, row, segment, data, vocab, one.task))
            for segment, one in enumerate(placed[row], 1)] for row in range(rows)]
  audio = tokenizers.audio
  pieces = [piece for documents in found for d in documents for piece in d.pieces]
  media = media_lib.decoded([p.ids for p in pieces if p.kind == "image"],
                            [segments.audible(s, vocab) for p in pieces for s in p.sounds],
                            tokenizers)
  return Shown(run, step, first, vocab, batch, found, [p for some in placed for p in some],
               loader.stats(row=first), loader.epochs(first), past.notes, media, audio.sample_rate,
               audio.frame_size / audio.sample_rate, tokenizers.text)
