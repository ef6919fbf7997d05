"""The page of a report: its sections from top to bottom. Charts and media are in charts.py.

No script is needed to read it, nothing is fetched, and every picture and sound has a name for
screen readers.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
from PIL import Image

from omnijax import vocab as vocab_lib
from omnijax.evals import charts, packing, report_style
from omnijax.evals.directions import DIGITS, Answer, confusion

if TYPE_CHECKING:
  from omnijax.evals.report import Material

_SHOWN = 9  # examples of a direction, the first of those asked
_WRONG = 6  # and mistakes beyond them
_ROWS = 8  # of a packed batch
_ICON = {"text": "Aa", "image": "\u25a3", "speech": "\u266a"}
_esc = html.escape


def page(m: Material, values: Mapping[str, Any]) -> str:
  """The whole page. values: what `report.summary` returned."""
  sections = [
    ("directions", "Each to each", _directions(m, values["directions"])),
    ("learning", "Learning", _learning(m)),
    ("packing", "How a batch is packed", _packing(m)),
    ("tokenizers", "Tokenizers", _tokenizers(m)),
    ("judges", "Judges", _judges(m.judges)),
    ("sources", "Sources and licences of the data", markdown(m.sources)),
  ]
  menu = "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in sections)
  body = "".join(f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{name}</h2>'
                 f"{text}</section>" for key, name, text in sections)
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width,initial-scale=1">'
    f"<title>{_esc(m.title)}: report</title><style>{report_style.CSS}</style></head><body>"
    f'<a class="skip" href="#directions">Skip to the results</a><header><h1>{_esc(m.title)}</h1>'
    f"<p>One Transformer, trained here from scratch, that reads and writes text, pictures and "
    f"speech.</p>{_facts(m)}<nav aria-label=\"Sections\">{menu}</nav></header>"
    f"<main>{body}</main><script>{report_style.SCRIPT}</script></body></html>")


def _facts(m: Material) -> str:
  """The run in a few large figures, and where its time went."""
  train = m.train
  facts = [(_minutes(train["seconds"]), "training"), (f"{train['steps']:,}", "steps")]
  if "parameters" in train:
    facts.append((f"{train['parameters'] / 1e6:.1f} M", "parameters"))
  if "peak_memory_gib" in train:
    facts.append((f"{train['peak_memory_gib']:.1f} GiB", "peak memory"))
  facts.append((_minutes(sum(m.stages.values())), "everything"))
  stages = ", ".join(f"{_esc(name)} {_minutes(s)}" for name, s in m.stages.items())
  return ('<dl class="facts">' + "".join(
    f"<div><dt>{name}</dt><dd>{value}</dd></div>" for value, name in facts)
    + f'</dl><p class="note">Time of each stage: {stages}.</p>')


def _minutes(seconds: float) -> str:
  return f"{seconds:.0f} s" if seconds < 99.5 else f"{seconds / 60:.1f} min"


# --- directions --------------------------------------------------------------


def _directions(m: Material, scores: Mapping[str, Any]) -> str:
  table = _score_table(scores, m.judges)
  cards = "".join(_direction(m, name, answers, scores[name])
                  for name, answers in m.answers.items())
  return (f"<p>Every input below is new to the model: held-out pictures, and recordings of voices "
          f"that it never heard. Pictures and speech that it makes are judged by classifiers that "
          f"have only ever seen real data; words are compared exactly.</p>{table}{cards}")


def _score_table(scores: Mapping[str, Any], judges: Mapping[str, Any]) -> str:
  languages = sorted({la for s in scores.values() for la in s["by_language"]})
  head = "".join(f'<th scope="col">{_esc(la)}</th>' for la in languages)
  rows = []
  for name, s in scores.items():
    cells = "".join(_share(s["by_language"].get(la, {}).get("accuracy")) for la in languages)
    to = name.split("->")[1]
    judge = f"{judges[to]['accuracy']:.1%}" if to in judges else "exact"
    rows.append(f'<tr><th scope="row"><a href="#{_slug(name)}">{_arrow(name)}</a></th>'
                f'<td class="bar"><b>{s["accuracy"]:.1%}</b> <i style="--w:{s["accuracy"]:.3f}">'
                f'</i></td>{_share(s["digit_accuracy"])}{cells}<td>{s["n"]}</td>'
                f"<td>{judge}</td></tr>")
  return ('<div class="scroll" tabindex="0" role="region" aria-label="Accuracy by direction">'
          '<table class="scores"><caption>Held-out accuracy. Speech is right if digit and language '
          "are; the next column counts the digit alone. Last: the judge's own accuracy on real "
          'data.</caption><thead><tr><th scope="col">direction</th><th scope="col">accuracy</th>'
          f'<th scope="col">digit</th>{head}<th scope="col">answers</th><th scope="col">judge</th>'
          f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>")


def _share(x: float | None) -> str:
  return "<td>\u2013</td>" if x is None else f'<td class="heat" style="--w:{x:.3f}">{x:.0%}</td>'


def _direction(m: Material, name: str, answers: Sequence[Answer], score: Mapping[str, Any]) -> str:
  shown = answers[:_SHOWN]
  wrong = [a for a in answers[_SHOWN:] if not a.right][:_WRONG]
  examples = "".join(_example(m, a) for a in shown)
  more = ("" if not wrong else f'<details><summary>Mistakes beyond these</summary><div '
          f'class="examples">{"".join(_example(m, a) for a in wrong)}</div></details>')
  voices = ""
  if "by_voice" in score:
    voices = " By voice: " + ", ".join(
      f"{_esc(kind)} {s['accuracy']:.0%} of {s['n']}"
      for kind, s in score["by_voice"].items()) + "."
  return (f'<article id="{_slug(name)}"><h3>{_arrow(name)} <small>{score["accuracy"]:.1%} of '
          f'{score["n"]}</small></h3><div class="side"><div><p class="note">The first {len(shown)} '
          f"of the questions, not picked.{voices}</p><div class=\"examples\">{examples}</div>{more}"
          f"</div>{_confusion(name, answers)}</div></article>")


def _example(m: Material, a: Answer) -> str:
  """A question and its answer, with a mark that doesn't depend on colour."""
  mark = ("\u2713", "right", "right") if a.right else ("\u2717", "wrong", "wrong")
  asked = "".join(_part(part, a, m) for part in a.case.prompt)
  said = f'<span class="said">{_esc(a.text)}</span>' if a.text else ""
  if a.file is None:
    got = f'<span class="word">{_esc(a.text or "") or "(nothing)"}</span>'
  elif a.file.endswith(".png"):
    got = said + _picture(np.asarray(Image.open(m.answers_dir / a.file)),
                          f"drawn for {a.case.digit}")
  else:
    wave_T, rate = soundfile.read(m.answers_dir / a.file, dtype="float32")
    got = _sound(wave_T, rate, f"spoken for {a.case.digit} in {a.case.language}")
    got += said
  seen = "nothing" if a.digit is None else str(a.digit)
  if a.language is not None and not a.case.direction.endswith("image"):
    seen += f" {a.language}"
  return (f'<figure class="example {mark[2]}"><div class="asked">{asked}</div>'
          f'<div class="arrow" aria-label="becomes">\u2192</div><div class="got">{got}</div>'
          f'<figcaption><b aria-label="{mark[1]}">{mark[0]}</b> wanted {a.case.digit} '
          f"{_esc(a.case.language)}, got {_esc(seen)}</figcaption></figure>")


def _part(part: Mapping[str, str], a: Answer, m: Material) -> str:
  if "text" in part:
    return f'<span class="word">{_esc(part["text"])}</span>'
  if "image" in part:
    return _picture(np.asarray(Image.open(part["image"])), f"handwritten {a.case.digit}")
  wave_T, rate = soundfile.read(part["audio"], dtype="float32")
  voice = f" by {a.case.voice}" if a.case.voice else ""
  return _sound(wave_T, rate, f"{a.case.digit} in {a.case.language}{voice}")


def _picture(pixels: np.ndarray, name: str) -> str:
  return f'<img class="pixels" src="{charts.png(pixels)}" alt="{_esc(name, quote=True)}">'


def _sound(wave_T: np.ndarray, rate: int, name: str) -> str:
  """A button with the sound's spectrogram that plays it; without scripts, the browser's player."""
  label = _esc(name, quote=True)
  width = max(40, min(150, len(wave_T) / rate * 110))
  return (f'<span class="sound"><button type="button" aria-label="Play: {label}">'
          f'<img src="{charts.spectrogram(wave_T, rate)}" alt="" style="width:{width:.0f}px">'
          f'</button><audio controls preload="none" aria-label="{label}" '
          f'src="{charts.flac(wave_T, rate)}"></audio></span>')


def _confusion(name: str, answers: Sequence[Answer]) -> str:
  counts = confusion(answers)
  last = DIGITS + 1 if counts[:, DIGITS].any() else DIGITS
  head = "".join(f'<th scope="col">{d if d < DIGITS else "none"}</th>' for d in range(last))
  rows = []
  for digit in range(DIGITS):
    total = max(counts[digit].sum(), 1)
    cells = "".join(
      f'<td style="--w:{counts[digit, d] / total:.2f}"'
      f'{" class=hit" if d == digit else ""}>{counts[digit, d] or ""}</td>' for d in range(last))
    rows.append(f'<tr><th scope="row">{digit}</th>{cells}</tr>')
  return (f'<table class="confusion"><caption>{_arrow(name)}: wanted digit down, judged digit '
          f"across</caption><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
          f"</table>")


def _slug(name: str) -> str:
  return name.replace("->", "-to-")


def _arrow(name: str) -> str:
  start, end = name.split("->")
  icon = lambda k: f'<span aria-hidden="true">{_ICON[k]}</span> {k}'
  return f"{icon(start)} \u2192 {icon(end)}"


# --- learning and packing ----------------------------------------------------


def _learning(m: Material) -> str:
  def curve(key: str, label: str, colour: str, smooth: bool = True, scale: float = 1.0
            ) -> charts.Curve:
    points = [(r["step"], None if r[key] is None else r[key] * scale)
              for r in m.metrics if key in r]
    return charts.Curve(label, colour, [x for x, _ in points], [y for _, y in points], smooth)

  figures: list[tuple[str, str, str]] = []
  for kind, colour in zip(vocab_lib.MODALITIES, ("--text", "--image", "--speak"), strict=True):
    curves = [curve(f"loss/{kind}", kind, colour)]
    if kind == "audio":
      curves.append(curve("loss/first_codebook", "first codebook", "--listen"))
    curves.append(curve(f"eval/loss/{kind}", "held out", "--ink", False))
    figures.append((f"Loss of {kind}", charts.lines(
      curves, title=f"Loss of {kind}", x_label="step", y_label="nats per token"),
      _physical(m.metrics, kind)))
  figures.append(("Speed", charts.lines(
    [curve("tokens_per_s", "positions per second", "--text")], title="Speed", x_label="step",
    y_label="positions / s"), ""))
  figures.append(("Use of the hardware", charts.lines(
    [curve("mfu", "model FLOPs utilisation", "--image", True, 100)], title="Use of the hardware",
    x_label="step", y_label="% of peak", percent=True), _waiting(m)))
  return '<div class="charts">' + "".join(
    f"<figure><figcaption><h3>{title}</h3></figcaption>{svg}<p class=\"note\">{note}</p></figure>"
    for title, svg, note in figures) + "</div>"


_UNITS = {"text": ("bits_per_byte", "bits per byte of text"),
          "image": ("bits_per_pixel", "bits per pixel"),
          "audio": ("bits_per_second", "bits per second of sound")}


def _physical(metrics: Sequence[Mapping[str, Any]], kind: str) -> str:
  key, unit = _UNITS[kind]
  last = [r[key] for r in metrics if r.get(key) is not None][-20:]
  return f"At the end {np.mean(last):.3g} {unit}." if last else ""


def _waiting(m: Material) -> str:
  if "data_wait" not in m.train:
    return ""
  return (f"Median {m.train['tokens_per_s']:,.0f} positions per second; {m.train['data_wait']:.2%} "
          f"of the time was spent waiting for data.")


def _packing(m: Material) -> str:
  row, segment = _typical(m)
  return ("<p>Documents are packed into rows of fixed length; none sees another. A position holds "
          "one token of the main stream and perhaps one 80 ms frame of sound, heard or spoken. "
          "Documents alternate in shade; beneath each row is where the loss is, the higher the "
          f"more it counts.</p>{packing.packed(m.batch, m.vocab, _ROWS)}"
          "<h3>One document, position by position</h3><p class=\"note\">Numbers are codes, a dot "
          "is nothing there. Tokens in italics are given, not learnt.</p>"
          + packing.document(m.batch, row, segment, m.vocab, m.piece))


def _typical(m: Material) -> tuple[int, int]:
  """The document of most different kinds, and of those the shortest."""
  best = (0, 0, 0, 1)
  for row in range(min(_ROWS, len(m.batch["main"]))):
    kind_S = np.array(packing.kinds(m.batch, row, m.vocab))
    segment_S = m.batch["segment"][row]
    for segment in range(1, int(segment_S.max()) + 1):
      mine = kind_S[segment_S == segment]
      best = max(best, (len(set(mine)), -len(mine), -row, segment))
  return -best[2], best[3]


# --- tokenizers, judges, sources ---------------------------------------------


def _tokenizers(m: Material) -> str:
  image = np.sort(m.image_use)[::-1] / max(m.image_use.sum(), 1) * 100
  use = charts.lines(
    [charts.Curve("image codes", "--image", range(1, len(image) + 1), image.tolist(), False)],
    title="Use of the image codes", x_label="code, most used first", y_label="% of all codes",
    percent=True)
  rows = []
  for q, counts in enumerate(m.audio_use):
    share = counts / max(counts.sum(), 1)
    seen = share[share > 0]
    perplexity = 2 ** float(-(seen * np.log2(seen)).sum())
    rows.append(f'<tr><th scope="row">codebook {q + 1}</th><td class="bar"><b>{len(seen)}</b>'
                f'<i style="--w:{len(seen) / len(counts):.3f}"></i></td><td class="bar"><b>'
                f'{perplexity:.0f}</b><i style="--w:{perplexity / len(counts):.3f}"></i></td></tr>')
  audio = ('<table class="scores"><caption>Use of the audio codes, of '
           f'{m.audio_use.shape[1]} in each codebook</caption><thead><tr><td></td><th scope="col">'
           'seen</th><th scope="col">perplexity</th></tr></thead><tbody>'
           f"{''.join(rows)}</tbody></table>")
  pairs = "".join(
    f'<figure class="example">{_picture(p.original, p.label)}<div class="arrow">\u2192</div>'
    f"{_picture(p.decoded, p.label + ', decoded')}<figcaption>{_esc(p.label)}</figcaption></figure>"
    for p in m.pictures)
  pairs += "".join(
    f'<figure class="example">{_sound(s.original, m.rate, s.label)}<div class="arrow">\u2192</div>'
    f"{_sound(s.decoded, m.rate, s.label + ', decoded')}<figcaption>{_esc(s.label)}</figcaption>"
    "</figure>" for s in m.sounds)
  return (f'<p>What the codes keep: original \u2192 decoded from codes, of held-out pictures and '
          f'voices.</p><div class="examples wide">{pairs}</div><div class="charts"><figure>'
          f"<figcaption><h3>Use of the image codes</h3></figcaption>{use}</figure><figure>{audio}"
          f"</figure></div>{_figures(m.tokenizers)}")


def _judges(judges: Mapping[str, Any]) -> str:
  return ("<p>Classifiers trained on real pictures and recordings only. Their accuracy on held-out "
          "real ones bounds what can be measured above.</p>" + _figures(judges))


def _figures(values: Mapping[str, Any]) -> str:
  """Nested figures as one table for each name at the top."""
  out = []
  for name, inner in values.items():
    rows = "".join(f'<tr><th scope="row">{_esc(key)}</th><td>{value}</td></tr>'
                   for key, value in _flat(inner))
    out.append(f'<table class="figures"><caption>{_esc(name)}</caption><tbody>{rows}</tbody>'
               "</table>")
  return f'<div class="tables">{"".join(out)}</div>'


def _flat(values: Any, at: str = "") -> Iterator[tuple[str, str]]:
  if at and isinstance(values, Mapping) and "accuracy" in values:
    digit = f", digit {values['digit_accuracy']:.1%}" if "digit_accuracy" in values else ""
    yield at, f"{values['accuracy']:.1%}{digit} of {values['n']:,}"
  elif isinstance(values, Mapping):
    for key, inner in values.items():
      name = str(key).replace("_", " ")
      yield from _flat(inner, f"{at} / {name}" if at else name)
  elif isinstance(values, float):
    share = at.endswith("accuracy") or at.endswith("used")
    yield at, f"{values:.1%}" if share else f"{values:.4g}"
  elif isinstance(values, list | tuple):
    yield at, _esc(", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in values))
  else:
    yield at, _esc(f"{values:,}" if isinstance(values, int) else str(values))


def markdown(text: str) -> str:
  """Headings, tables, paragraphs and `code` of Markdown; the rest is shown as it is."""
  out = []
  for block in re.split(r"\n\s*\n", text.strip()):
    lines = block.splitlines()
    if lines[0].startswith("#"):
      level = min(len(lines[0]) - len(lines[0].lstrip("#")) + 2, 6)
      out.append(f"<h{level}>{_inline(lines[0].lstrip('# '))}</h{level}>")
      lines = lines[1:]
    if lines and lines[0].startswith("|"):
      cells = [[c.strip() for c in line.strip().strip("|").split("|")] for line in lines]
      head = "".join(f'<th scope="col">{_inline(c)}</th>' for c in cells[0])
      body = "".join("<tr>" + "".join(f"<td>{_inline(c)}</td>" for c in row) + "</tr>"
                     for row in cells[2:])
      out.append(f'<div class="scroll" tabindex="0" role="region" aria-label="table"><table '
                 f'class="prose"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')
    elif lines:
      out.append(f"<p>{_inline(' '.join(lines))}</p>")
  return "".join(out)


def _inline(text: str) -> str:
  return re.sub(r"`([^`]+)`", r"<code>\1</code>", _esc(text))
