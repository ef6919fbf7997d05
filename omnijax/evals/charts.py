"""Pictures for a report, as text that stands in a page by itself: SVG charts, PNG and WAV data.

Colours are CSS classes and variables of the page, so that charts follow light and dark mode.

S positions of a row  F frames  Q codebooks  H W C picture  T samples
"""

import base64
import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import soundfile
from PIL import Image

from omnijax import vocab as vocab_lib

_POINTS = 360  # of a curve: more than a chart has pixels for only makes the page large


class Curve(NamedTuple):
  """One line of a chart; `colour` is the name of a CSS variable of the page."""

  label: str
  colour: str
  x: Sequence[float]
  y: Sequence[float | None]
  smooth: bool = True  # the raw points faintly, and their local mean


def lines(curves: Sequence[Curve], *, title: str, x_label: str, y_label: str,
          percent: bool = False) -> str:
  """A line chart as SVG, from zero up; points that are None are left out.

  Axes carry the units; `title` is read out by screen readers together with the last values.
  """
  W, H, left, right, top, bottom = 360, 210, 50, 10, 10, 38
  thin = [(c, _thin(c)) for c in curves]
  kept = [(c, x, y, mean) for c, (x, y, mean) in thin if len(x)]
  if not kept:
    return f'<p class="none">{html.escape(title)}: nothing was recorded.</p>'
  x_top = max(float(x.max()) for _, x, _, _ in kept) or 1.0
  y_top = _ceiling(kept)
  px = lambda x: left + (W - left - right) * x / x_top
  py = lambda y: H - bottom - (H - top - bottom) * np.clip(y / y_top, 0, 1)
  out = []
  for tick in _ticks(y_top, 5):
    label = f"{tick:.3g}%" if percent else _short(tick)
    out.append(f'<line class="grid" x1="{left}" x2="{W - right}" y1="{py(tick):.1f}" '
               f'y2="{py(tick):.1f}"/><text x="{left - 7}" y="{py(tick) + 4:.1f}" '
               f'text-anchor="end">{label}</text>')
  for tick in _ticks(x_top, 6):
    out.append(f'<text x="{px(tick):.1f}" y="{H - bottom + 17}" text-anchor="middle">'
               f"{_short(tick)}</text>")
  said = []
  for curve, x, y, mean in kept:
    if curve.smooth and len(x) > 8:
      out.append(f'<path class="raw" style="stroke:var({curve.colour})" '
                 f'd="{_path(px(x), py(y))}"/>')
    shown = mean if curve.smooth else y
    out.append(f'<path class="line" style="stroke:var({curve.colour})" '
               f'd="{_path(px(x), py(shown))}"><title>{html.escape(curve.label)}</title></path>')
    said.append(f"{curve.label} ends at {shown[-1]:.3g}")
  out.append(f'<text x="{(left + W - right) / 2}" y="{H - 5}" text-anchor="middle">'
             f"{html.escape(x_label)}</text>"
             f'<text transform="translate(12 {(H - bottom + top) / 2}) rotate(-90)" '
             f'text-anchor="middle">{html.escape(y_label)}</text>')
  name = html.escape(f"{title}: {'; '.join(said)}", quote=True)
  return (f'<svg class="chart" viewBox="0 0 {W} {H}" role="img" aria-label="{name}">'
          f"{''.join(out)}</svg>" + legend([(c.label, c.colour) for c, *_ in kept]))


def legend(entries: Sequence[tuple[str, str]]) -> str:
  """Coloured labels under a chart: (text, CSS variable)."""
  return '<ul class="legend">' + "".join(
    f'<li><i style="background:var({colour})"></i>{html.escape(label)}</li>'
    for label, colour in entries) + "</ul>"


def _thin(curve: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """x, y and smoothed y of a curve, at most _POINTS of them, each a mean of neighbours."""
  pairs = [(x, y) for x, y in zip(curve.x, curve.y, strict=True)
           if y is not None and math.isfinite(y)]
  if not pairs:
    return np.zeros(0), np.zeros(0), np.zeros(0)
  x, y = np.array(pairs, np.float64).T
  # A window about each point, narrower near both ends, so that it neither lags nor leans.
  at = np.arange(len(y))
  half = np.minimum(np.minimum(at, len(y) - 1 - at), len(y) // 40)
  total = np.concatenate([[0.0], np.cumsum(y)])
  mean = (total[at + half + 1] - total[at - half]) / (2 * half + 1)
  chunk = -(-len(x) // _POINTS)
  cuts = np.arange(0, len(x), chunk)
  sizes = np.diff(cuts, append=len(x))
  return tuple(np.add.reduceat(v, cuts) / sizes for v in (x, y, mean))  # type: ignore[return-value]


def _ceiling(kept: Sequence[tuple[Curve, np.ndarray, np.ndarray, np.ndarray]]) -> float:
  """A top of the axis that single spikes don't decide."""
  tops = [max(float(np.percentile(y, 99)), float(mean.max())) for _, _, y, mean in kept]
  return max(tops) * 1.05 or 1.0


def _ticks(top: float, most: int) -> list[float]:
  step = 10 ** math.floor(math.log10(top / most))
  step = next(step * k for k in (1, 2, 5, 10, 20) if top / (step * k) <= most)
  return [step * i for i in range(int(top / step + 1e-9) + 1)]


def _short(x: float) -> str:
  return f"{x / 1e6:.3g}M" if x >= 1e6 else f"{x / 1e3:.3g}k" if x >= 1e3 else f"{x:.3g}"


def _path(x: np.ndarray, y: np.ndarray) -> str:
  return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


# --- a packed batch ----------------------------------------------------------

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


def packed(batch: Mapping[str, np.ndarray], vocab: vocab_lib.Vocab, rows: int) -> str:
  """The first rows of a batch as SVG: runs of one kind in its colour, documents set apart."""
  B, S = batch["main"].shape
  rows, W, high, gap, left = min(rows, B), 1000, 20, 7, 34
  unit = (W - left) / S
  out = []
  for row in range(rows):
    y = row * (high + gap)
    out.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{row}</text>'
               f'<rect class="pad" x="{left}" y="{y}" width="{W - left}" height="{high}"/>')
    for kind, segment, start, stop in _runs(kinds(batch, row, vocab), batch["segment"][row]):
      edge = 1.2 if start == 0 or batch["segment"][row][start - 1] != segment else 0
      x, width = left + start * unit + edge, (stop - start) * unit - edge
      shade = ' opacity=".62"' if segment % 2 == 0 else ""
      out.append(f'<rect style="fill:var({KINDS[kind]})"{shade} x="{x:.1f}" y="{y}" '
                 f'width="{max(width, .4):.1f}" height="{high}"><title>document {segment}: '
                 f"{kind}, {stop - start} positions</title></rect>")
  used = float((batch["segment"][:rows] > 0).mean())
  name = f"{rows} packed rows of {S} positions, {used:.1%} of them used"
  return (f'<svg class="packed" viewBox="0 0 {W} {rows * (high + gap)}" role="img" '
          f'aria-label="{name}">{"".join(out)}</svg>'
          + legend([*KINDS.items(), ("padding", "--pad")]))


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
  rows: list[tuple[str, list[str]]] = [("main", [])]
  for at in at_n.tolist():
    quiet = "" if batch["weight"][row, at] else f' class="quiet" title="{NO_LOSS}"'
    label = html.escape(name(int(batch["main"][row, at]), vocab, piece))
    rows[0][1].append(f'<td style="--c:var({KINDS[kind_S[at]]})"{quiet}>{label}</td>')
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


# --- pictures and sounds -----------------------------------------------------


def png(pixels_HWC: np.ndarray) -> str:
  """A data address of a picture, uint8 [H, W, 1 or 3] or [H, W]."""
  pixels = np.asarray(pixels_HWC, np.uint8)
  if pixels.ndim == 3 and (pixels.shape[2] == 1 or (pixels == pixels[..., :1]).all()):
    pixels = pixels[..., 0]  # grey, which is smaller
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG", optimize=True)
  return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def wav(wave_T: np.ndarray, rate: int) -> str:
  """A data address of a sound, 16 bits; float [T] in [-1, 1]."""
  file = io.BytesIO()
  soundfile.write(file, np.clip(wave_T, -1, 1), rate, format="WAV", subtype="PCM_16")
  return "data:audio/wav;base64," + base64.b64encode(file.getvalue()).decode()


# Dark to bright, even in lightness: (position, red, green, blue).
_HEAT = np.array([(0, 10, 12, 30), (.3, 60, 35, 110), (.55, 160, 60, 110), (.8, 240, 130, 70),
                  (1, 255, 235, 170)], np.float64)


def spectrogram(wave_T: np.ndarray, rate: int, *, height: int = 40) -> str:
  """A data address of a picture of a sound: 60 dB of log magnitude, mel bands, 10 ms a column."""
  hop, window = rate // 100, rate // 40
  wave_T = np.pad(np.asarray(wave_T, np.float64), (window // 2, window))
  frames = np.lib.stride_tricks.sliding_window_view(wave_T, window)[::hop]
  power = np.abs(np.fft.rfft(frames * np.hanning(window), 4 * window, axis=1)) ** 2
  mel = np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), height + 1)
  edges = (700 * (10 ** (mel / 2595) - 1) / (rate / 2) * (power.shape[1] - 1)).astype(int)
  bands = np.stack([power[:, a : max(b, a + 1)].mean(1) for a, b in
                    zip(edges[:-1], edges[1:], strict=True)], 1)
  level = 10 * np.log10(bands + 1e-9)
  level = np.clip((level - level.max() + 60) / 60, 0, 1)[:, ::-1].T
  rgb = np.stack([np.interp(level, _HEAT[:, 0], _HEAT[:, k]) for k in (1, 2, 3)], -1)
  # Levels apart by less than the eye can tell only make the file larger.
  return png((rgb // 4 * 4).astype(np.uint8))
