"""Sounds that libsndfile can't read, by PyAV: G.722, AAC in MP4, the sound of a video."""

from typing import BinaryIO

import numpy as np

from omnijax.data.sources import Bad

_FORMATS = {"g722": "g722"}  # without a header: the name alone says what it is


class AvSound:
  """The interface of `soundfile.SoundFile` that is used here.

  Raises:
    Bad: PyAV is not installed, or the file has no sound.
  """

  def __init__(self, opened: BinaryIO, kind: str, name: str):
    try:
      import av
    except ImportError:
      raise Bad("needs PyAV", f"{name}: libsndfile can't read .{kind or '?'}; install the extra "
                "`av`") from None
    self._container = av.open(opened, "r", format=_FORMATS.get(kind))
    if not self._container.streams.audio:
      raise Bad("no sound", f"{name} is a video without sound")
    stream = self._container.streams.audio[0]
    self.samplerate, self.channels = int(stream.rate), int(stream.channels)
    # Unknown of G.722, which has two samples a byte; packets tell the rest.
    seconds = float(stream.duration * stream.time_base) if stream.duration else 0.0
    self.frames = int(seconds * self.samplerate)
    self._frames = self._container.decode(stream)
    self._resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=self.samplerate)
    self._rest = np.zeros((0, self.channels), np.float32)

  def __enter__(self) -> "AvSound":
    return self

  def __exit__(self, *_: object) -> None:
    self._container.close()

  def read(self, frames: int, dtype: str = "float32", always_2d: bool = True) -> np.ndarray:
    """The next samples [<= frames, channels], as float32."""
    assert dtype == "float32" and always_2d
    blocks, have = [self._rest], len(self._rest)
    while have < frames:
      frame = next(self._frames, None)
      for part in self._resampler.resample(frame):
        blocks.append(np.asarray(part.to_ndarray().T, np.float32))
        have += len(blocks[-1])
      if frame is None:
        break
    wave = np.concatenate(blocks)
    self._rest = wave[frames:]
    return wave[:frames]
