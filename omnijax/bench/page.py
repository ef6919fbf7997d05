"""A benchmark as one page of HTML: its charts, and all figures."""

import html as html_lib
from collections.abc import Sequence
from typing import Any

import numpy as np

from omnijax.evals import charts
from omnijax.evals.report_style import page

_COLOURS = {"ours": "--accent", "torch": "--image"}
# Of curves that are told apart, and of what a latency is made of.
_CURVES = ("--accent", "--image", "--speak", "--listen", "--bad", "--control")
_STAGES = {"silence_s": ("silence that ends speech", "--control"),
           "recognise_s": ("recognising", "--listen"), "write_s": ("writing", "--image"),
           "speak_s": ("synthesising", "--speak"), "lead_s": ("silence before the sound", "--bad")}
_OURS = {"audio_s": ("ours: sound", "--text"), "compute_s": ("ours: computing", "--good")}


def html(figures: dict[str, Any]) -> str:
  """The page, complete in itself."""
  curves = [charts.Curve(name, colour, range(1, figures["repeats"] + 1),
                         figures[name]["ms_per_step_of_each"], smooth=False)
            for name, colour in _COLOURS.items() if name in figures]
  chart = charts.lines(curves, title="time of a step", x_label="block", y_label="ms a step")
  rows = "".join(f"<tr><th>{html_lib.escape(k.replace('_', ' '))}</th><td>{_text(v)}</td></tr>"
                 for k, v in _flat(figures).items())
  return page(f"{figures['experiment']} on {figures['device']}",
              f'<div style="max-width:640px">{chart}</div><table class="figures">{rows}</table>')


def voice(figures: dict[str, Any]) -> str:
  """The page of dialogues in real time, and of a pipeline beside them."""
  talks, sides = figures["talks"], figures["pipeline"]
  shown = [
    ("Frames: from the last sample heard to the frame of sound", _shares(
      [(t["sessions"], t["frame_s"]["each"]) for t in talks], "frames")),
    ("Answers: from the end of a question to the first sound", _shares(
      [(t["sessions"], _latencies(t["answers"])) for t in talks], "answers")),
    ("Stops: from an interruption to silence", _shares(
      [(t["sessions"], _latencies(t["stops"])) for t in talks], "stops"))]
  if sides:
    shown.append(("Answers, medians of the same questions", _stacked(sides, figures["silences"])))
  charts_html = "".join(f"<figure><figcaption>{html_lib.escape(title)}</figcaption>{chart}</figure>"
                        for title, chart in shown)
  rows = "".join(f"<tr><th>{html_lib.escape(k.replace('_', ' '))}</th><td>{_text(v)}</td></tr>"
                 for k, v in _flat(_brief(figures)).items())
  return page(f"{figures['run']} in real time on {figures['device']}",
              f'<div class="charts">{charts_html}</div><table class="figures">{rows}</table>')


def _shares(found: Sequence[tuple[int, Sequence[float]]], what: str) -> str:
  """How many came within how long, a curve for each number of talks at once."""
  curves = []
  for (count, values), colour in zip(found, _CURVES * len(found), strict=False):
    ms = 1e3 * np.maximum(np.sort(values), 0)
    curves.append(charts.Curve(f"{count} at once", colour, ms.tolist(),
                               (100 * np.arange(1, len(ms) + 1) / max(len(ms), 1)).tolist(), False))
  return charts.lines(curves, title=f"share of {what} by time", x_label="ms",
                      y_label=f"share of {what}", percent=True)


def _latencies(told: dict[str, Any]) -> list[float]:
  return [x["latency_s"] for x in told["each"] if x["latency_s"] is not None]


def _stacked(sides: dict[str, Any], names: Sequence[str]) -> str:
  """What the latency of each side is made of."""
  found = []
  for name in names:
    if sides[name]["pairs"]:
      found += [(f"pipeline, {name}", [charts.Piece(label, colour, 1e3 * sides[name][key])
                                       for key, (label, colour) in _STAGES.items()]),
                (f"ours, the same {sides[name]['pairs']} questions", [
                  charts.Piece(label, colour, 1e3 * sides[name]["ours"][key])
                  for key, (label, colour) in _OURS.items()])]
  if not found:
    return '<p class="none">No question was answered by both sides.</p>'
  return charts.stacks(found, title="what the latency is made of", x_label="ms")


def _brief(values: Any) -> Any:
  """The same without what every single frame and question took."""
  if isinstance(values, dict):
    return {k: _brief(v) for k, v in values.items() if k not in ("each", "talks")} | {
      f"{t['sessions']} at once": _brief(t) for t in values.get("talks", [])}
  return values


def _flat(values: dict[str, Any], at: str = "") -> dict[str, Any]:
  out: dict[str, Any] = {}
  for key, value in values.items():
    out |= _flat(value, f"{at}{key} ") if isinstance(value, dict) else {f"{at}{key}": value}
  return out


def _text(value: Any) -> str:
  if isinstance(value, list):
    return ", ".join(map(_text, value))
  return html_lib.escape(f"{value:,.4g}" if isinstance(value, float) else str(value))
