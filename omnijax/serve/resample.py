"""Another sample rate for sound that comes in pieces, with as little delay as a filter allows.

soxr's streams work in blocks: from 24 to 16 kHz they hold back 33 ms and more, nearly half a frame
of a talk, in each direction. The filter here holds back 1 ms.

L samples  K taps
"""

import math

import numpy as np

_CROSSINGS = 16  # of the sinc on each side; half as many periods of the lower rate are held back
_BETA = 7.0  # of the Kaiser window: 70 dB below what is let through


class Resampler:
  """Resamples one sound, piece by piece; how it is cut into pieces makes no difference.

  A windowed sinc, evaluated where an output sample is due (Smith, "Digital Audio Resampling"). An
  output sample n is the input at the time n / out_rate: there is no shift, only lateness.

  Args:
    in_rate, out_rate: samples per second.
  """

  def __init__(self, in_rate: int, out_rate: int):
    if min(in_rate, out_rate) < 1:
      raise ValueError(f"sample rates are {in_rate} and {out_rate}; wanted positive numbers.")
    shared = math.gcd(in_rate, out_rate)
    self._up, self._down = out_rate // shared, in_rate // shared
    self._half = 0
    if in_rate != out_rate:
      self._half = math.ceil(_CROSSINGS * max(1.0, in_rate / out_rate))
      self._taps = [self._phase(p, min(1.0, out_rate / in_rate)) for p in range(self._up)]
    self._restart()

  @property
  def delay(self) -> int:
    """Input samples that are held back."""
    return self._half

  def _phase(self, phase: int, scale: float) -> np.ndarray:
    """Taps [K] for an output that lies phase / up after an input sample."""
    at_K = np.arange(1 - self._half, self._half + 1) - phase / self._up
    window_K = np.i0(_BETA * np.sqrt(np.maximum(1 - (at_K / self._half) ** 2, 0))) / np.i0(_BETA)
    taps_K = scale * np.sinc(scale * at_K) * window_K
    return (taps_K / taps_K.sum()).astype(np.float32)

  def _restart(self) -> None:
    self._heard = 0  # input samples
    self._made = 0  # output samples
    # From the input sample `_from` on; before the first there was silence.
    self._kept_L = np.zeros(max(self._half - 1, 0), np.float32)
    self._from = -len(self._kept_L)

  def feed(self, wave_L: np.ndarray) -> np.ndarray:
    """The output samples, float32 [L], that the input float32 [L] makes known."""
    self._heard += len(wave_L)
    if not self._half:
      self._made += len(wave_L)
      return wave_L
    self._kept_L = np.concatenate([self._kept_L, wave_L])
    return self._make(self._heard - self._half)

  def flush(self) -> np.ndarray:
    """The samples [L] that are still due, silence follows; what is fed next is another sound."""
    due = -(-self._heard * self._up // self._down) - self._made
    if self._half:
      self._kept_L = np.concatenate([self._kept_L, np.zeros(self._half, np.float32)])
      rest_L = self._make(self._heard)[:due]
    else:
      rest_L = np.zeros(0, np.float32)
    self._restart()
    return rest_L

  def _make(self, known: int) -> np.ndarray:
    """All outputs not yet made that lie before the input sample `known`."""
    end = max(-(-known * self._up // self._down), self._made)
    out_L = np.empty(end - self._made, np.float32)
    for i in range(min(self._up, len(out_L))):
      # Outputs i, i + up, ... have one phase, and lie `down` input samples apart.
      at, phase = divmod((self._made + i) * self._down, self._up)
      first = at + 1 - self._half - self._from
      rows = np.lib.stride_tricks.sliding_window_view(self._kept_L, 2 * self._half)
      n = -(-(len(out_L) - i) // self._up)
      out_L[i :: self._up] = rows[first :: self._down][:n] @ self._taps[phase]
    self._made = end
    keep = max(end * self._down // self._up + 1 - self._half - self._from, 0)
    self._kept_L = self._kept_L[keep:]
    self._from += keep
    return out_L
