"""The account of a run's time as a table and as a page."""

import html as html_lib
import json as json_lib
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from omnijax.evals.report_style import page
from omnijax.job import goodput

_COLOURS = {"step": "#2e8b57", "wasted": "#c0392b", "down": "#7f8c8d", "compile": "#8e6bbf",
            "start": "#d9a441", "restore": "#3f7fbf", "save": "#5fa8d3", "data": "#e07b39",
            "eval": "#8fbf6b", "sample": "#b5cf8b", "end": "#b9b9b9"}


def show(run_dir: Path, *, json: Path | None, html: Path | None) -> None:
  """Prints the account, and writes it where asked for.

  Raises:
    FileNotFoundError: there is none.
  """
  values = goodput.report(run_dir)
  table = Table("", "seconds", "share", "", title=_title(run_dir, values))
  for bucket, seconds in _by_size(values):
    table.add_row(bucket, f"{seconds:,.1f}", f"{seconds / values['wall_s']:.1%}",
                  goodput.BUCKETS[bucket])
  Console().print(table)
  if json is not None:
    json.write_text(json_lib.dumps(values, indent=1) + "\n", "utf-8")
  if html is not None:
    html.write_text(_page(run_dir, values), "utf-8")


def _title(run_dir: Path, values: dict[str, Any]) -> str:
  return (f"{run_dir}: {values['goodput']:.1%} of {values['wall_s']:,.0f} s were steps that count; "
          f"{values['steps']} steps, starts: {values['starts']}")


def _by_size(values: dict[str, Any]) -> list[tuple[str, float]]:
  return sorted(((k, v) for k, v in values["seconds"].items() if v), key=lambda kv: -kv[1])


def _page(run_dir: Path, values: dict[str, Any]) -> str:
  title, bars, rows, x = html_lib.escape(_title(run_dir, values)), [], [], 0.0
  for bucket, seconds in _by_size(values):
    share = seconds / values["wall_s"]
    bars.append(f'<rect x="{100 * x:.3f}" y="0" width="{100 * share:.3f}" height="10" '
                f'fill="{_COLOURS[bucket]}"><title>{bucket} {share:.1%}</title></rect>')
    rows.append(f'<tr><td><i style="background:{_COLOURS[bucket]};display:inline-block;width:1em;'
                f'height:1em"></i> {bucket}</td><td>{seconds:,.1f} s</td><td>{share:.1%}</td>'
                f"<td>{goodput.BUCKETS[bucket]}</td></tr>")
    x += share
  return page(_title(run_dir, values),
              '<svg viewBox="0 0 100 10" preserveAspectRatio="none" '
              f'style="width:100%;height:48px" role="img" aria-label="{title}">'
              f"{''.join(bars)}</svg>"
              f'<table class="figures">{"".join(rows)}</table>')
