"""The page about a directory of records: figures, lengths, what was rejected, and examples.

Pictures and sounds are decoded from the records, so they are what training can know of them.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omnijax import vocab as vocab_lib
from omnijax.data import documents
from omnijax.data.prepare import HELDOUT
from omnijax.data.records import Records
from omnijax.evals import charts, media, packing, report_style

_LONGEST_S = 30.0  # of a recording that is played
_esc = html.escape
_TASKS = {"plain": "parts in their order", "caption": "picture, then text",
          "draw": "text, then picture", "transcribe": "sound, then its words",
          "speak": "words, then their sound", "follow": "words while they are heard"}
_ROLES = {number: name for name, number in documents.ROLES.items()}


def page(records: Records, tokenizers: Any, values: Mapping[str, Any]) -> str:
  """The whole page.

  Args:
    records: finished.
    tokenizers: that made them.
    values: what is in report.json.
  """
  sections = [("lengths", "Lengths", _lengths(values)), ("tasks", "Tasks", _tasks(values)),
              ("examples", "Examples", _examples(records, tokenizers, values["examples"]))]
  if "rejects" in values:
    sections.insert(2, ("rejects", "Rejected", _rejects(values)))
  menu = "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in sections)
  body = _facts(values) + f'<nav aria-label="Sections">{menu}</nav>' + "".join(
    f'<section id="{key}" aria-labelledby="{key}-h"><h2 id="{key}-h">{name}</h2>{text}</section>'
    for key, name, text in sections)
  return report_style.page(f"Records of {values['source']}", body, css=media.CSS)


def _facts(values: Mapping[str, Any]) -> str:
  facts = [("items", f"{values['items']:,}"), ("documents", f"{values['documents']:,}")]
  facts += [(name, f"{values[key]:,}") for key, name in (
    ("heldout", "held out"), ("rejected", "rejected")) if key in values]
  if "audio" in values:
    hours = values["audio"]["hours"]
    facts.append(("hours of audio", f"{hours:,.1f}") if hours >= 1 else
                 ("minutes of audio", f"{hours * 60:.1f}"))
  if "images" in values:
    facts.append(("megapixels", f"{values['images']['megapixels']:,.3g}"))
  facts.append(("positions", f"{values['positions']['total']:,}"))
  parts = values["parts"]
  rows = [[name, f"{parts[name]:,}" if name in parts else "", f"{n:,}"]
          for name, n in values["tokens"].items()]
  more = []
  if "audio" in values:
    a = values["audio"]
    more.append(f"{a['frames']:,} frames of audio; recordings are stored once, in all "
                f"{a['stored_hours']:,.3g} h")
    if a["other_side_hours"]:
      more.append(f"of dialogues {a['other_side_hours']:.3g} h are the other side")
  if "images" in values:
    more.append(f"pictures are stored once, in all {values['images']['stored_megapixels']:.3g} "
                "megapixels")
  if values.get("heldout"):
    more.append(f'<a href="{HELDOUT}/report.html">what is held out</a> has a report of its own')
  return ('<dl class="facts">' + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in facts)
          + "</dl>" + media.table("Tokens of each modality, as often as documents have them",
                                  ("", "parts", "tokens"), rows)
          + f'<p class="note">{"; ".join(more)}.</p>' * bool(more))


def _lengths(values: Mapping[str, Any]) -> str:
  out = []
  for name, colour in (("positions", "--text"), ("frames", "--speak")):
    x = values[name]
    svg = charts.bars(x["edges"], x["counts"], colour=colour, title=f"Documents by {name}",
                      x_label=f"{name} of a document", y_label="documents")
    out.append(f"<figure><figcaption><h3>{name.capitalize()}</h3></figcaption>{svg}"
               f"<p class=\"note\">{x['total']:,} in all; {x['least']:,} to {x['most']:,}, median "
               f"{x['median']:,g}, mean {x['mean']:,.1f}.</p></figure>")
  return ("<p>Of the documents as they are, without delays. Each bar is half a doubling.</p>"
          f'<div class="charts">{"".join(out)}</div>')


def _tasks(values: Mapping[str, Any]) -> str:
  rows = [[task, _TASKS[task], f"{n:,}", f"{n / max(values['documents'], 1):.1%}"]
          for task, n in values["tasks"].items()]
  return media.table("What documents can be rendered to", ("task", "", "documents", "share"), rows)


def _rejects(values: Mapping[str, Any]) -> str:
  said = (f"{values['items']:,} items = {values['documents']:,} documents + {values['heldout']:,} "
          f"held out + {values['rejected']:,} rejected")
  if not values["rejects"]:
    return f"<p>Nothing was rejected: {said}.</p>"
  out = [f"<p>{said}. Each is named in <code>rejects.jsonl</code>; here are the first of each "
         "reason.</p>"]
  for entry in values["rejects"]:
    rows = [[f"{e['line']}", f"<code>{_esc(str(e['id']))}</code>", _esc(e["reason"])]
            for e in entry["examples"]]
    name = f"{entry['reason']}: {entry['count']:,}"
    out.append(media.table(name, ("line", "id", "reason"), rows))
  return "".join(out)


def _examples(records: Records, tokenizers: Any, chosen: Sequence[int]) -> str:
  found = {number: records.read(number) for number in chosen}
  cut = _cut(records)
  parts = [p for some in found.values() for p in some]
  of = media.decoded([p.codes for p in parts if p.kind == vocab_lib.IMAGE],
                     [codes[:cut] for p in parts if p.kind == vocab_lib.AUDIO
                      for codes in (p.codes, p.heard) if codes is not None], tokenizers)
  out = []
  for number, some in found.items():
    count = records.lengths[number : number + 1]
    allows = [task for task, ok in zip(documents.TASKS, documents.allowed(count)[0], strict=True)
              if ok]
    name = f"example-{number}"
    out.append(f'<article aria-labelledby="{name}"><h3 id="{name}">Document {number} '
               f"<small>{count['positions'][0]:,} positions, {count['frames'][0]:,} frames; "
               f"{', '.join(allows)}</small></h3><div class=\"flow\">"
               + "".join(_part(p, records, tokenizers, of, cut) for p in some)
               + "</div></article>")
  return ("<p>Some of each kind of document, spread over all. Pictures and sounds are what their "
          f"codes keep of them.</p>{''.join(out)}")


def _cut(records: Records) -> int:
  """Frames of a recording that are played."""
  audio = records.meta.tokenizers.get("audio")
  return int(_LONGEST_S * audio["sample_rate"] / audio["frame_size"]) if audio else 0


def _part(part: documents.Part, records: Records, tokenizers: Any, of: Mapping[bytes, np.ndarray],
          cut: int) -> str:
  role = f"<small>{_ROLES[part.role]}</small>" if part.role else ""
  if part.kind == vocab_lib.TEXT:
    return _chip("text", f"{role}<q>{_esc(tokenizers.text.decode(part.codes.tolist()))}</q>")
  if part.kind == vocab_lib.IMAGE:
    h, w = part.codes.shape
    shown = media.picture(of[media.key(part.codes)], f"picture of {h} by {w} codes, decoded")
    return _chip("image", f"{role}{shown}<small>{h} \u00d7 {w} codes</small>")
  audio = records.meta.tokenizers["audio"]
  frame_s, T = audio["frame_size"] / audio["sample_rate"], len(part.codes)
  told = f"{T} frames, {T * frame_s:.2f} s" + (f", the first {cut * frame_s:.0f} s played"
                                               if T > cut else "")
  sounds = [("sound", part.codes), ("heard meanwhile", part.heard)]
  played = "".join(
    f'<span class="side">{media.sound(of[media.key(codes[:cut])], audio["sample_rate"], name)}'
    f"<small>{name}, {told}</small></span>" for name, codes in sounds if codes is not None)
  return _chip("speech heard" if part.role == documents.USER else "speech spoken",
               role + played + _words(part, tokenizers.text, frame_s))


def _words(part: documents.Part, text: Any, frame_s: float) -> str:
  """The transcript: at the times of its words, where they are known."""
  if part.words is None:
    return "<small>no transcript</small>"
  if not part.timed:
    return f"<q>{_esc(text.decode(part.words.tolist()))}</q>"
  words = "".join(f"<li><time>{media.at(i * frame_s)}</time> <q>"
                  f"{_esc(text.decode([int(part.words[i])]))}</q></li>"
                  for i in np.flatnonzero(part.words >= 0))
  return f'<ol class="words" aria-label="words at their times">{words}</ol>'


def _chip(kind: str, content: str) -> str:
  return f'<span class="piece" style="--c:var({packing.KINDS[kind]})">{content}</span>'
