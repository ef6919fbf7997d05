"""The command `omnijax bench voice`: talks in real time, a pipeline beside them, tables, files."""

import argparse
import contextlib
import importlib.util
import json as json_lib
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from omnijax import __version__, bench, checkpoint
from omnijax.bench import page, pipeline, voice
from omnijax.evals import codec, duplex
from omnijax.evals import command as evals_command
from omnijax.evals.duplex import Scenario
from omnijax.generate.service import Service

_SILENCES = {"500 ms of silence": 0.5, "200 ms of silence": 0.2}
_STAGES = {"silence_s": "until the silence was long enough", "recognise_s": "whisper-base",
           "write_s": "the model", "speak_s": "SVOX Pico", "lead_s": "its silence before the sound",
           "latency_s": "end of the question to the first sound"}

Stages = tuple[codec.Recogniser, pipeline.Synthesiser]


def run(args: argparse.Namespace) -> None:
  """Measures, prints, and writes where asked for.

  Raises:
    ValueError: an option is out of range, the scenarios can't be used, or a file can't be written.
    FileNotFoundError: there is no run, no checkpoint of it, or a file of scenarios is missing.
    ModuleNotFoundError: what the pipeline needs isn't installed.
  """
  _check(args)
  console, commit = Console(stderr=True), bench.commit()  # as it is now, whatever changes meanwhile
  stages = _stages() if args.questions else None
  slots = {args.slots: args.sessions} if args.slots else {n: (n,) for n in args.sessions}
  talks, sides = list[dict[str, Any]](), dict[str, Any]()
  for rows, counts in slots.items():
    made, compared = _measure(console, args, rows, counts, stages)
    talks += made
    sides, stages = compared or sides, None  # the pipeline is asked once
  device = jax.devices()[0]
  values = {
    "run": args.run.absolute().name, "checkpoint": checkpoint.read_identity(
      args.run / "checkpoints")[0],
    "device": bench.cpu_name() if device.platform == "cpu" else device.device_kind,
    "command": shlex.join(["omnijax", *sys.argv[1:]]), "commit": commit,
    "omnijax": __version__, "jax": jax.__version__, "python": platform.python_version(),
    "seconds": args.seconds, "talks": talks, "silences": list(_SILENCES), "pipeline": sides}
  _print(values)
  if args.out is not None:
    args.out.write_text(json_lib.dumps(values, indent=1, ensure_ascii=False) + "\n", "utf-8")
    args.out.with_suffix(".html").write_text(page.voice(values), "utf-8")
    print(f"Open {args.out.with_suffix('.html')}")


def _check(args: argparse.Namespace) -> None:
  if not args.seconds >= 1:
    raise ValueError(f"--seconds is {args.seconds:g}; wanted 1 or more.")
  if args.questions < 0:
    raise ValueError(f"--questions is {args.questions}; wanted 0 or more.")
  if args.slots is not None and args.slots < max(args.sessions):
    raise ValueError(f"--slots is {args.slots}, and --sessions asks for {max(args.sessions)} talks "
                     "at once; give as many slots, or leave --slots out.")
  if args.out is not None and args.out.suffix != ".json":
    raise ValueError(f"--out is {args.out}; wanted a name that ends in .json.")
  if args.out is not None and not args.out.absolute().parent.is_dir():
    raise ValueError(f"--out: there is no directory {args.out.absolute().parent}.")
  if not args.scenarios.is_file():
    raise FileNotFoundError(f"--scenarios: there is no file {args.scenarios}.")
  checkpoint.read_identity(args.run / "checkpoints")  # says what is wrong with it
  for name in ("faster_whisper", "py_nanotts") if args.questions else ():
    if importlib.util.find_spec(name) is None:
      raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _stages() -> Stages:
  return pipeline.whisper(evals_command.whisper_directory()), pipeline.pico()


def _measure(console: Console, args: argparse.Namespace, slots: int, counts: Sequence[int],
             stages: Stages | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Figures of so many talks at once, and of pipelines if there are stages, on one service."""
  with console.status(f"compiling {slots} slots"):
    service = Service.load(args.run, slots=slots)
  try:
    scenarios = duplex.read(args.scenarios, service.sample_rate)
    if not scenarios:
      raise ValueError(f"{args.scenarios} has no scenarios; wanted one a line.")
    asked = pipeline.chosen(scenarios, args.questions) if stages else []
    made = [{"slots": slots, **_talks(console, service, scenarios, count, args.seconds)}
            for count in counts]
    return made, _compared(console, service, asked, stages) if stages else {}
  finally:
    service.close()


def _talks(console: Console, service: Service, scenarios: Sequence[Scenario], count: int,
           seconds: float) -> dict[str, Any]:
  """So many talks at once, in real time and flat out."""
  rate, size = service.sample_rate, service.frame_size
  frames = round(seconds * rate / size)
  rng = np.random.default_rng(count)
  made = voice.streams(scenarios, count, frames * size, rate, rng)
  waves, placed = [wave_T for wave_T, _ in made], [where for _, where in made]
  with _bar(console, f"talks at once: {count}", count * frames) as advance:
    played = voice.live(service, waves, rng=rng, advance=advance)
  out = {"sessions": count, **voice.figures(played, placed, frame_s=size / rate, rate=rate)}
  with console.status(f"as fast as it answers: {count}"):
    factor = voice.flat_out(service, waves)
  return out | {"wall_over_sound": factor}


def _compared(console: Console, service: Service, asked: Sequence[Scenario], stages: Stages
              ) -> dict[str, Any]:
  sides = {name: pipeline.Pipeline(service, *stages, silence_s)
           for name, silence_s in _SILENCES.items()}
  with _bar(console, "questions to both sides", len(asked) * (1 + len(sides))) as advance:
    found = pipeline.compare(service, asked, sides, rng=np.random.default_rng(0), advance=advance)
  return pipeline.figures(found, list(sides))


@contextlib.contextmanager
def _bar(console: Console, what: str, total: int) -> Iterator[Callable[[], None]]:
  columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(),
             TextColumn("left"), TimeRemainingColumn())
  shown = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
  if not console.is_terminal:
    console.print(what, highlight=False)
  with shown as bar:
    task = bar.add_task(what, total=total)
    yield lambda: bar.advance(task)


def _ms(told: Mapping[str, Any] | None, *names: str) -> str:
  found = [told[name] for name in names] if told else []
  return " / ".join("-" if x is None else f"{1e3 * x:,.0f}" for x in found)


def _print(values: dict[str, Any]) -> None:
  console = Console()
  table = Table(title=f"{values['run']} in real time on {values['device']}, ms")
  for name in ("talks", "frame\np50 / p95 / p99", "late", "answer\np50 / p95",
               "sound /\ncomputing", "stop\np50 / p95", "wall /\nsound"):
    table.add_column(name, justify="right")
  for t in values["talks"]:
    late = "-" if t["late"] is None else f"{t['late']:.2%}"
    reply, stop = t["answers"], t["stops"]
    table.add_row(
      str(t["sessions"]), _ms(t["frame_s"], "p50", "p95", "p99"), late,
      f"{_ms(reply['latency_s'], 'p50', 'p95')}\n{reply['latency_s']['n']} of {reply['of']}",
      f"{_ms(reply['audio_s'], 'p50')} / {_ms(reply['compute_s'], 'p50')}",
      f"{_ms(stop['latency_s'], 'p50', 'p95')}\n{stop['latency_s']['n']} of {stop['of']}",
      f"{t['wall_over_sound']:.3f}")
  late = max(t["fed_late_s"]["p99"] or 0 for t in values["talks"])
  lines = [f"fed late by at most {1e3 * late:.1f} ms (p99)"]
  lines += [f"{t['behind']} of {t['sessions']} talks at once were given up: too much sound waited"
            for t in values["talks"] if t["behind"]]
  table.caption, table.caption_justify = "\n".join(lines), "left"
  console.print(table)
  if values["pipeline"]:
    console.print(_sides(values))


def _sides(values: dict[str, Any]) -> Table:
  found = values["pipeline"]
  table = Table(title="pipeline beside ours, medians of the questions that both answered, ms")
  table.add_column("")
  for name in values["silences"]:
    table.add_column(f"{name}\n{found[name]['pairs']} of {found[name]['of']}", justify="right")
  sides = [found[name] for name in values["silences"]]
  for key, told in _STAGES.items():
    table.add_row(told, *(_ms(side, key) for side in sides))
  table.add_row("ours, the same questions", *(_ms(side["ours"], "latency_s") for side in sides))
  ratio = lambda x: "-" if x is None else f"{x:.2f}"
  table.add_row("pipeline / ours", *(ratio(side["ratio"]) for side in sides))
  lines = [f"{name}: {count} x {reason}" for name in values["silences"]
           for reason, count in found[name]["failed"].items()]
  lines.append(f"ours: {found['ours']['unanswered']} of {found['ours']['of']} unanswered")
  table.caption, table.caption_justify = "\n".join(lines), "left"
  return table
