"""A page about a run: its losses by modality and by source, its speed, and its samples."""

import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from omnijax import vocab as vocab_lib
from omnijax.evals import charts, media, report_style
from omnijax.train import metrics

_COLOURS = ("--text", "--image", "--speak", "--listen", "--accent", "--good", "--bad", "--control")
_SAMPLED = 3  # steps whose samples are shown, the last ones
_CSS = media.CSS + """
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(320px,1fr));gap:18px}
.charts figure{margin:0}.samples{display:flex;flex-wrap:wrap;gap:18px;list-style:none;padding:0}
.samples li{max-width:100%}.samples p{margin:0 0 4px;overflow-wrap:anywhere;max-width:36ch}
"""


def write(run_dir: Path, out: Path) -> None:
  """Writes the page of a run, one file that needs no other.

  Raises:
    ValueError: nothing was trained there, or the page can't be written.
  """
  try:
    lines = metrics.read(run_dir)
  except OSError as error:
    raise ValueError(f"{run_dir} has no metrics.jsonl ({error.strerror}); wanted the directory of "
                     "a run.") from error
  if not lines:
    raise ValueError(f"{run_dir} has no finished step yet; train it first.")
  held = run_dir / "eval.jsonl"
  evals = ([json.loads(line) for line in held.read_text("utf-8").splitlines()]
           if held.is_file() else [])
  body = (_facts(lines, evals) + _section("Losses by modality", _modalities(lines, evals))
          + _section("Losses by source", _sources(lines, evals))
          + _section("Speed", _speed(lines)) + _section("Samples", _samples(run_dir)))
  temporary = out.with_name(out.name + ".tmp")
  try:
    temporary.write_text(report_style.page(str(run_dir), body, _CSS), "utf-8")
    os.replace(temporary, out)
  except OSError as error:
    raise ValueError(f"can't write {out}: {error.strerror}.") from error


def _section(title: str, body: str) -> str:
  return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _facts(lines: Sequence[dict[str, Any]], evals: Sequence[dict[str, Any]]) -> str:
  last = lines[-20:]
  mean = lambda key: float(np.mean([line[key] for line in last]))
  facts = [("steps", f"{lines[-1]['step'] + 1:,}"), ("loss of the last 20", f"{mean('loss'):.3f}"),
           ("positions / s", f"{mean('tokens_per_s'):,.0f}"), ("MFU", f"{mean('mfu'):.1%}")]
  if evals:
    facts.insert(2, (f"held out after {evals[-1]['step']:,}", f"{evals[-1]['eval/loss']:.3f}"))
  return '<dl class="facts">' + "".join(
    f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts) + "</dl>"


def _curve(lines: Sequence[dict[str, Any]], key: str, label: str, colour: str,
           smooth: bool = True, scale: float = 1.0) -> charts.Curve:
  told = [line for line in lines if line.get(key) is not None]
  return charts.Curve(label, colour, [line["step"] for line in told],
                      [line[key] * scale for line in told], smooth)


def _charts(figures: Sequence[tuple[str, str]]) -> str:
  return '<div class="charts">' + "".join(
    f"<figure><figcaption><h3>{html.escape(title)}</h3></figcaption>{svg}</figure>"
    for title, svg in figures) + "</div>"


def _modalities(lines: Sequence[dict[str, Any]], evals: Sequence[dict[str, Any]]) -> str:
  return _charts([(kind, charts.lines(
    [_curve(lines, f"loss/{kind}", "training", colour),
     _curve(evals, f"eval/loss/{kind}", "held out", "--ink", False)],
    title=f"Loss of {kind}", x_label="step", y_label="nats per token"))
    for kind, colour in zip(vocab_lib.MODALITIES, _COLOURS, strict=False)])


def _sources(lines: Sequence[dict[str, Any]], evals: Sequence[dict[str, Any]]) -> str:
  prefix = "loss/source/"
  names = [key.removeprefix(prefix) for key in lines[-1] if key.startswith(prefix)]
  # Held-out sources have names of their own; those of one place are often called alike.
  held = [key.removeprefix("eval/" + prefix) for key in (evals[-1] if evals else ())
          if key.startswith("eval/" + prefix)]
  figures = [(name, charts.lines(
    [_curve(lines, prefix + name, "training", _COLOURS[i % len(_COLOURS)])],
    title=f"Loss of {name}", x_label="step", y_label="weighted nats"))
    for i, name in enumerate(names)]
  figures += [(f"{name}, held out", charts.lines(
    [_curve(evals, f"eval/{prefix}{name}", "held out", "--ink", False)],
    title=f"Held-out loss of {name}", x_label="step", y_label="weighted nats")) for name in held]
  if names:
    used = {name: sum(line.get(f"tokens/{name}", 0) for line in lines) for name in names}
    figures.append(("What was read", media.table(
      "Positions of each source", ("source", "positions", "share"),
      [(html.escape(name), f"{n:,}", f"{n / max(1, sum(used.values())):.1%}")
       for name, n in used.items()])))
  return _charts(figures) if figures else ""


def _speed(lines: Sequence[dict[str, Any]]) -> str:
  return _charts([
    ("positions a second", charts.lines([_curve(lines, "tokens_per_s", "positions / s", "--text")],
                                        title="Speed", x_label="step", y_label="positions / s")),
    ("use of the hardware", charts.lines([_curve(lines, "mfu", "MFU", "--image", True, 100)],
                                         title="Use of the hardware", x_label="step",
                                         y_label="% of peak", percent=True))])


def _samples(run_dir: Path) -> str:
  """What the model wrote, drew and said at the last few steps that samples were made after."""
  folders = sorted((run_dir / "samples").glob("[0-9]*"))[-_SAMPLED:]
  return "".join(f"<h3>After {int(folder.name):,} steps</h3>"
                 f'<ul class="samples">{_of_step(folder)}</ul>' for folder in reversed(folders))


def _of_step(folder: Path) -> str:
  told = folder / "text.txt"
  items = [f"<p>{html.escape(line)}</p>"
           for line in (told.read_text("utf-8").splitlines() if told.is_file() else ())]
  for path in sorted(folder.glob("*.png")):
    with Image.open(path) as image:
      prompt = str(image.info.get("prompt", ""))
      pixels = np.asarray(image.convert("RGB"))
    items.append(f"<p>{html.escape(prompt)}</p>{media.picture(pixels, f'drawn for {prompt}')}")
  for path in sorted(folder.glob("*.wav")):
    with soundfile.SoundFile(path) as file:
      wave, rate, prompt = file.read(dtype="float32"), file.samplerate, file.comment
    items.append(f"<p>{html.escape(prompt)}</p>{media.sound(wave, rate, f'said for {prompt}')}")
  return "".join(f"<li>{item}</li>" for item in items)
