"""The codec's states of all rows: frames of sound in and out, for those that have one.

B rows  L samples  Q codebooks
"""

from typing import Any

import numpy as np

_SETTLED = 32  # frames of silence after which its codes don't change any more


class Sounds:
  """What rows hear and say, by a codec (see `tokenizers.audio.AudioTokenizer`)."""

  def __init__(self, codec: Any, rows: int):
    self._codec, self._rows = codec, rows
    self._hears, self._says = codec.init_state(rows), codec.init_state(rows)

  def silence(self) -> np.ndarray:
    """Codes [Q] of silence that has lasted."""
    quiet_BL = np.zeros((1, _SETTLED * self._codec.frame_size), np.float32)
    return np.asarray(self._codec.encode(quiet_BL))[0, -1]

  def encode(self, frames: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Codes [Q] of the next frame that each of some rows hears, from its samples [L]."""
    if not frames:
      return {}
    wave_BL = np.zeros((self._rows, self._codec.frame_size), np.float32)
    for row, wave_L in frames.items():
      wave_BL[row] = wave_L
    self._hears, codes_BQ = self._codec.encode_step(self._hears, wave_BL, self._mask(*frames))
    codes_BQ = np.asarray(codes_BQ)
    return {row: codes_BQ[row] for row in frames}

  def decode(self, frames: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Samples [L] of the next frame that each of some rows says, from its codes [q], q <= Q."""
    if not frames:
      return {}
    codes_Bq = np.zeros((self._rows, len(next(iter(frames.values())))), np.int32)
    for row, codes_q in frames.items():
      codes_Bq[row] = codes_q
    self._says, wave_BL = self._codec.decode_step(self._says, codes_Bq, self._mask(*frames))
    wave_BL = np.asarray(wave_BL)
    return {row: wave_BL[row] for row in frames}

  @property
  def delay(self) -> int:
    """Samples by which sound comes after its codes."""
    return self._codec.delay

  def rest(self, row: int) -> np.ndarray:
    """The samples that a row's sound still lacks at its end, well guessed, as nothing follows."""
    return np.asarray(self._says.phase.guess_BV)[row]

  def reset(self, row: int) -> None:
    """A row that begins anew."""
    mask_B = self._mask(row)
    self._hears = self._codec.reset(self._hears, mask_B)
    self._says = self._codec.reset(self._says, mask_B)

  def _mask(self, *rows: int) -> np.ndarray:
    return np.isin(np.arange(self._rows), rows)
