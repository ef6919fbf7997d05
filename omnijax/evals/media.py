"""What codes look and sound like: decoded together, and as elements of a page without scripts.

H W C picture  L samples  h w sides of a picture in codes  T frames  Q codebooks
"""

import collections
import html
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from omnijax.evals import charts

_TOGETHER = 16  # decoded, of one shape


def key(codes: np.ndarray) -> bytes:
  """What a picture or a sound is known by: the shape and the values of its codes."""
  return f"{codes.shape}".encode() + np.ascontiguousarray(codes, np.int32).tobytes()


def decoded(images: Sequence[np.ndarray], sounds: Sequence[np.ndarray], tokenizers: Any
            ) -> dict[bytes, np.ndarray]:
  """Pixels uint8 [H, W, C] and samples float [L] of codes, by their `key`, each decoded once.

  Args:
    images: codes [h, w].
    sounds: codes [T, Q].
    tokenizers: has `image` and `audio`; one that is not needed may be None.
  """
  pixels = lambda codes: np.round(
    np.clip(np.asarray(tokenizers.image.decode(codes)), 0, 1) * 255).astype(np.uint8)
  wave = lambda codes: np.asarray(tokenizers.audio.decode(codes), np.float32)
  return {**_decoded(images, pixels), **_decoded(sounds, wave)}


def _decoded(codes: Sequence[np.ndarray], decode: Callable[[np.ndarray], np.ndarray]
             ) -> dict[bytes, np.ndarray]:
  groups = collections.defaultdict[tuple[int, ...], dict[bytes, np.ndarray]](dict)
  for one in codes:
    groups[one.shape][key(one)] = one.astype(np.int32)
  out: dict[bytes, np.ndarray] = {}
  for group in groups.values():
    names, arrays = list(group), list(group.values())
    for i in range(0, len(names), _TOGETHER):
      some = decode(np.stack(arrays[i : i + _TOGETHER]))
      out.update(zip(names[i : i + _TOGETHER], some, strict=True))
  return out


def picture(pixels_HWC: np.ndarray, name: str) -> str:
  """A picture, large enough to be seen; name: for who doesn't see it."""
  high, wide = (np.array(pixels_HWC.shape[:2]) * max(1, 96 // max(pixels_HWC.shape[:2]))).tolist()
  return (f'<img class="shown" src="{charts.png(pixels_HWC)}" width="{wide}" height="{high}" '
          f'alt="{html.escape(name, quote=True)}">')


def sound(wave_L: np.ndarray, rate: int, name: str) -> str:
  """A spectrogram over the browser's own player; name: for who doesn't see it."""
  wide = max(120, min(560, len(wave_L) / rate * 160))
  return (f'<span class="heard"><img src="{charts.spectrogram(wave_L, rate)}" alt="" '
          f'style="width:{wide:.0f}px"><audio controls preload="metadata" '
          f'aria-label="{html.escape(name, quote=True)}" src="{charts.flac(wave_L, rate)}"></audio>'
          "</span>")


def at(seconds: float) -> str:
  """A time in a sound; words may come before it begins."""
  return f"{seconds:.2f} s" if seconds >= 0 else f"{-seconds:.2f} s before"


def table(name: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table with a name; cells are HTML, the first of each row is its heading."""
  cells = "".join(
    f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{c}</td>" for c in rest) + "</tr>"
    for first, *rest in rows)
  name = html.escape(name, quote=True)
  return (f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
          f'<table class="scores"><caption>{name}</caption><thead><tr>'
          + "".join(f'<th scope="col">{h}</th>' for h in head)
          + f"</tr></thead><tbody>{cells}</tbody></table></div>")


CSS = """
img.shown{image-rendering:pixelated;border-radius:6px;display:block;max-width:100%;height:auto}
.heard{display:inline-grid;gap:4px;max-width:100%}.heard img{height:48px;max-width:100%;
border-radius:6px}.heard audio{width:280px;max-width:100%;height:34px}
.flow{display:flex;flex-wrap:wrap;gap:6px;align-items:center}
.piece{display:inline-flex;flex-wrap:wrap;gap:4px 8px;align-items:center;max-width:100%;
border:1px solid color-mix(in srgb,var(--c) 60%,var(--edge));border-radius:8px;padding:3px 8px;
background:color-mix(in srgb,var(--c) 16%,var(--card));overflow-wrap:anywhere}
.piece q{white-space:pre-wrap;quotes:none;font-weight:600}
.piece small{color:var(--soft);font-size:.76rem}.piece.quiet{border-style:dashed;
background:var(--card)}.piece.quiet q{font-weight:400}
.frames{padding:8px 10px}.side{display:grid;gap:4px}
.words{list-style:none;display:flex;flex-wrap:wrap;gap:4px 10px;margin:0;padding:0}
.words time{color:var(--soft);font-size:.76rem;font-variant-numeric:tabular-nums}
"""
