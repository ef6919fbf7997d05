"""A benchmark as one page of HTML: the time of each block, and all figures."""

import html as html_lib
from typing import Any

from omnijax.evals import charts
from omnijax.evals.report_style import page

_COLOURS = {"ours": "--accent", "torch": "--image"}


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


def _flat(values: dict[str, Any], at: str = "") -> dict[str, Any]:
  out: dict[str, Any] = {}
  for key, value in values.items():
    out |= _flat(value, f"{at}{key} ") if isinstance(value, dict) else {f"{at}{key}": value}
  return out


def _text(value: Any) -> str:
  if isinstance(value, list):
    return ", ".join(map(_text, value))
  return html_lib.escape(f"{value:,.4g}" if isinstance(value, float) else str(value))
