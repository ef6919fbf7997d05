"""The command `omnijax plan`: progress while it compiles, then a table, and files on request."""

import contextlib
import json as json_lib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from omnijax import config as config_lib
from omnijax import experiment
from omnijax.plan import chips, page
from omnijax.plan import cost as cost_lib
from omnijax.plan import decode as decode_lib
from omnijax.plan import plan as plan_lib
from omnijax.plan import search as search_lib
from omnijax.tokenizers import load

_STAGES = {"topology": "asking the compiler for the topology",
           "compile": "compiling the step",
           "read": "reading the program"}


def run(settings: config_lib.Run, topology: str, slices: int, *, decode: bool,
        document: int | None, price: float | None, json: Path | None, html: Path | None,
        hlo: Path | None) -> None:
  """Plans a run and says what came out; files are written only where asked for.

  Raises:
    ValueError: the topology is unknown, the mesh doesn't fit it, or a file can't be written.
    ModuleNotFoundError: the compiler isn't installed.
  """
  where = chips.parse(topology, slices)
  _check(document, price, json, html, hlo)
  if decode and document is not None:
    raise ValueError("--document has no effect on --decode, whose streams are as long as "
                     "data.positions; leave it out.")
  console = Console()
  with _stages(console) as stage:
    vocab = load.planned_vocab(settings.tokenizers)
    plan: Any
    if decode:
      plan = decode_lib.plan(settings, vocab, where, stage=stage)
    else:
      plan = plan_lib.plan(settings, vocab, where, document=document, stage=stage)
  _show(console, plan, price, json, html, hlo)


def search(path: Path, settings: config_lib.Run, topology: str, slices: int, *, out: Path,
           tries: int, fixed: Sequence[str], document: int | None, price: float | None,
           json: Path | None, html: Path | None, hlo: Path | None) -> None:
  """Compiles variants of a run, ranks them, and writes the best as an experiment.

  Args:
    path: of the experiment.
    settings: its run, changed as the command line says.
    topology: a slice.
    slices: how many such.
    out: the experiment to write; what is compiled goes to a JSON file beside it.
    tries: the most to compile, earlier calls included.
    fixed: fields that the command line says, which stay.
    document, price, json, html, hlo: as for `run`; of the best.

  Raises:
    ValueError: as `run`; `out` is somebody else's file; or nothing that was tried fits.
    ModuleNotFoundError: the compiler isn't installed.
  """
  where = chips.parse(topology, slices)
  _check(document, price, json, html, hlo, out)
  if not where.chip.timed:
    raise ValueError(f"--search ranks by estimated time, of which there is no model for "
                     f"{where.chip.name}; give a slice of TPUs.")
  if tries < 1:
    raise ValueError(f"--tries is {tries}; wanted 1 or more.")
  search_lib.check_free(out)
  where.need_compiler()
  console = Console()
  vocab = load.planned_vocab(settings.tokenizers)
  plans: dict[config_lib.Run, plan_lib.Plan] = {}

  def attempt(made: config_lib.Run, what: str) -> dict[str, Any]:
    with _stages(console, what) as stage:
      plan = plans[made] = plan_lib.plan(made, vocab, where, document=document, stage=stage)
    return plan.as_json(price)

  # Axes of the mesh can't be chosen one by one.
  held = sorted({"mesh" if name.startswith("mesh.") else name for name in fixed})
  found = search_lib.search(settings, vocab, where, attempt, tries=tries, fixed=held,
                            log=out.with_suffix(".json"), document=document)
  console.print(_ranking(found, settings.name, where.name))
  for t in found.tries:
    if t.why:
      console.print(f"{t.outcome}, {search_lib.name_of(t.settings)}: {t.why}", highlight=False,
                    soft_wrap=True)
  for why, count in sorted(found.dropped.items(), key=lambda item: -item[1])[:6]:
    console.print(f"{count:,} not compiled: {why}", highlight=False, soft_wrap=True)
  if found.best is None:
    raise ValueError(f"none of {len(found.tries)} compiled variants fits {where.name}; use more "
                     f"--tries, or more chips. The first: {found.tries[0].why}")
  best = search_lib.run_of(settings, found.best)
  why = (f"{settings.name} on {where.name}" + (f", {slices} slices" if slices > 1 else "")
         + f": the best of {len(found.tries)} variants compiled.\n\nPlanned: "
         f"{found.best.tokens_per_s:,.0f} positions a second and chip, {found.best.mfu:.1%} MFU, "
         f"{found.best.hbm_gib:.1f} GiB of a chip.")
  out.write_text(search_lib.experiment(path, out, experiment.load(path), best, why), "utf-8")
  console.print(f"{out}: the best as an experiment", highlight=False, soft_wrap=True)
  if json or html or hlo:
    if best not in plans:  # it was compiled by an earlier call
      attempt(best, "the best again")
    _show(console, plans[best], price, json, html, hlo)


def _check(document: int | None, price: float | None, *paths: Path | None) -> None:
  for name, value in (("document", document), ("price", price)):
    if value is not None and value <= 0:
      raise ValueError(f"--{name} is {value}; it must be greater than 0.")
  for path in paths:
    if path is not None and not path.absolute().parent.is_dir():
      raise ValueError(f"can't write {path}: there is no directory {path.absolute().parent}.")


def _show(console: Console, plan: Any, price: float | None, json: Path | None, html: Path | None,
          hlo: Path | None) -> None:
  """Prints a plan, and writes the files that are asked for."""
  figures = plan.as_json(price)
  console.print(_table(figures))
  for line in plan.advice:
    console.print(line)
  if json is not None:
    json.write_text(json_lib.dumps(figures, indent=1) + "\n", "utf-8")
  if html is not None:
    html.write_text(page.html(plan.cost, figures), "utf-8")
  if hlo is not None:
    hlo.write_text(plan.text, "utf-8")


def _ranking(found: search_lib.Found, name: str, where: str) -> Table:
  """What was compiled, the best first, with only those settings that differ."""
  table = Table(title=f"{name} on {where}, estimated")
  varies = [k for k in found.tries[0].settings
            if len({str(t.settings[k]) for t in found.tries}) > 1]
  for heading in ("positions/s/chip", "MFU", "GiB", *varies, "outcome"):
    table.add_column(heading.split(".")[-1].replace("_", " "), overflow="fold")
  for t in found.tries:
    told = (f"{t.tokens_per_s:,.0f}", f"{t.mfu:.1%}") if t.step_s else ("", "")
    table.add_row(*told, f"{t.hbm_gib:.1f}" if t.hbm_gib else "",
                  *(str(t.settings[k]) for k in varies), t.outcome)
  return table


@contextlib.contextmanager
def _stages(console: Console, what: str = "") -> Iterator[Any]:
  """Shows the stage and for how long it has been going on; the compiler tells nothing of its own.

  Args:
    console: where.
    what: it is a stage of.
  """
  lead = f"{what}: " if what else ""
  spinner = Spinner("dots")
  begun = time.monotonic()

  class Line:
    name = "topology"

    def __rich__(self) -> Spinner:
      spinner.update(text=f"{lead}{_STAGES[self.name]}, {time.monotonic() - begun:.0f} s")
      return spinner

  line = Line()

  def stage(name: str) -> None:
    line.name = name
    if not console.is_terminal:
      console.print(f"{lead}{_STAGES[name]} ({time.monotonic() - begun:.0f} s)",
                    highlight=False, soft_wrap=True)

  with Live(line, console=console, transient=True, refresh_per_second=4):
    yield stage


def _table(f: dict[str, Any]) -> Table:
  """A plan's figures, as_json's, for reading."""
  table = Table(title=f"{f['step']} step of {f['experiment']} on {f['chips']} chips {f['topology']}"
                + (f", {f['slices']} slices" if f["slices"] > 1 else ""), show_header=False)
  table.add_column(style="bold")
  table.add_column()
  limit, verdict = f["hbm_of_chip_gib"], {True: "fits", False: "DOES NOT FIT"}.get(f["fits"])
  parts = ", ".join(f"{k} {v:.1f}" for k, v in f["memory_gib"].items())
  table.add_row("memory of a chip", f"{f['hbm_gib']:.3g} "
                + (f"of {limit:.0f} GiB, {verdict}" if limit else "GiB") + f"\n({parts})")
  if f.get("host_gib"):
    table.add_row("memory of the host", f"{f['host_gib']:.1f} GiB for each chip")
  shares = ", ".join(f"{k} {v:.1%}" for k, v in f["model_flops_share"].items())
  table.add_row("model FLOPs of a chip", f"{f['model_flops_per_chip'] / 1e12:,.3g} T a step\n"
                f"({shares})")
  if "step_s_estimate" in f:
    _add_time(table, f)
  elif "collectives" in f:
    table.add_row("time of a step", "not estimated: there is no model of this kind of device")
  for c in f.get("collectives", ()):
    if c["bytes"] > 1e6:
      wait = (f", {c['seconds'] * 1e3:.1f} ms, {c['exposed'] * 1e3:.1f} exposed"
              if "seconds" in c else "")
      table.add_row(f"{c['kind']} over {c['axis']}", f"{c['count']:,} of {c['bytes'] / 1e9:.2f} GB "
                    f"in all{wait}")
  return table


def _add_time(table: Table, f: dict[str, Any]) -> None:
  table.add_row("executed FLOPs", f"{f['hlo_flops_per_chip'] / 1e12:,.3g} T")
  kinds = ", ".join(f"{k} {v:.3g}" for k, v in f["seconds_by_kind"].items())
  table.add_row("time of a step", _seconds(f, "step_s") + f"\n({kinds} s)")
  if f["step"] == "decode":
    _add_speech(table, f)
  table.add_row("MFU", f"{f['mfu_estimate']:.1%}")
  table.add_row("tokens", f"{f['tokens_per_chip']:,.5g} of a chip and step, "
                f"{f['tokens_per_s_per_chip']:,.0f} a second")
  if "cost_per_billion_tokens" in f:
    table.add_row("a billion tokens", f"{f['cost_per_billion_tokens']:,.2f}")


def _seconds(f: dict[str, Any], key: str) -> str:
  low, high = f[f"{key}_range"]
  return f"{f[f'{key}_estimate']:.3g} s (+-{cost_lib.ERROR:.0%}: {low:.3g} to {high:.3g} s)"


def _add_speech(table: Table, f: dict[str, Any]) -> None:
  table.add_row("where none speaks", _seconds(f, "text_step_s"))
  table.add_row("reading weights, cache", f"{f['step_s_of_memory']:.3g} s, once")
  low, high = f["speech_per_second_range"]
  table.add_row("speech", f"{f['speech_per_second']:.3g} s a second of each of {f['rows']} streams "
                f"({low:.3g} to {high:.3g})")
