"""The page of a batch: its rows in colour, what fills them, and every document to read and hear.

Nothing on it needs a script or another file. What colour says, words say, too.
"""

from __future__ import annotations

import collections
import dataclasses
import html
from typing import TYPE_CHECKING

import numpy as np

from omnijax.evals import media, packing, report_style, segments

if TYPE_CHECKING:
  from omnijax.evals.show import Document, Shown

_TABLE = 600  # positions of a document that are also shown one by one
_esc = html.escape
_CONTROLS = {
  "BOS": "a document begins", "EOS": "the document ends", "USER": "what follows is said to the "
  "model", "ASSIST": "what follows is said by the model", "LISTEN": "frames that are heard follow",
  "SPEAK": "frames that the model speaks follow", "END": "the sound ends", "\u00b7": "nothing"}


def page(m: Shown) -> str:
  """The whole page."""
  rows = len(m.rows)
  about = lambda row, segment: (f"#r{row}d{segment}", _label(m, row, segment))
  body = (
    f'{_facts(m)}<nav aria-label="Sections"><a href="#rows">Rows</a><a href="#from">Sources</a>'
    + "".join(f'<a href="#r{i}">Row {i}</a>' for i in range(rows)) + "</nav>"
    f'<section id="rows" aria-labelledby="rows-h"><h2 id="rows-h">Rows</h2>'
    f"<p>The first {rows} of the {m.run.data.rows} rows of the batch. Documents alternate in "
    "shade; none sees another. Each is a link to what it says. Beneath a row is where the loss "
    f'is, the higher the more it counts.</p><div class="scroll">'
    f"{packing.packed(m.batch, m.vocab, rows, about)}</div>{_budgets(m)}</section>"
    f'<section id="from" aria-labelledby="from-h"><h2 id="from-h">Sources</h2>'
    f"{_sources(m)}{_weights(m)}</section>"
    + "".join(_row(m, i) for i in range(rows)))
  return report_style.page(f"{m.run.name}: the batch of step {m.step}", body,
                           css=media.CSS + _CSS)


def _facts(m: Shown) -> str:
  S, F = m.run.data.positions, m.run.data.frames
  positions = sum(d.positions for d in m.everything) / (m.run.data.rows * S)
  frames = sum(d.frames for d in m.everything) / (m.run.data.rows * F)
  used = m.batch["segment"] > 0
  learnt = np.stack([packing.learnt_codes(m.batch, i) for i in range(len(m.rows))]) > 0
  learnt = float(((m.batch["weight"] > 0) | learnt).sum() / max(used.sum(), 1))
  facts = [(f"{m.run.data.rows} \u00d7 {S}", "rows \u00d7 positions"),
           (f"{positions:.1%}", "positions used"), (f"{1 - positions:.1%}", "padding"),
           (f"{frames:.1%}", f"of {m.run.data.rows} \u00d7 {F} frames used"),
           (f"{len(m.everything):,}", "documents"),
           (f"{learnt:.0%}", "of positions shown are learnt")]
  notes = "".join(f"<li>{_esc(note)}</li>" for note in m.notes)
  return ("<p>Read back from the arrays that training gets: text, pictures and sound are decoded "
          "from the tokens of the batch itself. It begins with row "
          f"{m.first:,} of the plan.</p>" + (f'<ul class="note">{notes}</ul>' if notes else "")
          + '<dl class="facts">'
          + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for v, k in facts) + "</dl>")


def _bar(n: float, of: float) -> str:
  share = n / max(of, 1)
  return f'<span class="bar"><b>{share:.1%}</b><i style="--w:{share:.3f}"></i></span>'


def _budgets(m: Shown) -> str:
  S, F, rows = m.run.data.positions, m.run.data.frames, []
  for i, documents in enumerate(m.rows):
    used = int((m.batch["segment"][i] > 0).sum())
    frames = int((m.batch["frame_at"][i] < S).sum())
    learnt = int((m.batch["weight"][i] > 0).sum())
    codes = int((m.batch["frame_weight"][i] > 0).any(1).sum())
    rows.append([f'<a href="#r{i}">{i}</a>', f"{len(documents)}",
                 f"{used} of {S} {_bar(used, S)}", f"{(S - used) / S:.1%}",
                 f"{frames} of {F} {_bar(frames, F)}", f"{learnt}", f"{codes}"])
  head = ("row", "documents", "positions", "padding", "frames", "learnt positions", "learnt frames")
  return media.table("What fills each row", head, rows)


def _sources(m: Shown) -> str:
  total = sum(d.positions for d in m.everything)
  rows = []
  for name, (low, high) in m.epochs.items():
    mine = [d for d in m.everything if d.source == name]
    tasks = collections.Counter(d.task for d in mine)
    positions = sum(d.positions for d in mine)
    unfit = m.stats["unfit"][name]
    rows.append([
      f"<code>{_esc(name)}</code>", f"{m.stats['documents'][name]:,}", f"{low:.4g} to {high:.4g}",
      f"{unfit:,}", f"{len(mine)}", f"{positions:,} {_bar(positions, total)}",
      f"{sum(d.frames for d in mine):,}",
      ", ".join(f"{task} {n}" for task, n in tasks.most_common()) or "none"])
  return media.table("Of the whole batch", (
    "source", "documents it has", "epochs it is in", "fit no row", "documents in this batch",
    "positions", "frames", "tasks"), rows)


def _weights(m: Shown) -> str:
  shares = ", ".join(f"{name.replace('_', ' ')} {value:g}"
                     for name, value in dataclasses.asdict(m.run.loss).items() if name != "chunk")
  controls = "; ".join(f"<b>{name}</b> {meaning}" for name, meaning in _CONTROLS.items())
  return ("<p>\u00d7N at a token is its weight in the loss: \u00d70 is only read, what the user "
          f"says counts \u00d7{m.run.data.prompt_weight:g}. On top of that the loss weighs kinds: "
          f"{_esc(shares)}.</p><p>Control tokens: {controls}; <b>rows</b> and <b>cols</b> the size "
          "of a picture that follows, in codes.</p>")


def _label(m: Shown, row: int, segment: int) -> str:
  found = m.rows[row][segment - 1]
  parts = [s.kind for p in found.pieces for s in p.sounds]
  parts += [p.kind for p in found.pieces if p.kind in ("text", "image")]
  return (f"row {row}, document {segment}: {found.placed.task}, {found.placed.positions} "
          "positions, " + ", ".join(kind for kind in packing.KINDS if kind in parts))


def _row(m: Shown, row: int) -> str:
  documents = "".join(_document(m, row, i, d) for i, d in enumerate(m.rows[row], 1))
  pad = int((m.batch["segment"][row] == 0).sum())
  return (f'<section id="r{row}" aria-labelledby="r{row}-h"><h2 id="r{row}-h">Row {row}</h2>'
          f"{documents}<p class=\"note\">{pad} positions of padding follow.</p></section>")


def _document(m: Shown, row: int, segment: int, found: Document) -> str:
  placed, pieces = found.placed, found.pieces
  first, last = pieces[0].start, pieces[-1].stop - 1
  told = f"{placed.task}, positions {first} to {last}"
  told += ", a piece of one that is too long for a row" if placed.piece else ""
  told += f", {placed.frames} frames" if placed.frames else ""
  told += ", what asks for the picture is left out" if placed.dropped else ""
  count = last + 1 - first
  if count > _TABLE:
    table = f'<p class="note">{count} positions: too many to list them one by one.</p>'
  else:
    table = ("<details><summary>Position by position</summary>" + packing.document(
      m.batch, row, segment, m.vocab, lambda i: m.text.decode([i])) + "</details>")
  name = f"r{row}d{segment}"
  return (f'<article id="{name}" aria-labelledby="{name}-h"><h3 id="{name}-h">Document {segment} '
          f"<small><code>{_esc(placed.source)}</code> #{placed.document}: {told}</small></h3>"
          f'<div class="flow">{"".join(_piece(m, p) for p in pieces)}</div>{table}</article>')


def _piece(m: Shown, piece: segments.Piece) -> str:
  if piece.kind == "control":
    name = packing.name(int(piece.ids[0]), m.vocab, str)
    return _chip("control", _esc(name), piece.weight, _CONTROLS.get(name, "size of a picture"))
  if piece.kind == "text":
    return _chip("text", f"<q>{_esc(m.text.decode(piece.ids.tolist()))}</q>", piece.weight,
                 f"text of {len(piece.ids)} tokens")
  if piece.kind == "image":
    h, w = piece.ids.shape
    shown = media.picture(m.media[media.key(piece.ids)], f"picture of {h} by {w} codes, decoded")
    return _chip("image", shown + f"<small>{h} \u00d7 {w} codes</small>", piece.weight, "a picture")
  return _sound(m, piece)


def _chip(kind: str, content: str, weight: tuple[float, float], title: str) -> str:
  quiet = "" if weight[1] else " quiet"
  return (f'<span class="piece{quiet}" style="--c:var({packing.KINDS[kind]})" title="{title}">'
          f"{content} <small>\u00d7{_weight(weight)}</small></span>")


def _weight(weight: tuple[float, float]) -> str:
  low, high = weight
  return f"{high:.3g}" if low == high else f"{low:.3g}\u2013{high:.3g}"


def _sound(m: Shown, piece: segments.Piece) -> str:
  """Both sides of a recording, and the words of the main stream at their frames."""
  out, seconds = [], m.frame_s
  for s in piece.sounds:
    T = len(s.codes)
    played = media.sound(m.media[media.key(segments.audible(s, m.vocab))], m.rate,
                         f"{s.kind}, {T} frames, decoded")
    told = f"{s.kind}: {T} frames, {T * seconds:.2f} s; " + (
      f"{s.learnt} of {s.codes.size} codes are learnt" if s.learnt else "its codes are only read")
    if s.hidden:
      told += (f"; {s.hidden / s.codes.size:.0%} of its codes are hidden from the model, which are "
               "played as the nearest that are not")
    out.append(f'<span class="side" style="--c:var({packing.KINDS[s.kind]})">{played}'
               f"<small>{told}</small></span>")
  words = "".join(f"<li><time>{media.at(frame * seconds)}</time> "
                  f"{_word(m, token)}</li>" for frame, token in piece.words)
  inner = (f'<ol class="words" aria-label="words beside the frames">{words}</ol>' if words else
           "<small>no words beside these frames</small>")
  kind = piece.sounds[0].kind
  quiet = "" if piece.weight[1] or any(s.learnt for s in piece.sounds) else " quiet"
  return (f'<div class="piece frames{quiet}" style="--c:var({packing.KINDS[kind]})">{"".join(out)}'
          f"{inner}<small>main tokens \u00d7{_weight(piece.weight)}</small></div>")


def _word(m: Shown, token: int) -> str:
  name = _esc(packing.name(token, m.vocab, lambda i: m.text.decode([i])))
  return f"<q>{name}</q>" if token >= m.vocab.text_start else name


_CSS = """
.packed{min-width:600px}.packed a:focus-visible rect{stroke:var(--accent);stroke-width:3}
article:target{outline:3px solid var(--accent)}
.scores td .bar{display:inline-block;min-width:0;white-space:nowrap;margin-left:8px}
.scores td .bar b{min-width:4.4em}
"""
