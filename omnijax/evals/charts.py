"""Pictures for a report, as text that stands in a page by itself: SVG charts, PNG and FLAC data.

Colours are CSS classes and variables of the page, so that charts follow light and dark mode.

H W C picture  T samples
"""

import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import soundfile
from PIL import Image

_POINTS = 360  # of a curve: more than a chart has pixels for only makes the page large


class Curve(NamedTuple):
  """One line of a chart; `colour` is the name of a CSS variable of the page."""

  label: str
  colour: str
  x: Sequence[float]
  y: Sequence[float | None]
  smooth: bool = True  # the raw points faintly, and their local mean


_W, _H, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 210, 50, 10, 10, 38


def lines(curves: Sequence[Curve], *, title: str, x_label: str, y_label: str,
          percent: bool = False, many: bool = False) -> str:
  """A line chart as SVG, from zero up; points that are None are left out.

  Axes carry the units; `title` is read out by screen readers together with the last values.

  Args:
    percent: whether y is one.
    many: curves that are compared: the axis is from the lowest to the highest after the first
      tenth, of smooth ones only the local means are shown, and there is no legend.
  """
  thin = [(c, _thin(c)) for c in curves]
  kept = [(c, x, y, mean) for c, (x, y, mean) in thin if len(x)]
  if not kept:
    return f'<p class="none">{html.escape(title)}: nothing was recorded.</p>'
  x_top = max(float(x.max()) for _, x, _, _ in kept) or 1.0
  y_low, y_top = _settled(kept, x_top) if many else (0.0, _ceiling(kept))
  px, py = _scales(0.0, x_top, y_low, y_top)
  out = _axes(px, py, [(x, _short(x)) for x in _ticks(0.0, x_top, 6)],
              _fine(_ticks(y_low, y_top, 5)) if many else
              [(y, f"{y:.3g}%" if percent else _short(y)) for y in _ticks(y_low, y_top, 5)],
              x_label, y_label)
  said = []
  for curve, x, y, mean in kept:
    if curve.smooth and len(x) > 8 and not many:
      out.append(f'<path class="raw" style="stroke:var({curve.colour})" '
                 f'd="{_path(px(x), py(y))}"/>')
    shown, of = (mean if curve.smooth else y), html.escape(curve.label, quote=True)
    out.append(f'<path class="line" data-of="{of}" style="stroke:var({curve.colour})" '
               f'd="{_path(px(x), py(shown))}"><title>{of}</title></path>')
    said.append(f"{curve.label} ends at {shown[-1]:.3g}")
  key = "" if many else legend([(c.label, c.colour) for c, *_ in kept])
  return _svg(out, f"{title}: {'; '.join(said)}") + key


class Point(NamedTuple):
  """One point of a scatter; x is a number or a word, `colour` as of a Curve."""

  label: str
  colour: str
  x: float | str
  y: float


def points(found: Sequence[Point], *, title: str, x_label: str, y_label: str) -> str:
  """A scatter as SVG: numbers on an axis, logarithmic where they span a decade; words side by side.

  Axes carry the units; `title` is read out by screen readers.
  """
  words = list(dict.fromkeys(p.x for p in found))
  numbers = all(isinstance(x, int | float) for x in words)
  if numbers:
    log = min(map(float, words)) > 0 and max(map(float, words)) >= 10 * min(map(float, words))
    place = [math.log10(float(p.x)) if log else float(p.x) for p in found]
    few = sorted(set(zip(place, (p.x for p in found), strict=True)))
    chosen = few if len(few) <= 5 else [few[i * (len(few) - 1) // 4] for i in range(5)]
    ticks = [(at, f"{x:.3g}") for at, x in chosen]
  else:
    place = [float(words.index(p.x)) for p in found]
    ticks = [(float(i), str(x)[:14]) for i, x in enumerate(words)]
  ys = [p.y for p in found]
  spread = lambda values: (max(values) - min(values)) * 0.08 or abs(max(values)) * 0.1 or 1.0
  x_edge, y_edge = spread(place), spread(ys)
  y_low, y_top = min(ys) - y_edge, max(ys) + y_edge
  px, py = _scales(min(place) - x_edge, max(place) + x_edge, y_low, y_top)
  out = _axes(px, py, ticks, _fine(_ticks(y_low, y_top, 5)), x_label, y_label)
  for p, at in zip(found, place, strict=True):
    of = html.escape(p.label, quote=True)
    out.append(f'<circle data-of="{of}" cx="{px(at):.1f}" cy="{py(p.y):.1f}" r="5" '
               f'style="fill:var({p.colour})"><title>{of}: {p.y:.4g}</title></circle>')
  return _svg(out, title)


def bars(edges: Sequence[float], counts: Sequence[int], *, colour: str, title: str, x_label: str,
         y_label: str) -> str:
  """A histogram as SVG: bars of one width, each between two edges that are written beneath.

  Axes carry the units; `title` is read out by screen readers together with every bar.
  """
  first = next((i for i, n in enumerate(counts) if n), 0)
  edges, counts = edges[first:], counts[first:]
  top = max(counts) * 1.05 or 1.0
  px, py = _scales(0.0, float(len(counts)), 0.0, top)
  every = -(-len(edges) // 8)
  out = _axes(px, py, [(float(i), _short(edges[i])) for i in range(0, len(edges), every)],
              [(y, _short(y)) for y in _ticks(0.0, top, 5) if y == int(y)], x_label, y_label)
  said = []
  for i, n in enumerate(counts):
    between = f"{edges[i]:,} to {edges[i + 1] - 1:,}" if edges[i + 1] - edges[i] > 1 else (
      f"{edges[i]:,}")
    if n:
      out.append(f'<rect style="fill:var({colour})" x="{px(i) + 1:.1f}" y="{py(n):.1f}" '
                 f'width="{px(i + 1) - px(i) - 2:.1f}" height="{py(0) - py(n):.1f}"><title>'
                 f"{between}: {n:,}</title></rect>")
      said.append(f"{between}: {n:,}")
  return _svg(out, f"{title}: {'; '.join(said)}")


class Piece(NamedTuple):
  """A part of a bar; `colour` as of a Curve."""

  label: str
  colour: str
  size: float


def stacks(found: Sequence[tuple[str, Sequence[Piece]]], *, title: str, x_label: str) -> str:
  """Bars as SVG, one below the other, each of parts that follow each other from zero on.

  The axis carries the unit; `title` is read out by screen readers together with every part. Parts
  of less than nothing are left out.
  """
  top = max(sum(max(p.size, 0) for p in pieces) for _, pieces in found) * 1.05 or 1.0
  px, py = _scales(0.0, top, 0.0, 1.0)
  high = (_H - _TOP - _BOTTOM) / len(found)
  out = _axes(px, py, [(x, _short(x)) for x in _ticks(0.0, top, 5)], [], x_label, "")
  said, key = [], dict[str, str]()
  for i, (name, pieces) in enumerate(found):
    x, y = 0.0, _TOP + high * i
    out.append(f'<text x="{_LEFT}" y="{y + 12:.1f}">{html.escape(name)}</text>')
    for p in pieces:
      if p.size <= 0:
        continue
      key[p.label] = p.colour
      out.append(f'<rect style="fill:var({p.colour})" x="{px(x):.1f}" y="{y + 18:.1f}" '
                 f'width="{px(x + p.size) - px(x):.1f}" height="{high - 24:.1f}"><title>'
                 f"{html.escape(p.label)}: {p.size:.4g}</title></rect>")
      x += p.size
      said.append(f"{name}, {p.label}: {p.size:.4g}")
  return _svg(out, f"{title}: {'; '.join(said)}") + legend(list(key.items()))


def _scales(x_low: float, x_top: float, y_low: float, y_top: float
            ) -> tuple[Callable[..., Any], Callable[..., Any]]:
  px = lambda x: _LEFT + (_W - _LEFT - _RIGHT) * (x - x_low) / (x_top - x_low)
  py = lambda y: (_H - _BOTTOM - (_H - _TOP - _BOTTOM)
                  * np.clip((y - y_low) / (y_top - y_low), 0, 1))
  return px, py


def _axes(px: Callable[..., Any], py: Callable[..., Any], x_ticks: Sequence[tuple[float, str]],
          y_ticks: Sequence[tuple[float, str]], x_label: str, y_label: str) -> list[str]:
  """Lines of a grid, and what they stand for."""
  out = []
  for tick, label in y_ticks:
    out.append(f'<line class="grid" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{py(tick):.1f}" '
               f'y2="{py(tick):.1f}"/><text x="{_LEFT - 7}" y="{py(tick) + 4:.1f}" '
               f'text-anchor="end">{label}</text>')
  for tick, label in x_ticks:
    out.append(f'<text x="{px(tick):.1f}" y="{_H - _BOTTOM + 17}" text-anchor="middle">'
               f"{html.escape(label)}</text>")
  out.append(f'<text x="{(_LEFT + _W - _RIGHT) / 2}" y="{_H - 5}" text-anchor="middle">'
             f"{html.escape(x_label)}</text>"
             f'<text transform="translate(12 {(_H - _BOTTOM + _TOP) / 2}) rotate(-90)" '
             f'text-anchor="middle">{html.escape(y_label)}</text>')
  return out


def _svg(shapes: Sequence[str], name: str) -> str:
  return (f'<svg class="chart" viewBox="0 0 {_W} {_H}" role="img" '
          f'aria-label="{html.escape(name, quote=True)}">{"".join(shapes)}</svg>')


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


def _settled(kept: Sequence[tuple[Curve, np.ndarray, np.ndarray, np.ndarray]], x_top: float
             ) -> tuple[float, float]:
  """The ends of an axis on which curves that begin far off can be told apart later on."""
  late = [mean[x >= x_top / 10] for _, x, _, mean in kept]
  values = np.concatenate([some for some in late if len(some)] or [mean for *_, mean in kept])
  edge = 0.05 * float(values.max() - values.min()) or 0.05 * abs(float(values.max())) or 1.0
  return float(values.min()) - edge, float(values.max()) + edge


def _ticks(low: float, top: float, most: int) -> list[float]:
  span = top - low
  step = 10 ** math.floor(math.log10(span / most))
  step = next(step * k for k in (1, 2, 5, 10, 20) if span / (step * k) <= most)
  first = math.ceil(low / step - 1e-9)
  return [step * i for i in range(first, int(top / step + 1e-9) + 1)]


def _fine(ticks: Sequence[float]) -> list[tuple[float, str]]:
  """Ticks with labels that differ, however close they are."""
  step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
  if step >= 1:
    return [(t, _short(t)) for t in ticks]
  digits = -math.floor(math.log10(step) + 1e-9)
  return [(t, f"{t:.{digits}f}") for t in ticks]


def _short(x: float) -> str:
  return f"{x / 1e6:.3g}M" if x >= 1e6 else f"{x / 1e3:.3g}k" if x >= 1e3 else f"{x:.3g}"


def _path(x: np.ndarray, y: np.ndarray) -> str:
  return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


# --- pictures and sounds -----------------------------------------------------


def png(pixels_HWC: np.ndarray) -> str:
  """A data address of a picture, uint8 [H, W, 1 or 3] or [H, W]."""
  pixels = np.asarray(pixels_HWC, np.uint8)
  if pixels.ndim == 3 and (pixels.shape[2] == 1 or (pixels == pixels[..., :1]).all()):
    pixels = pixels[..., 0]  # grey, which is smaller
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG", optimize=True)
  return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def flac(wave_T: np.ndarray, rate: int) -> str:
  """A data address of a sound, 16 bits; float [T] in [-1, 1]. Silence takes next to nothing."""
  file = io.BytesIO()
  soundfile.write(file, np.clip(wave_T, -1, 1), rate, format="FLAC", subtype="PCM_16")
  return "data:audio/flac;base64," + base64.b64encode(file.getvalue()).decode()


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
