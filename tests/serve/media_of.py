"""Pictures and sounds as clients send them."""

import base64
import io

import PIL.Image
import soundfile
from fake_service import RATE, tone


def encoded(data: bytes) -> str:
  return base64.b64encode(data).decode()


def picture_file(w=16, h=8, grey=200, kind="PNG", **options) -> bytes:
  with io.BytesIO() as file:
    PIL.Image.new("RGB", (w, h), (grey,) * 3).save(file, kind, **options)
    return file.getvalue()


def picture(*args, **options):
  url = f"data:image/png;base64,{encoded(picture_file(*args, **options))}"
  return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


def sound_file(seconds=0.5, rate=RATE, kind="wav", wave=None, **options) -> bytes:
  with io.BytesIO() as file:
    soundfile.write(file, tone(seconds, rate) if wave is None else wave, rate,
                    format="OGG" if kind == "opus" else kind, **options)
    return file.getvalue()


def sound(seconds=0.5, rate=RATE, kind="wav", **options):
  data = encoded(sound_file(seconds, rate, kind, **options))
  return {"type": "input_audio", "input_audio": {"data": data, "format": kind}}
