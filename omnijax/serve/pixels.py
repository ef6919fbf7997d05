"""Pictures between bytes and pixels.

H, W pixels  C channels
"""

import io
from typing import BinaryIO

import numpy as np
import PIL.Image

from omnijax.data import media
from omnijax.data.sources import Bad, Store
from omnijax.serve.errors import Refused

FORMATS = ("png", "jpeg", "webp")
_READ = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


class _Upload(Store):
  """What a client has sent, as media.decode_image reads it."""

  def __init__(self, content: bytes):
    super().__init__("")
    self._content = content

  def open(self, name: str) -> BinaryIO:
    return io.BytesIO(self._content)


def count(content: bytes, param: str) -> int:
  """How many pixels a picture has, by its header: nothing is decoded.

  Raises:
    Refused: it is no picture.
  """
  try:
    with PIL.Image.open(io.BytesIO(content), formats=_READ) as file:
      return file.width * file.height
  except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
    raise Refused(400, f"The picture is too large: {error}", code="image_too_large",
                  param=param) from None
  except Exception:  # Pillow's plug-ins raise nearly anything
    raise Refused(400, "The picture can't be read; send PNG, JPEG, WebP or GIF.",
                  code="invalid_image", param=param) from None


def decode(content: bytes, step: int, size: int, param: str) -> np.ndarray:
  """Pixels uint8 [H, W, 3], as in training: turned upright, on white, scaled.

  Args:
    content: a file.
    step: what both sides shall be multiples of.
    size: pixels of the longer side that it is scaled down to, if it is larger.
    param: the client's name of the field.

  Raises:
    Refused: it can't be read.
  """
  found = media.decode_image(_Upload(content), "the picture", 3, step, size)
  if isinstance(found, Bad):
    raise Refused(400, f"The picture can't be read: {found.detail[:200]}; send another.",
                  code="invalid_image", param=param)
  return found


def encode(pixels_HWC: np.ndarray, kind: str) -> bytes:
  """A file in one of FORMATS."""
  flat = pixels_HWC[..., 0] if pixels_HWC.shape[2] == 1 else pixels_HWC
  with io.BytesIO() as file:
    PIL.Image.fromarray(flat).save(file, kind, **({} if kind == "png" else {"quality": 95}))
    return file.getvalue()
