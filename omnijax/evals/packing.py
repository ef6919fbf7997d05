"""A packed batch as it is drawn: whole rows as SVG, one document as a table of its positions.

B rows  S positions of a row  F frames  P frames with targets  Q codebooks
"""

import html
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from omnijax import vocab as vocab_lib
from omnijax.evals import charts

# What a position can be, and its colour.
KINDS = {"control": "--control", "text": "--text", "image": "--image", "speech heard": "--listen",
         "speech spoken": "--speak"}
NO_LOSS = "no loss here"


def kinds(batch: Mapping[str, np.ndarray], row: int, vocab: vocab_lib.Vocab) -> list[str]:
  """For each position of a row, one of KINDS, or "" for padding."""
  S, Q = batch["main"].shape[1], vocab.codebooks
  block_S = vocab_lib.block_of(vocab, batch["main"][row])
  out = [("control", "text", "image")[max(b, 0)] for b in block_S]
  heard = _frames_of(batch, row, slice(Q, 2 * Q), vocab)
  for at in batch["frame_at"][row]:
    if at < S:
      out[at] = "speech heard" if at in heard else "speech spoken"
  # Of the frames that a delay leaves empty, the neighbours tell whose they are.
  audio = batch["modality"][row] == vocab_lib.AUDIO
  spoken = _frames_of(batch, row, slice(0, Q), vocab)
  for at in range(S - 1, -1, -1):
    if audio[at] and at not in heard and at not in spoken and at + 1 < S and audio[at + 1]:
      out[at] = out[at + 1]
  return ["" if segment == 0 else kind
          for kind, segment in zip(out, batch["segment"][row], strict=True)]


def _frames_of(batch: Mapping[str, np.ndarray], row: int, group: slice, vocab: vocab_lib.Vocab
               ) -> set[int]:
  has = (batch["frames"][row][:, group] != vocab.no_code).any(1)
  return set(batch["frame_at"][row][has].tolist())


# Beneath each row, where the loss is: of main tokens, and of the codes of speech.
_LEARNT = (("learnt: main token", "--ink"), ("learnt: codes of speech", "--speak"))


def packed(batch: Mapping[str, np.ndarray], vocab: vocab_lib.Vocab, rows: int,
           about: Callable[[int, int], tuple[str, str]] | None = None) -> str:
  """The first rows of a batch as SVG: runs of one kind in its colour, documents set apart.

  about: (row, segment) to the address and the name of a document, to which it then is a link.
  """
  B, S = batch["main"].shape
  rows, W, high, gap, left = min(rows, B), 1000, 20, 18, 34
  unit, heaviest = (W - left) / S, max(float(batch["weight"].max()), 1e-9)
  out = []
  for row in range(rows):
    y, segment_S = row * (high + gap), batch["segment"][row]
    out.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{row}</text>'
               f'<rect class="pad" x="{left}" y="{y}" width="{W - left}" height="{high}"/>')
    runs = _runs(kinds(batch, row, vocab), segment_S)
    for segment, mine in itertools.groupby(runs, key=lambda run: run[1]):
      shapes = []
      for kind, _, start, stop in mine:
        edge = 1.2 if start == 0 or segment_S[start - 1] != segment else 0
        x, width = left + start * unit + edge, (stop - start) * unit - edge
        shade = ' opacity=".62"' if segment % 2 == 0 else ""
        shapes.append(f'<rect style="fill:var({KINDS[kind]})"{shade} x="{x:.1f}" y="{y}" '
                      f'width="{max(width, .4):.1f}" height="{high}"><title>document {segment}: '
                      f"{kind}, {stop - start} positions</title></rect>")
      if about is not None:
        address, name = (html.escape(text, quote=True) for text in about(row, segment))
        shapes = [f'<a href="{address}" aria-label="{name}">', *shapes, "</a>"]
      out += shapes
    codes_S = learnt_codes(batch, row) > 0
    for weight_S, (_, colour), at in ((batch["weight"][row] / heaviest, _LEARNT[0], high + 2),
                                      (codes_S.astype(float), _LEARNT[1], high + 6)):
      for weight, start, stop in _equal(weight_S):
        tall = 3.2 * weight
        if weight:
          out.append(f'<rect style="fill:var({colour})" x="{left + start * unit:.1f}" '
                     f'y="{y + at + 3.2 - tall:.1f}" width="{(stop - start) * unit:.1f}" '
                     f'height="{tall:.1f}"/>')
  used = float((batch["segment"][:rows] > 0).mean())
  name = f"{rows} packed rows of {S} positions, {used:.1%} of them used"
  # What has links in it is a group: of a picture nobody would be told what is inside.
  return (f'<svg class="packed" viewBox="0 0 {W} {rows * (high + gap)}" '
          f'role="{"img" if about is None else "group"}" '
          f'aria-label="{name}">{"".join(out)}</svg>'
          + charts.legend([*KINDS.items(), ("padding", "--pad"), *_LEARNT]))


def learnt_codes(batch: Mapping[str, np.ndarray], row: int) -> np.ndarray:
  """The largest weight of the codes of speech at each position of a row: [S]."""
  weight_PQ = batch["frame_weight"][row]
  out_S = np.zeros(batch["main"].shape[1] + 1, np.float32)
  out_S[batch["frame_at"][row][: len(weight_PQ)]] = weight_PQ.max(1)
  return out_S[:-1]


def _equal(x_S: np.ndarray) -> list[tuple[float, int, int]]:
  """(value, start, stop) of each run of equal values."""
  edges = [0, *(np.flatnonzero(np.diff(x_S)) + 1).tolist(), len(x_S)]
  return [(float(x_S[a]), a, b) for a, b in itertools.pairwise(edges)]


def _runs(kind_S: Sequence[str], segment_S: np.ndarray) -> list[tuple[str, int, int, int]]:
  """(kind, segment, start, stop) of each run; padding is left out."""
  out, start = [], 0
  for at in range(1, len(kind_S) + 1):
    last = at == len(kind_S)
    if last or kind_S[at] != kind_S[start] or segment_S[at] != segment_S[start]:
      if kind_S[start]:
        out.append((kind_S[start], int(segment_S[start]), start, at))
      start = at
  return out


def document(batch: Mapping[str, np.ndarray], row: int, segment: int, vocab: vocab_lib.Vocab,
             piece: Callable[[int], str]) -> str:
  """One document of a packed row as a table: per position its main token and its frame's codes.

  piece: the text of an id of the text tokenizer.
  """
  at_n = np.flatnonzero(batch["segment"][row] == segment)
  kind_S = kinds(batch, row, vocab)
  codes = dict(zip(batch["frame_at"][row].tolist(), batch["frames"][row].tolist(), strict=True))
  frames = [codes.get(at, [vocab.no_code] * 2 * vocab.codebooks) for at in at_n.tolist()]
  rows: list[tuple[str, list[str]]] = [("main", []), ("weight", [])]
  for at in at_n.tolist():
    weight = float(batch["weight"][row, at])
    quiet = "" if weight else f' class="quiet" title="{NO_LOSS}"'
    label = html.escape(name(int(batch["main"][row, at]), vocab, piece))
    rows[0][1].append(f'<td style="--c:var({KINDS[kind_S[at]]})"{quiet}>{label}</td>')
    rows[1][1].append(f'<td class="weight">{weight:.3g}</td>')
  for stream, first in (("speak", 0), ("listen", vocab.codebooks)):
    groups = [frame[first : first + vocab.codebooks] for frame in frames]
    if any(code != vocab.no_code for group in groups for code in group):
      rows.append((stream, [
        f'<td style="--c:var({KINDS[kind_S[at]]})">'
        + ("<br>".join("\u00b7" if c == vocab.no_code else str(c) for c in group)
           if at in codes else "") + "</td>"
        for at, group in zip(at_n.tolist(), groups, strict=True)]))
  return ('<div class="scroll" tabindex="0" role="region" aria-label="one document, position by '
          'position"><table class="document">' + "".join(
            f'<tr><th scope="row">{label}</th>{"".join(cells)}</tr>' for label, cells in rows)
          + "</table></div>")


def name(token: int, vocab: vocab_lib.Vocab, piece: Callable[[int], str]) -> str:
  """A readable name of an id of the main stream."""
  known = {vocab_lib.PAD: "\u00b7", vocab_lib.BOS: "BOS", vocab_lib.EOS: "EOS",
           vocab_lib.USER: "USER", vocab_lib.ASSISTANT: "ASSIST", vocab_lib.LISTEN: "LISTEN",
           vocab_lib.SPEAK: "SPEAK", vocab_lib.AUDIO_END: "END"}
  if token in known:
    return known[token]
  grid = vocab_lib.grid_of(token)
  if grid:
    return f"{grid[1]} {grid[0]}"
  block = int(vocab_lib.block_of(vocab, np.array(token)))
  if block == 1:
    return piece(token - vocab.text_start)
  return str(token - vocab.image_start) if block == 2 else f"#{token}"
