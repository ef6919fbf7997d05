"""Plays the scenarios to a trained model and judges what it says.

  python -m experiments.duplex.evaluate RUN SCENARIOS.jsonl --out figures.json

The judge is the quickstart's recogniser of spoken digits: three networks that were trained on
recordings only, and that the model never met.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import rich.console
import rich.progress
import rich.table

from experiments import quickstart
from experiments.digits import voices
from omnijax import bench
from omnijax.evals import duplex, judges
from omnijax.generate.service import Service


def evaluate(run: Path, scenarios: Path, *, at_once: int, echo_db: float | None, each: int,
             keep: Path | None = None) -> dict[str, Any]:
  """The figures of a run.

  Args:
    run: its directory.
    scenarios: JSONL of `experiments.duplex.manifest`.
    at_once: dialogues at a time.
    echo_db: level of the echo of its own voice that the model hears 120 ms later; None is none.
    each: most scenarios of a kind.
    keep: a folder that gets what was heard and said, as WAV of two channels.

  Raises:
    ValueError: numbers below 1, or scenarios that can't be read.
  """
  for name, value in (("at-once", at_once), ("each", each)):
    if value < 1:
      raise ValueError(f"--{name} is {value}; wanted 1 or more.")
  service = Service.load(run, slots=at_once)
  some = duplex.read(scenarios, service.sample_rate)
  some = [s for kind in duplex.KINDS for s in [s for s in some if s.kind == kind][:each]]
  echo = None if echo_db is None else (10 ** (echo_db / 20), round(0.12 * service.sample_rate))
  with rich.progress.Progress(
      *rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn(),
      console=rich.console.Console(stderr=True)) as bar:
    task = bar.add_task("dialogues", total=len(some))
    said = duplex.play(service, some, at_once=at_once, echo=echo,
                       advance=lambda: bar.advance(task))
  service.close()
  judge = judges.load_speech(quickstart.judges()[1])
  results = [(s, duplex.judge(s, x, judge, voices.WORDS, rate=service.sample_rate,
                              size=service.frame_size)) for s, x in zip(some, said, strict=True)]
  if keep is not None:
    duplex.write(keep, some, said, service.sample_rate)
  about = {"run": Path(run).name, "commit": bench.commit(), "device": bench.cpu_name(),
           "echo_db": echo_db, "each": each}
  return {"about": about, "figures": duplex.figures(results), "scenarios": [
    {"name": s.name, "kind": s.kind, "words": x.words, **r}
    for (s, r), x in zip(results, said, strict=True)]}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("run", type=Path)
  parser.add_argument("scenarios", type=Path)
  parser.add_argument("--at-once", type=int, default=4, help="dialogues at a time")
  parser.add_argument("--echo-db", type=float, help="level of the echo of its own voice")
  parser.add_argument("--each", type=int, default=10_000, help="most scenarios of a kind")
  parser.add_argument("--keep", type=Path, help="folder for what was heard and said")
  parser.add_argument("--out", type=Path, help="JSON of all figures and answers")
  args = parser.parse_args()
  try:
    if not args.scenarios.is_file():  # before a model is loaded
      raise ValueError(f"there is no file {args.scenarios}; wanted the scenarios that "
                       "experiments.duplex.manifest has written.")
    found = evaluate(args.run, args.scenarios, at_once=args.at_once, echo_db=args.echo_db,
                     each=args.each, keep=args.keep)
  except (ValueError, OSError) as error:
    parser.error(str(error))
  if args.out:
    args.out.write_text(text(found), "utf-8")
  show(found["figures"])


def text(found: dict[str, Any]) -> str:
  """JSON to look at: the figures line by line, then a line for each scenario."""
  head = json.dumps({k: v for k, v in found.items() if k != "scenarios"}, indent=1)
  lines = ",\n".join("  " + json.dumps(s, ensure_ascii=False) for s in found["scenarios"])
  return f'{head[:-2]},\n "scenarios": [\n{lines}\n ]\n}}\n'


def show(figures: dict[str, Any]) -> None:
  """The figures as a table."""
  table = rich.table.Table(title="Dialogues with voices never heard, judged independently")
  for column in ("what", "share", "of", "median", "p90"):
    table.add_column(column, justify="left" if column == "what" else "right")

  def row(name: str, share: dict[str, Any], spread: dict[str, float] | None = None) -> None:
    percent = "" if share["share"] is None else f"{share['share']:.1%}"
    times = (f"{spread['median'] * 1e3:.0f} ms", f"{spread['p90'] * 1e3:.0f} ms") if spread else ()
    table.add_row(name, percent, str(share["n"]), *times)

  row("right answers", figures["answers"], figures["response_s"])
  for key in ("by_language", "by_op", "by_voice"):
    for name, share in figures["answers"][key].items():
      row(f"  {name}", share)
  row("speaks in a pause", figures["takeovers"])
  row("stops when interrupted", figures["stops"], figures["stops"]["latency_s"])
  row("stops without need", figures["false_stops"])
  rich.console.Console().print(table)


if __name__ == "__main__":
  main()
