"""What a sweep has come to: a table on the screen, results.csv and report.html."""

import csv
import io

from rich.console import Console
from rich.table import Table

from omnijax import vocab as vocab_lib
from omnijax.sweep import figures, page
from omnijax.sweep import trial as trial_lib
from omnijax.sweep.figures import Objective
from omnijax.sweep.manifest import Manifest, differences
from omnijax.sweep.space import shown

TABLE, PAGE = "results.csv", "report.html"
_WIDTH = 160  # of a table that goes to no terminal


def write(manifest: Manifest, objective: Objective, title: str) -> None:
  """Writes and prints them, the best trial first."""
  mine = figures.ranked(manifest.listed, objective)
  entries = mine + figures.ranked(manifest.left, objective)
  warning = figures.incomparable(mine, objective)
  settings = differences([e.trial.run for e in entries])
  rows = [figures.row(e, objective) for e in entries]
  text = io.StringIO()
  table = csv.writer(text, lineterminator="\n")
  head = [k for k in rows[0] if k not in ("why", "objective")]
  table.writerow(["rank", *head[:3], "in_sweep", *settings, "objective", *head[3:], "why"])
  for i, (entry, row) in enumerate(zip(entries, rows, strict=True)):
    values = [row[k] for k in head]
    table.writerow([i + 1, *values[:3], entry.listed, *(shown(v[i]) for v in settings.values()),
                    row["objective"], *values[3:], row["why"]])
  trial_lib.replace(manifest.root / TABLE, text.getvalue())
  trial_lib.replace(manifest.root / PAGE, page.html(title, entries, objective, warning))
  _print(rows[:len(mine)], objective, title)
  console = Console(highlight=False, soft_wrap=True)
  if warning:
    console.print(f"Note: {warning}.", markup=False)
  if manifest.left:
    console.print(f"{len(manifest.left)} more trials are no longer in the sweep; {TABLE} and "
                  f"{PAGE} have them last.", markup=False)
  if mine[0].state == "done" and rows[0]["objective"] is not None:
    console.print(f"Best: {mine[0].trial.run.name}. To train its settings from the start, longer:\n"
                  f"  {page.command(mine[0])}", markup=False)
  console.print(f"Open {manifest.root / PAGE}", markup=False)


def _print(rows: list[dict], objective: Objective, title: str) -> None:
  console = Console()
  if not console.is_terminal:
    console = Console(width=_WIDTH)
  table = Table(title=title)
  table.add_column("trial", overflow="fold")
  prefix = "eval/" if any(r["eval/loss"] is not None for r in rows) else ""
  losses = [f"{prefix}loss/{k}" for k in vocab_lib.MODALITIES]
  for name in (objective.name, *losses, "steps", "starts"):
    table.add_column(name, justify="right", overflow="fold")
  table.add_column("state", overflow="fold")
  for row in rows:
    table.add_row(row["id"], *(_text(row[k]) for k in ("objective", *losses)), str(row["steps"]),
                  str(row["starts"]), row["state"] + (f": {row['why']}" if row["why"] else ""))
  console.print(table, markup=False)


def _text(value: float | None) -> str:
  return "" if value is None else f"{value:.4g}"
