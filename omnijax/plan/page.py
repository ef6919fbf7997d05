"""A plan as one page of HTML: figures, memory, and the time line of a step."""

import html as html_lib
from typing import Any

from omnijax.plan.cost import Cost

_COLOURS = {"parameters": "#4c78a8", "optimizer": "#72b7b2", "gradients": "#f58518",
            "activations": "#e45756", "buffers": "#b279a2", "cache": "#f58518", "free": "#ddd",
            "matmul": "#4c78a8", "attention": "#f58518", "memory": "#72b7b2", "wait": "#e45756",
            "loop": "#9d9d9d", "call": "#9d9d9d"}


def html(cost: Cost | None, figures: dict[str, Any]) -> str:
  """The page of a plan's cost and figures, complete in itself."""
  title = html_lib.escape(f"{figures['step']} step of {figures['experiment']} on "
                          f"{figures['chips']} chips {figures['topology']}")
  rows = "".join(f"<tr><th>{html_lib.escape(k.replace('_', ' '))}</th><td>{_value(v)}</td></tr>"
                 for k, v in figures.items() if not isinstance(v, list | dict))
  memory = dict(figures["memory_gib"])
  memory["free"] = max(0.0, (figures["hbm_of_chip_gib"] or 0) - figures["hbm_gib"])
  return f"""<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}}
th{{text-align:left;font-weight:normal;padding-right:2rem}}svg{{width:100%;height:auto}}</style>
<h1>{title}</h1><h2>Memory of a chip, GiB</h2>{_bar(memory)}
{_time(cost, figures)}<h2>Figures</h2><table>{rows}</table>
"""


def _value(value: Any) -> str:
  text = f"{value:,.4g}" if isinstance(value, float) else str(value)
  return html_lib.escape(text)


def _bar(parts: dict[str, float]) -> str:
  """One bar of parts, each labelled below."""
  whole, x, shapes, labels = sum(parts.values()) or 1.0, 0.0, [], []
  for i, (name, value) in enumerate(parts.items()):
    width = 900 * value / whole
    colour = _COLOURS.get(name, "#999")
    shapes.append(f'<rect x="{x:.1f}" width="{width:.1f}" height="40" fill="{colour}">'
                  f"<title>{name}: {value:.3g}</title></rect>")
    labels.append(f'<rect x="{150 * i}" y="55" width="12" height="12" fill="{colour}"/>'
                  f'<text x="{150 * i + 17}" y="66" font-size="13">{name} {value:.3g}</text>')
    x += width
  return f'<svg viewBox="0 0 900 75">{"".join(shapes + labels)}</svg>'


def _time(cost: Cost | None, figures: dict[str, Any]) -> str:
  if cost is None or not cost.seconds:
    return f"<p>{html_lib.escape('. '.join(figures['advice']))}.</p>"
  return f"""<h2>Seconds of a step</h2>{_bar(figures["seconds_by_kind"])}
<h2>Time line of a step</h2><p>In the order of the schedule; loops over layers as a whole.</p>
{_timeline(cost)}"""


def _timeline(cost: Cost) -> str:
  whole = cost.seconds or 1.0
  shapes = []
  for start, seconds, what in cost.timeline:
    if seconds < whole / 2000:
      continue
    kind, _, name = what.partition(": ")
    shapes.append(f'<rect x="{900 * start / whole:.1f}" width="{900 * seconds / whole:.1f}" '
                  f'height="60" fill="{_COLOURS.get(kind, "#999")}" stroke="white"><title>'
                  f"{html_lib.escape(name)}: {seconds * 1e3:.1f} ms</title></rect>")
  return f'<svg viewBox="0 0 900 60">{"".join(shapes)}</svg>'
