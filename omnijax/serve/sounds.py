"""Sounds between bytes and samples: what clients send, and what they are sent.

C channels  L samples
"""

import io
import struct
from typing import Any

import numpy as np
import soundfile
import soxr

from omnijax.data import av_sound
from omnijax.data.sources import Bad
from omnijax.serve.errors import Refused

RATE = 24_000  # Hz, of all that is sent: OpenAI's
# Name -> media type, and format and kind of samples of libsndfile. pcm is without any header.
FORMATS = {"wav": ("audio/wav", "WAV", "PCM_16"), "mp3": ("audio/mpeg", "MP3", "MPEG_LAYER_III"),
           "flac": ("audio/flac", "FLAC", "PCM_16"), "opus": ("audio/ogg", "OGG", "OPUS"),
           "pcm": ("audio/pcm", "", ""), "pcm16": ("audio/pcm", "", "")}
STREAMED = ("wav", "pcm", "pcm16")  # formats that can be sent before the speech has ended
_RATES = (1000, 384_000)
_MOST_CHANNELS = 8
_LOUDEST = 16.0  # as in training: a little over full scale happens, far over is another unit


def decode(content: bytes, kind: str, sample_rate: int, most_s: float, param: str) -> np.ndarray:
  """Samples float32 [L] in [-1, 1] of a file, its channels mixed.

  Never takes more memory than a sound of `most_s` seconds needs, whatever its header says.

  Args:
    content: WAV, FLAC, MP3, OGG and all else that libsndfile reads, whatever `kind` says; with
      PyAV, MP4 and WebM, too.
    kind: what the client calls it; pcm16 is bare little-endian samples of 24 kHz.
    sample_rate: Hz of the result.
    most_s: seconds; a longer sound is refused.
    param: the client's name of the field.

  Raises:
    Refused: it can't be read, or is longer.
  """
  if kind in ("pcm", "pcm16"):
    wave, rate = np.frombuffer(content[: len(content) // 2 * 2], "<i2") / np.float32(32768), RATE
    _check_length(len(wave) / rate, most_s, param)
  else:
    try:
      with _opened(content, kind) as sound:
        rate = sound.samplerate
        wave = _mono(sound, most_s, param)
    except (Refused, MemoryError):
      raise
    except Bad as bad:
      raise _unreadable(bad.detail, param) from None
    except Exception as error:  # libsndfile and PyAV raise their own kinds
      why = getattr(error, "error_string", None) or type(error).__name__
      raise _unreadable(why.rstrip("."), param) from None
  if rate != sample_rate and len(wave):
    wave = soxr.resample(wave, rate, sample_rate)
  if not len(wave):
    raise _unreadable("it has no samples", param)
  if not np.isfinite(wave).all() or np.abs(wave).max() > _LOUDEST:
    raise _unreadable("it has samples that are infinite, or far over full scale, which is 1", param)
  return np.clip(wave, -1, 1, dtype=np.float32)


def _unreadable(why: str, param: str) -> Refused:
  return Refused(400, f"The sound can't be read: {why}; send WAV, FLAC, MP3 or OGG.",
                 code="invalid_audio", param=param)


def _check_length(seconds: float, most_s: float, param: str) -> None:
  if seconds > most_s:
    raise Refused(400, f"The sound is longer than {most_s:.3g} s, which is what this server takes "
                  "in a request, or what is left of it; cut it.", code="audio_too_long",
                  param=param)


def _opened(content: bytes, kind: str) -> Any:
  try:
    return soundfile.SoundFile(io.BytesIO(content))
  except soundfile.LibsndfileError:
    if content[4:8] == b"ftyp" or content[:4] == b"\x1aE\xdf\xa3":  # MP4, WebM
      return av_sound.AvSound(io.BytesIO(content), kind, "the file")
    raise


def _mono(sound: Any, most_s: float, param: str) -> np.ndarray:
  """All samples, a second at a time: headers lie."""
  rate = sound.samplerate
  if not _RATES[0] <= rate <= _RATES[1] or sound.channels > _MOST_CHANNELS:
    raise _unreadable(f"it has {sound.channels} channels of {rate} Hz", param)
  blocks, have = [], 0
  while True:
    block_LC = sound.read(rate, dtype="float32", always_2d=True)
    have += len(block_LC)
    _check_length(have / rate, most_s, param)
    blocks.append(block_LC.mean(1))
    if len(block_LC) < rate:
      return np.concatenate(blocks)


def pcm(wave_L: np.ndarray) -> bytes:
  """Little-endian 16-bit samples of float ones."""
  return np.round(np.clip(wave_L, -1, 1) * 32767).astype("<i2").tobytes()


def encode(wave_L: np.ndarray, sample_rate: int, kind: str) -> bytes:
  """A whole file of 24 kHz in one of FORMATS."""
  stream = Stream(sample_rate)
  body = stream.feed(wave_L) + stream.end()
  if not FORMATS[kind][1]:
    return body
  _, container, samples = FORMATS[kind]
  with io.BytesIO() as file:
    soundfile.write(file, np.frombuffer(body, "<i2"), RATE, format=container, subtype=samples)
    return file.getvalue()


class Stream:
  """16-bit samples of 24 kHz, made of float samples of another rate as these come."""

  def __init__(self, sample_rate: int):
    self._resampler = None
    if sample_rate != RATE:
      self._resampler = soxr.ResampleStream(sample_rate, RATE, 1, dtype="float32")

  def feed(self, wave_L: np.ndarray, last: bool = False) -> bytes:
    """Bytes that are ready; the resampler keeps some milliseconds back until the last."""
    if self._resampler is not None:
      wave_L = self._resampler.resample_chunk(np.ascontiguousarray(wave_L, np.float32), last=last)
    return pcm(wave_L)

  def end(self) -> bytes:
    """The rest."""
    return self.feed(np.zeros(0, np.float32), last=True)


def wav_header() -> bytes:
  """Of a WAV file of 24 kHz whose length isn't known yet."""
  unknown = 0xFFFFFFFF
  return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", unknown, b"WAVE", b"fmt ", 16, 1, 1, RATE,
                     RATE * 2, 2, 16, b"data", unknown)
