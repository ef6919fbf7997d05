"""The tokenizers of a data set, and media tokenised in batches of few shapes.

B batch  h, w sides of an image in codes  C channels  L samples  T frames  Q codebooks
"""

import collections
import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from omnijax.data.sources import Bad

_BATCH = 64  # most images or recordings encoded together
_PIXELS = 1 << 20  # most pixels encoded together
_FRAMES = 512  # most frames of audio encoded together, and of long recordings:
_LONG = 4096
_STEP = 64  # frames; long recordings are padded to a multiple of it
_SHORTEST = 8  # frames; shorter recordings are encoded as if this long
_AFTER = 1  # frames of silence after a recording: a causal codec tells of a sound when it is over


class Text(Protocol):
  """Strings to ids below `size`."""

  @property
  def size(self) -> int: ...
  @property
  def fingerprint(self) -> str: ...

  def encode(self, text: str, /) -> list[int]: ...


class Image(Protocol):
  """Pixels float32 [B, H, W, C] in [0, 1] to codes int32 [B, h, w] below `codes`."""

  @property
  def codes(self) -> int: ...
  @property
  def downsample(self) -> int: ...
  @property
  def channels(self) -> int: ...
  @property
  def fingerprint(self) -> str: ...

  def encode(self, pixels: Any, /) -> Any: ...


class Audio(Protocol):
  """Waves float32 [B, L] to codes int32 [B, T, Q] below `codes`; T = ceil(L / frame_size).

  It is causal: what follows a frame does not change its codes.
  """

  @property
  def sample_rate(self) -> int: ...
  @property
  def frame_size(self) -> int: ...
  @property
  def codebooks(self) -> int: ...
  @property
  def codes(self) -> int: ...
  @property
  def fingerprint(self) -> str: ...

  def encode(self, wave: Any, /) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Tokenizers:
  """The tokenizers that a data set needs; None for a modality that it lacks."""

  text: Text
  image: Image | None = None
  audio: Audio | None = None

  @property
  def frame_rate(self) -> float:
    """Frames of audio in a second; 0 without audio."""
    return self.audio.sample_rate / self.audio.frame_size if self.audio is not None else 0.0

  def describe(self) -> dict[str, dict[str, Any]]:
    """Fingerprint and sizes of each tokenizer, as they are kept with the records."""
    out: dict[str, dict[str, Any]] = {
      "text": {"fingerprint": self.text.fingerprint, "size": self.text.size}}
    if self.image is not None:
      out["image"] = {"fingerprint": self.image.fingerprint, "codes": self.image.codes,
                      "downsample": self.image.downsample}
    if self.audio is not None:
      out["audio"] = {"fingerprint": self.audio.fingerprint, "codes": self.audio.codes,
                      "codebooks": self.audio.codebooks, "frame_size": self.audio.frame_size,
                      "sample_rate": self.audio.sample_rate}
    return out


def images(tok: Image, stream: Iterable[np.ndarray | Bad]) -> list[np.ndarray | Bad]:
  """Codes [h, w] of pixels uint8 [H, W, C], in the order given; `Bad`s pass through."""

  def size(shape: Any) -> int:
    return _power_of_two(min(_BATCH, max(1, _PIXELS // (shape[0] * shape[1]))))

  def run(shape: Any, group: list[np.ndarray]) -> Iterator[np.ndarray]:
    B = 1 << (len(group) - 1).bit_length()  # no more shapes than needed, little waste
    pixels_BHWC = np.zeros((B, *shape), np.float32)
    for i, pixels in enumerate(group):
      pixels_BHWC[i] = pixels
    codes_Bhw = np.asarray(tok.encode(pixels_BHWC / 255.0), np.int32)
    yield from codes_Bhw[: len(group)]

  return _grouped(stream, lambda pixels: pixels.shape, size, run)


def audio(tok: Audio, stream: Iterable[np.ndarray | Bad]) -> list[np.ndarray | Bad]:
  """Codes [T, Q] of waves float32 [L], in the order given; `Bad`s pass through.

  T = ceil(L / frame_size) + 1: a frame of silence follows.
  """
  frames = lambda wave: -(-len(wave) // tok.frame_size) + _AFTER

  def size(bucket: Any) -> int:
    most = _FRAMES if bucket <= _FRAMES else _LONG
    return _power_of_two(min(_BATCH, max(1, most // bucket)))

  def run(bucket: Any, group: list[np.ndarray]) -> Iterator[np.ndarray]:
    wave_BL = np.zeros((size(bucket), bucket * tok.frame_size), np.float32)
    for i, wave in enumerate(group):
      wave_BL[i, : len(wave)] = wave
    codes_BTQ = np.asarray(tok.encode(wave_BL), np.int32)
    for wave, codes_TQ in zip(group, codes_BTQ, strict=False):
      yield codes_TQ[: frames(wave)]

  return _grouped(stream, lambda wave: _bucket(frames(wave)), size, run)


def _grouped(stream: Iterable[np.ndarray | Bad], key: Callable[[np.ndarray], Hashable],
             size: Callable[[Any], int],
             run: Callable[[Any, list[np.ndarray]], Iterator[np.ndarray]]
             ) -> list[np.ndarray | Bad]:
  """Runs arrays of equal key together, `size(key)` at a time, keeping the order of results."""
  out: list[Any] = []
  waiting: dict[Any, list[tuple[int, np.ndarray]]] = collections.defaultdict(list)

  def flush(shape: Any) -> None:
    group = waiting.pop(shape)
    for (i, _), codes in zip(group, run(shape, [array for _, array in group]), strict=True):
      out[i] = codes

  for i, item in enumerate(stream):
    out.append(item)
    if not isinstance(item, Bad):
      shape = key(item)
      waiting[shape].append((i, item))
      if len(waiting[shape]) == size(shape):
        flush(shape)
  for shape in sorted(waiting):
    flush(shape)
  return out


def _power_of_two(n: int) -> int:
  """The largest power of two that is at most n."""
  return 1 << n.bit_length() - 1


def _bucket(frames: int) -> int:
  """Length under which a recording is encoded, so that few compile: 2^k or 3 * 2^k frames.

  That would add much to long ones; codecs work on those bit by bit anyway.
  """
  top = max(frames, _SHORTEST)
  if top > _FRAMES:
    return -(-top // _STEP) * _STEP
  power = _power_of_two(top)
  return next(b for b in (power, power * 3 // 2, power * 2) if b >= top)
