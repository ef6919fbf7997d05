"""Sound as it travels: 16-bit PCM at 24 kHz, or G.711 at 8 kHz.

L samples
"""

import numpy as np

RATES = {"audio/pcm": 24000, "audio/pcmu": 8000, "audio/pcma": 8000}  # samples per second
WIDTHS = {"audio/pcm": 2, "audio/pcmu": 1, "audio/pcma": 1}  # bytes of a sample


def _mu_law() -> np.ndarray:
  """What each code of G.711 mu-law stands for, int16 [256]."""
  code = ~np.arange(256) & 0xFF
  size = (((code & 15) << 3) + 132 << (code >> 4 & 7)) - 132
  return np.where(code & 128, -size, size).astype(np.int16)


def _a_law() -> np.ndarray:
  """What each code of G.711 A-law stands for, int16 [256]."""
  code = np.arange(256) ^ 0x55
  step, low = code >> 4 & 7, (code & 15) << 4
  size = np.where(step, (low + 264) << np.maximum(step - 1, 0), low + 8)
  return np.where(code & 128, size, -size).astype(np.int16)


_LAWS = {"audio/pcmu": _mu_law(), "audio/pcma": _a_law()}


def _nearest(law: np.ndarray) -> np.ndarray:
  """The code for each 16-bit sample, uint8 [65536] from -32768 on: that of the nearest value."""
  order = np.argsort(law, kind="stable")
  values = law[order].astype(np.int32)
  edges = (values[1:] + values[:-1]) / 2
  return order[np.searchsorted(edges, np.arange(-32768, 32768))].astype(np.uint8)


_CODES = {kind: _nearest(law) for kind, law in _LAWS.items()}


def decode(data: bytes, kind: str) -> np.ndarray:
  """Samples float32 [L] in [-1, 1] of sound in one of RATES.

  Raises:
    ValueError: there is half a sample at the end.
  """
  if len(data) % WIDTHS[kind]:
    raise ValueError(f"{len(data)} bytes of {kind} are no whole number of samples of "
                     f"{WIDTHS[kind]} bytes; send whole samples.")
  if kind == "audio/pcm":
    values = np.frombuffer(data, "<i2")
  else:
    values = _LAWS[kind][np.frombuffer(data, np.uint8)]
  return values.astype(np.float32) / 32768


def encode(wave_L: np.ndarray, kind: str) -> bytes:
  """Samples [L], those beyond [-1, 1] clipped, in one of RATES."""
  values = np.clip(np.round(wave_L * 32768), -32768, 32767).astype("<i2")
  if kind == "audio/pcm":
    return values.tobytes()
  return _CODES[kind][values.astype(np.int32) + 32768].tobytes()
