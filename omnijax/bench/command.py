"""The command `omnijax bench step`: both sides in turn, then a table, and files on request."""

import dataclasses
import importlib.util
import json as json_lib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)
from rich.table import Table

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.bench import batch as batch_lib
from omnijax.bench import compare, page
from omnijax.bench.process import Side
from omnijax.tokenizers import load
from omnijax.train import metrics

_MODULES = {"ours": "omnijax.bench.ours", "torch": "omnijax.bench.theirs"}


def run(settings: config_lib.Run, *, against: str | None, repeats: int, steps: int,
        document: int | None, mix: Sequence[float], json: Path | None, html: Path | None) -> None:
  """Times a run's step and says what came out; files are written only where asked for.

  Raises:
    ValueError: an option is out of range, the twin can't do what the run asks for, or a file can't
      be written.
    ModuleNotFoundError: PyTorch isn't installed.
  """
  for name, value in (("repeats", repeats), ("steps", steps)):
    if value < 1:
      raise ValueError(f"--{name} is {value}; wanted 1 or more.")
  for path in (json, html):
    if path is not None and not path.absolute().parent.is_dir():
      raise ValueError(f"can't write {path}: there is no directory {path.absolute().parent}.")
  if against:
    check_twin(settings)
    if importlib.util.find_spec("torch") is None:
      raise ModuleNotFoundError("No module named 'torch'", name="torch")
    # Of an accelerator's memory, which XLA would take for itself.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
  document = document or max(settings.data.positions // 4, 8)
  vocab = load.planned_vocab(settings.tokenizers)
  batch = batch_lib.make(settings.data, vocab, mix=mix, document=document)
  console = Console()
  names = ["ours", *([against] if against else [])]
  seconds, about = _measure(console, names, settings, vocab, batch, repeats, steps)
  figures = _figures(settings, vocab, batch, seconds, about, steps) | {"document": document}
  console.print(_table(figures))
  if json is not None:
    json.write_text(json_lib.dumps(figures, indent=1) + "\n", "utf-8")
  if html is not None:
    html.write_text(page.html(figures), "utf-8")


def check_twin(settings: config_lib.Run) -> None:
  """Refuses what the twin can't do.

  Raises:
    ValueError: the setting, and the one that it can.
  """
  m, o, wants = settings.model, settings.optim, dataclasses.asdict(settings.mesh)
  for name, value, can in (
      ("model.experts", m.experts, 0), ("optim.accumulate", o.accumulate, 1),
      ("optim.ema", o.ema, 0.0), ("optim.moment_dtype", o.moment_dtype, "float32"),
      *((f"mesh.{axis}", size, 1) for axis, size in wants.items())):
    if value != can:
      flag = name.replace("_", "-")
      raise ValueError(f"{name} is {value}, and the twin in PyTorch knows {can} only; give "
                       f"--{flag} {can}, or leave out --against.")


def _measure(console: Console, names: list[str], settings: config_lib.Run, vocab: vocab_lib.Vocab,
             batch: dict[str, np.ndarray], repeats: int, steps: int
             ) -> tuple[dict[str, list[float]], dict[str, dict[str, Any]]]:
  """Seconds of each block of each side, in turn, and what the sides say of themselves."""
  columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
             TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
  seconds: dict[str, list[float]] = {name: [] for name in names}
  sides: dict[str, Side] = {}
  shown = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
  with tempfile.TemporaryDirectory() as folder, shown as bar:
    weights = Path(folder) / "weights.npz" if len(names) > 1 else None
    try:
      for name in names:
        task = bar.add_task(f"compiling {name}", total=None)
        _say(console, f"compiling {name}")
        sides[name] = Side(_MODULES[name], settings, vocab, batch, weights)
        sides[name].start()
        bar.remove_task(task)
      first = [side.about()["losses"][0] for side in sides.values()]
      compare.check_same(first[0], first[-1], settings.model.dtype)
      task = bar.add_task(f"blocks of {steps} steps", total=repeats * len(names))
      for i in range(repeats):
        for name in names:
          seconds[name].append(sides[name].steps(steps))
          bar.advance(task)
        _say(console, f"{i + 1} of {repeats}: " + ", ".join(
          f"{name} {1e3 * seconds[name][-1] / steps:.4g} ms" for name in names))
      return seconds, {name: side.about() for name, side in sides.items()}
    finally:
      for side in sides.values():
        side.close()


def _say(console: Console, line: str) -> None:
  """Where no bar is seen."""
  if not console.is_terminal:
    console.print(line, highlight=False)


def _figures(settings: config_lib.Run, vocab: vocab_lib.Vocab, batch: dict[str, np.ndarray],
             seconds: dict[str, list[float]], about: dict[str, dict[str, Any]], steps: int
             ) -> dict[str, Any]:
  flops = metrics.model_flops(settings.model, vocab, batch)
  whole, ours = sum(flops.values()), about["ours"]
  peak = ours["peak_flops"]
  made = {name: compare.side(seconds[name], steps, about[name], flops=whole, peak=peak,
                             positions=int((batch["segment"] > 0).sum())) for name in seconds}
  pair = compare.ratio(seconds["ours"], seconds["torch"]) if "torch" in seconds else {}
  versions = {"jax": ours["jax"]} | ({"torch_version": about["torch"]["torch"]}
                                     if "torch" in about else {})
  return {"experiment": settings.name, "device": ours["device"], "devices": ours["devices"],
          **versions, "rows": settings.data.rows, "positions": settings.data.positions,
          "dtype": settings.model.dtype, "optimizer": settings.optim.kind,
          "parameters": ours["parameters"], "shares": batch_lib.shares(batch),
          "model_flops": whole, "model_flops_share": {k: v / whole for k, v in flops.items()},
          "peak_flops": peak, "peak_flops_of": ours["peak_flops_of"],
          "repeats": len(seconds["ours"]), "steps": steps, **made, **pair}


def _table(f: dict[str, Any]) -> Table:
  table = Table(title=f"{f['experiment']}, {f['rows']} rows of {f['positions']}, {f['dtype']}, "
                f"{f['optimizer']}, on {f['devices']} x {f['device']}")
  names = [name for name in _MODULES if name in f]
  table.add_column("")
  for name in names:
    table.add_column(name, justify="right")
  row = lambda title, text: table.add_row(title, *(text(f[name]) for name in names))
  row("ms a step", lambda s: f"{s['ms_per_step']:.4g}\n({min(s['ms_per_step_of_each']):.4g} to "
      f"{max(s['ms_per_step_of_each']):.4g})")
  row("tokens a second", lambda s: f"{s['tokens_per_s']:,.0f}")
  row("MFU", lambda s: f"{s['mfu']:.1%}")
  row("peak memory, GiB", lambda s: f"{s['peak_memory_gib']:.2f}")
  row("compiling, s", lambda s: f"{s['compile_s']:.0f}")
  row("loss of the first step", lambda s: f"{s['first_loss']:.5f}")
  shares = ", ".join(f"{k} {v:.0%}" for k, v in f["shares"].items())
  lines = [f"{f['model_flops'] / 1e9:,.4g} GFLOPs of the model a step; MFU of "
           f"{f['peak_flops'] / 1e9:,.0f} GFLOP/s ({f['peak_flops_of']})",
           f"documents of {f['document']} positions: {shares}"]
  if "ratio" in f:
    low, high = f["ratio_range"]
    lines.append(f"torch / ours: {f['ratio']:.3f}, median of {f['repeats']} pairs of blocks of "
                 f"{f['steps']} steps ({low:.3f} to {high:.3f}); its attention: "
                 f"{f['torch']['attention']}")
  table.caption = "\n".join(lines)
  table.caption_justify = "left"
  return table
