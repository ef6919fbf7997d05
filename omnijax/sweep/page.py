"""A sweep as one page of HTML: the trials by rank, their curves, and what each setting does."""

import html as html_lib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omnijax import vocab as vocab_lib
from omnijax.evals import charts
from omnijax.evals.report_style import page
from omnijax.sweep import figures
from omnijax.sweep.figures import Objective
from omnijax.sweep.manifest import Entry, differences
from omnijax.sweep.space import shown

_UNITS = {"text": ("bits_per_byte", "bits / byte"), "image": ("bits_per_pixel", "bits / pixel"),
          "audio": ("bits_per_second", "bits / s")}
_LONGER = 10  # times as many steps, for the best
_CSS = """
.scores td,.scores th{white-space:nowrap}.scores td{text-align:right}
.scores td.word{text-align:left}
.scores i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:6px}
.scores tr.away{opacity:.6}.scores .best b{color:var(--good)}
.dim .line,.dim circle{opacity:.1}.dim .on{opacity:1}.dim .line.on{stroke-width:3}
.scores tr.on{background:var(--pad)}circle{stroke:var(--card)}"""
# What the pointer is on, in whichever chart or table, stands out in all.
_SCRIPT = """
const main=document.querySelector('main'),all=[...document.querySelectorAll('[data-of]')];
all.forEach(e=>{e.onmouseenter=()=>{main.classList.add('dim');
all.forEach(o=>o.classList.toggle('on',o.dataset.of===e.dataset.of))};
e.onmouseleave=()=>{main.classList.remove('dim');all.forEach(o=>o.classList.remove('on'))}})"""


def html(title: str, entries: Sequence[Entry], objective: Objective, warning: str = "") -> str:
  """The page, complete in itself.

  Args:
    title: of the page.
    entries: of trials, the best first.
    objective: what they are compared by.
    warning: about that.
  """
  colours = {e.trial.id: f"--trial{i}" for i, e in enumerate(entries)}
  settings = differences([e.trial.run for e in entries])
  rows = [figures.row(e, objective) for e in entries]
  parts = [f"<style>{_CSS}:root{{{_palette(entries)}}}</style>", _facts(rows, objective),
           f'<p class="note">{html_lib.escape(warning)}</p>' if warning else "",
           _best(entries, rows, objective),
           "<h2>Trials</h2>", _table(entries, rows, settings, objective, colours),
           "<h2>Curves</h2>", _curves(entries, colours),
           "<h2>Settings</h2>", _settings(entries, rows, settings, objective, colours),
           f"<script>{_SCRIPT}</script>"]
  return page(title, "".join(parts))


def command(entry: Entry) -> str:
  """What trains the settings of a trial from the start, for longer."""
  folder = entry.trial.dir
  name = Path("runs") / entry.trial.id
  words = ["omnijax", "train", str(folder / "experiment.json"), "--run-dir", str(name),
           "--train.steps", str(_LONGER * entry.trial.run.train.steps)]
  return shlex.join(words)


def _palette(entries: Sequence[Entry]) -> str:
  """From blue for the best over purple to orange for the worst."""
  last = max(1, len(entries) - 1)
  return "".join(f"--trial{i}:hsl({215 + 175 * i / last:.0f} 65% 55%);"
                 for i in range(len(entries)))


def _facts(rows: Sequence[dict[str, Any]], objective: Objective) -> str:
  states = [r["state"] for r in rows]
  facts = [("trials", str(len(rows)))]
  facts += [(state, str(states.count(state))) for state in dict.fromkeys(states)]
  values = [r["objective"] for r in rows if r["objective"] is not None]
  if values:
    facts.append((f"best {objective.name}", f"{values[0]:.4g}"))
  facts.append(("hours of training", f"{sum(r['seconds'] for r in rows) / 3600:.3g}"))
  return '<dl class="facts">' + "".join(
    f"<div><dd>{value}</dd><dt>{html_lib.escape(name)}</dt></div>" for name, value in facts
  ) + "</dl>"


def _best(entries: Sequence[Entry], rows: Sequence[dict[str, Any]], objective: Objective) -> str:
  if not rows or rows[0]["objective"] is None or rows[0]["state"] != "done":
    return ""
  return (f"<p>Best: <b>{html_lib.escape(rows[0]['name'])}</b>, {html_lib.escape(objective.name)} "
          f"{rows[0]['objective']:.4g}. To train its settings from the start, {_LONGER} times as "
          f"long:</p><p><code>{html_lib.escape(command(entries[0]))}</code></p>")


def _table(entries: Sequence[Entry], rows: Sequence[dict[str, Any]],
           settings: dict[str, list[Any]], objective: Objective, colours: dict[str, str]) -> str:
  columns = ["loss", *(f"loss/{k}" for k in vocab_lib.MODALITIES), *figures.PHYSICAL]
  groups = [("training", [c for c in columns if any(r[c] is not None for r in rows)]),
            ("held out", [f"eval/{c}" for c in columns
                          if any(r[f"eval/{c}"] is not None for r in rows)])]
  groups = [(name, some) for name, some in groups if some]
  head = f'<tr><th></th><th colspan="{len(settings) + 1}">settings</th><th></th>' + "".join(
    f'<th colspan="{len(some)}">{name}</th>' for name, some in groups) + (
    '<th colspan="4">effort</th></tr><tr><th>trial</th>') + "".join(
    f"<th>{html_lib.escape(s)}</th>" for s in settings) + (
    f"<th>state</th><th>{html_lib.escape(objective.name)}</th>") + "".join(
    f"<th>{html_lib.escape(_unit(c))}</th>" for _, some in groups for c in some) + (
    "<th>steps</th><th>starts</th><th>s</th><th>positions / s</th></tr>")
  body = []
  for i, (entry, row) in enumerate(zip(entries, rows, strict=True)):
    chip = f'<i style="background:var({colours[entry.trial.id]})"></i>'
    kind = ("away" if not entry.listed else "best" if i == 0 and row["state"] == "done" else "")
    state = row["state"] + (f": {row['why']}" if row["why"] else "") + (
      "" if entry.listed else ", no longer in the sweep")
    cells = [f'<td class="word">{html_lib.escape(shown(v[i]))}</td>' for v in settings.values()]
    cells += [f'<td class="word">{html_lib.escape(state[:160])}</td>',
              f"<td><b>{_number(row['objective'])}</b></td>"]
    cells += [f"<td>{_number(row[c])}</td>" for _, some in groups for c in some]
    cells += [f"<td>{row['steps']}</td><td>{row['starts']}</td><td>{row['seconds']:.0f}</td>"
              f"<td>{_number(row['tokens_per_s'])}</td>"]
    of = html_lib.escape(entry.trial.run.name, quote=True)
    body.append(f'<tr class="{kind}" data-of="{of}"><th scope="row">{chip}{of}</th>'
                f"{''.join(cells)}</tr>")
  return ('<div class="scroll" tabindex="0" role="region" aria-label="all trials"><table '
          f'class="scores"><thead>{head}</thead><tbody>{"".join(body)}</tbody></table></div>'
          '<p class="note">Losses in nats per target. Of training: means over the last tenth of '
          "the steps. Held out: of the last evaluation.</p>")


def _unit(column: str) -> str:
  name = column.removeprefix("eval/")
  return dict(_UNITS.values()).get(name, name.removeprefix("loss/"))


def _number(value: float | None) -> str:
  return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _curves(entries: Sequence[Entry], colours: dict[str, str]) -> str:
  out = []
  for kind in ("all", *vocab_lib.MODALITIES):
    for where in ("training", "held out"):
      name = "loss" if kind == "all" else f"loss/{kind}"
      key = name if where == "training" else f"eval/{name}"
      curves = []
      for entry in reversed(entries):  # the best on top
        found = figures.curve(entry.trial, key)
        curves.append(charts.Curve(entry.trial.run.name, colours[entry.trial.id],
                                   [x for x, _ in found], [y for _, y in found],
                                   smooth=where == "training"))
      if any(y is not None for c in curves for y in c.y):
        title = f"{'Loss' if kind == 'all' else f'Loss of {kind}'}, {where}"
        svg = charts.lines(curves, title=title, x_label="step", y_label="nats per target",
                           many=True)
        out.append(f"<figure><figcaption><h3>{title}</h3></figcaption>{svg}</figure>")
  return (f'<div class="charts">{"".join(out)}</div><p class="note">Blue is the best trial, orange '
          "the worst; point at one to see it everywhere.</p>")


def _settings(entries: Sequence[Entry], rows: Sequence[dict[str, Any]],
              settings: dict[str, list[Any]], objective: Objective, colours: dict[str, str]) -> str:
  out = []
  for name, values in settings.items():
    found = [charts.Point(e.trial.run.name, colours[e.trial.id],
                          v if isinstance(v, int | float) else shown(v), row["objective"])
             for e, row, v in zip(entries, rows, values, strict=True)
             if row["objective"] is not None and row["state"] == "done"]
    if found:
      svg = charts.points(found, title=f"{objective.name} by {name}", x_label=name,
                          y_label=objective.name)
      out.append(f"<figure><figcaption><h3>{html_lib.escape(name)}</h3></figcaption>{svg}</figure>")
  if not out:
    return '<p class="none">No trial is done, or all have the same settings.</p>'
  return f'<div class="charts">{"".join(out)}</div>'
