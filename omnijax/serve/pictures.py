"""Pictures that clients send.

H, W pixels  C channels
"""

import base64
import binascii
import io

import numpy as np

from omnijax import vocab as vocab_lib

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def from_url(url: str, *, step: int, most_pixels: int) -> np.ndarray:
  """Pixels uint8 [H, W, 3] of a data: URL, laid on white, the first picture if it moves.

  Both sides are made multiples of `step`, and the picture is scaled down to what the image
  vocabulary has rows for.

  Args:
    url: "data:image/...;base64,...".
    step: pixels of a code's side.
    most_pixels: a larger picture is refused, by its header, before it is decoded.

  Raises:
    ValueError: another kind of URL, or no picture, or too large a one.
  """
  head, _, data = url.partition(",")
  if not head.startswith("data:") or not head.endswith(";base64"):
    raise ValueError(f"the URL begins with {url[:30]!r}; nothing is fetched here: send the picture "
                     "itself, as data:image/png;base64,...")
  try:
    opened = io.BytesIO(base64.b64decode(data, validate=True))
  except (binascii.Error, ValueError):
    raise ValueError("what follows the comma of the data: URL is not base64.") from None
  return _decode(opened, step, most_pixels)


def _decode(opened: io.BytesIO, step: int, most_pixels: int) -> np.ndarray:
  import PIL.Image
  import PIL.ImageOps
  try:
    with PIL.Image.open(opened, formats=_FORMATS) as file:
      w, h = file.size
      if w * h > most_pixels:
        raise OverflowError
      turned = PIL.ImageOps.exif_transpose(file).convert("RGBA")
  except OverflowError:
    raise ValueError(f"the picture has {w} x {h} pixels; the most is {most_pixels}: scale it "
                     "down.") from None
  except Exception as error:  # Pillow's plug-ins raise nearly anything on corrupt files.
    raise ValueError(f"the picture can't be read ({type(error).__name__}); wanted one of "
                     f"{', '.join(_FORMATS)}.") from None
  white = PIL.Image.new("RGBA", turned.size, "white")
  white.alpha_composite(turned)
  scale = min(1.0, vocab_lib.MAX_GRID * step / max(turned.size))
  w, h = (max(1, round(n * scale / step)) * step for n in turned.size)
  flat = white.convert("RGB")
  if (w, h) != flat.size:
    flat = flat.resize((w, h), PIL.Image.Resampling.LANCZOS)
  return np.asarray(flat)
