"""From the files of an experiment to a trained, judged model and its report, in one call.

Stages, each of which goes on where it was: data (files and manifests), prepare (records), train,
evaluate (six directions, tokenizers), report. `stages.json` in the directory remembers what is
done, by a key of everything that decided it, and how long it took, interruptions left out.
"""

import contextlib
import dataclasses
import hashlib
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress
import rich.table

from omnijax import config as config_lib
from omnijax import experiment as experiment_lib
from omnijax import sharding
from omnijax.data import encode, loader, prepare
from omnijax.evals import directions, judges, report, tokens
from omnijax.generate import decode
from omnijax.tokenizers import load as tokenizers_lib
from omnijax.train import loop, metrics
from omnijax.train import state as state_lib

EXPERIMENT = Path("experiments/quickstart.py")
_STAGES = ("data", "prepare", "train", "evaluate", "report")
# Beside run(), what an experiment has for its quickstart.
_HOOKS = {
  "manifests": "(folder) -> None, which writes train.jsonl and heldout.jsonl there",
  "cases": "(folder) -> list[omnijax.evals.directions.Case], what is asked of the model",
  "judges": "() -> (Path, Path), of the judge of pictures and the judge of speech",
  "WORDS": "{language: words for 0 to 9}",
  "SAMPLING": "omnijax.generate.sample.Sampling",
  "GUIDANCE": "float, weight of classifier-free guidance of pictures; 1 is none",
  "ANSWERS": "int, answers to each direction",
  "SOURCES": "Path of Markdown about the sources and licences of the data",
}
_BATCH = 64  # prompts generated together
_LONGEST = 64  # positions of an answer in text or speech: 5 s, where a word takes 1
_SEED = 0  # of which cases are asked, and of the draws
_CLIPS = 100  # held-out recordings that the codec is measured on
_PICTURES = 500


def run(directory: Path, experiment: Path = EXPERIMENT) -> dict[str, Any]:
  """Runs an experiment whole, or what is left of it; returns what is in report.json.

  Args:
    directory: gets data/, records/, run/, answers/, report.html and report.json.
    experiment: a Python file with run() and the hooks above; its data sources are replaced by
      the records made here.

  Raises:
    ValueError: the experiment lacks a hook, or the directory holds another experiment.
  """
  module = _module(experiment)
  directory = Path(directory).resolve()
  stages = Stages(directory)
  data, records, run_dir = (directory / name for name in ("data", "records", "run"))
  sources = config_lib.fingerprint(hashlib.sha256(experiment.read_bytes()).hexdigest())
  with stages.stage("data", sources) as todo:
    if todo:
      data.mkdir(parents=True, exist_ok=True)
      module.manifests(data)
  settings = module.run()
  settings = dataclasses.replace(settings, data=dataclasses.replace(
    settings.data, sources=(str(records / "train"),), heldout=(str(records / "heldout"),)))
  tokenizers = tokenizers_lib.load_all(settings.tokenizers)
  with stages.stage("prepare", sources):
    for split in ("train", "heldout"):
      prepare.prepare(data / f"{split}.jsonl", records / split,
                      tokenizers=encode.Tokenizers(*tokenizers))
  key = config_lib.fingerprint(settings)
  with stages.stage("train", key) as todo:
    if todo:
      loop.train(settings, run_dir)
  with stages.stage("evaluate", key):
    material = _evaluate(module, settings, directory, tokenizers)
  took = stages.of_training(at_least=sum(m.get("step_s", 0.0) for m in material.metrics))
  material = dataclasses.replace(material, stages=stages.seconds, train=material.train | took)
  with stages.stage("report", key):
    values = report.write(material, directory)
  _show(values, directory)
  return values


def _module(path: Path) -> ModuleType:
  module = experiment_lib.module(path)
  for name, what in _HOOKS.items():
    if not hasattr(module, name):
      raise ValueError(f"{path} has no {name}; a quickstart wants {name}: {what}.")
  return module


class Stages:
  """Which stages are done, and how long each took over all the times it was begun."""

  def __init__(self, directory: Path):
    self._path = directory / "stages.json"
    try:
      directory.mkdir(parents=True, exist_ok=True)
      self._values = json.loads(self._path.read_text()) if self._path.exists() else {}
      self._write()
    except OSError as error:
      raise ValueError(f"{directory} can't be written ({error.strerror}); wanted a directory for "
                       "the quickstart: change --dir or its permissions.") from error
    self._console = rich.console.Console(stderr=True)

  @contextlib.contextmanager
  def stage(self, name: str, key: str) -> Iterator[bool]:
    """Times a stage; gives whether it is still to be done.

    A stage that was done under this key keeps its time: looking again is not part of it.
    """
    before = self._values.get(name, {})
    todo = before.get("key") != key
    number = _STAGES.index(name) + 1
    self._console.rule(f"[bold]{number}/{len(_STAGES)} {name}[/]" + ("" if todo else " (done)"),
                       align="left")
    start = time.perf_counter()
    finished = False
    try:
      yield todo
      finished = True
    finally:
      if todo:
        # Time under another key was another stage's: what was begun has no key until it is done.
        spent = before.get("seconds", 0.0) if before.get("key") is None else 0.0
        self._values[name] = {
          "key": key if finished else None, "seconds": spent + time.perf_counter() - start,
          "peak_memory_gib": max(_peak_memory_gib(), before.get("peak_memory_gib", 0.0))}
        self._write()

  @property
  def seconds(self) -> dict[str, float]:
    return {name: round(self._values[name]["seconds"], 1) for name in _STAGES
            if name in self._values}

  def of_training(self, at_least: float) -> dict[str, float]:
    """Seconds of training and peak memory.

    at_least: seconds of all steps that were kept: a process that was killed told no time.
    """
    entry = self._values["train"]
    if entry["seconds"] < at_least:
      self._values["train"] = entry = entry | {"seconds": at_least}
      self._write()
    return {"seconds": round(entry["seconds"], 1), "peak_memory_gib": entry["peak_memory_gib"]}

  def _write(self) -> None:
    part = self._path.with_suffix(".part")
    part.write_text(json.dumps(self._values, indent=1) + "\n")
    part.replace(self._path)


def _peak_memory_gib() -> float:
  """The most memory that this process has had so far."""
  unit = 1 if sys.platform == "darwin" else 1024
  return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 2)


class _Late:
  """A generator that is loaded when it is first asked: kept answers need none."""

  def __init__(self, run_dir: Path, guidance: float):
    self._run_dir, self._guidance = run_dir, guidance
    self._loaded: decode.Generator | None = None

  def generate(self, prompts: Any, *, to: Any, **options: Any) -> list[decode.Output]:
    if self._loaded is None:
      self._loaded = decode.Generator.load(self._run_dir, max_batch=_BATCH)
    return self._loaded.generate(prompts, to=to, max_new=_LONGEST, guidance=self._guidance,
                                 **options)


def _evaluate(module: ModuleType, settings: config_lib.Run, directory: Path,
              tokenizers: tokenizers_lib.Tokenizers) -> report.Material:
  """Everything that the report shows, but the times."""
  cases = module.cases(directory / "data")
  image, speech = module.judges()
  rate = tokenizers.audio.sample_rate
  board = directions.Judges(judges.load_image(image), judges.load_speech(speech), module.WORDS,
                            rate)
  chosen = directions.choose(cases, module.ANSWERS, seed=_SEED)
  out = directory / "answers" / f"step-{settings.train.steps:06d}"
  with _bar() as bar:
    def advance(name: str, n: int) -> None:
      bar.start_task(tasks[name])
      bar.advance(tasks[name], n)

    tasks = {name: bar.add_task(name, total=len(some), start=False)
             for name, some in chosen.items() if some}
    answers = directions.evaluate(
      _Late(directory / "run", module.GUIDANCE), board, chosen, out, sampling=module.SAMPLING,
      seed=_SEED, batch=min(_BATCH, module.ANSWERS), advance=advance)
  vocab = tokenizers_lib.vocab_of(tokenizers, settings.tokenizers)
  batches = loader.Loader(settings.data, vocab, seed=settings.train.seed,
                          encode=tokenizers.text.encode)
  lines = metrics.read(directory / "run")
  return report.Material(
    title=f"omnijax {settings.name}",
    judges=directions.judge_figures(board, cases),
    tokenizers=tokens.figures(tokenizers, cases, module.WORDS, settings.tokenizers.codebooks,
                              clips=_CLIPS, pictures=_PICTURES),
    train={"steps": settings.train.steps, "parameters": _parameters(settings, vocab),
           **report.learning(lines)},
    stages={}, metrics=lines, answers=answers, answers_dir=out, rate=rate,
    batch=batches.batch_at(0), vocab=vocab, piece=lambda i: tokenizers.text.decode([i]),
    **tokens.examples(tokenizers, cases, settings.tokenizers.codebooks)._asdict(),
    **tokens.use(Path(settings.data.sources[0]), vocab)._asdict(),
    sources=Path(module.SOURCES).read_text("utf-8"))


def _parameters(settings: config_lib.Run, vocab: Any) -> int:
  with jax.set_mesh(sharding.make_mesh(config_lib.Mesh())):
    return int(np.sum([x.size for x in jax.tree.leaves(state_lib.abstract(settings, vocab).model)]))


def _bar() -> rich.progress.Progress:
  return rich.progress.Progress(
    rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(),
    rich.progress.MofNCompleteColumn(), rich.progress.TimeElapsedColumn(),
    rich.progress.TimeRemainingColumn(), console=rich.console.Console(stderr=True))


def _show(values: dict[str, Any], directory: Path) -> None:
  """The result as a table, and where to look."""
  scores = values["directions"]
  languages = sorted({la for s in scores.values() for la in s["by_language"]})
  table = rich.table.Table(title="Held-out accuracy, judged independently")
  table.add_column("direction")
  for name in ("accuracy", "digit", *languages, "answers"):
    table.add_column(name, justify="right")
  for name, s in scores.items():
    by = s["by_language"]
    table.add_row(name, f"{s['accuracy']:.1%}", f"{s['digit_accuracy']:.1%}",
                  *(f"{by[la]['accuracy']:.0%}" if la in by else "-" for la in languages),
                  str(s["n"]))
  console = rich.console.Console()
  console.print(table)
  times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in values["stages"].items())
  console.print(f"{times}\nOpen {directory / 'report.html'}", highlight=False, soft_wrap=True)
