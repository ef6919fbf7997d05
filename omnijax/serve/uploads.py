"""What comes in a request: base64, data URLs, and how much of it may come.

L samples  H, W pixels  C channels
"""

import binascii

import numpy as np

from omnijax.serve import pixels, sounds
from omnijax.serve.context import Context
from omnijax.serve.errors import Refused

_PIECE = 1 << 18  # characters decoded at once: other threads get their turn between pieces


class Uploads:
  """The media of one request, which together stay within the server's limits.

  All methods may take long: they are for worker threads.
  """

  def __init__(self, context: Context):
    self._context = context
    self._left_s = context.settings.max_audio_s
    self._left_pixels = context.settings.max_megapixels * 1e6

  def sound(self, content: bytes, kind: str, param: str) -> np.ndarray:
    """Samples float32 [L] at the service's rate.

    Raises:
      Refused: as sounds.decode, or there are too many seconds.
    """
    self._context.check_modality("audio", "a sound", param)
    rate = self._context.service.sample_rate
    wave_L = sounds.decode(content, kind, rate, self._left_s, param)
    self._left_s -= len(wave_L) / rate
    return wave_L

  def picture(self, content: bytes, param: str) -> np.ndarray:
    """Pixels uint8 [H, W, C] of a size that the service takes.

    Raises:
      Refused: as pixels.decode, or there are too many pixels.
    """
    self._context.check_modality("image", "a picture", param)
    self._left_pixels -= pixels.count(content, param)
    if self._left_pixels < 0:
      raise Refused(400, "The pictures have more than "
                    f"{self._context.settings.max_megapixels:g} megapixels together, which is "
                    "this server's limit; send smaller ones.", code="image_too_large", param=param)
    return pixels.decode(content, self._context.service.image_step, self._context.image_size,
                         param)


def base64(text: str, param: str) -> bytes:
  """The bytes of base64, which may have line breaks.

  Raises:
    Refused: it is none.
  """
  text = "".join(text.split())
  try:
    if len(text) % 4 or "=" in text[:-2]:
      raise ValueError
    return b"".join(binascii.a2b_base64(text[i : i + _PIECE], strict_mode=True)
                    for i in range(0, len(text), _PIECE))
  except ValueError:
    raise Refused(400, "This is no base64; send the file's bytes encoded as base64.",
                  code="invalid_base64", param=param) from None


def data_url(url: str, param: str) -> bytes:
  """The content of a data URL.

  Raises:
    Refused: it is another kind of URL, or is malformed.
  """
  head, comma, body = url.partition(",")
  if not head.startswith("data:"):
    raise Refused(400, f"The URL is {url[:60]!r}; this server fetches nothing from elsewhere: "
                  "send the picture itself, as data:image/png;base64,...", code="invalid_url",
                  param=param)
  if not comma or not head.endswith(";base64"):
    raise Refused(400, f"The data URL begins with {head[:60]!r}; wanted data:TYPE;base64,...",
                  code="invalid_url", param=param)
  return base64(body, param)
