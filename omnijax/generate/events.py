"""What comes out of the service while it is made."""

import dataclasses
from typing import Literal

import numpy as np


@dataclasses.dataclass(frozen=True)
class Text:
  """The next characters of a text, or (`spoken`) of the words that go with speech."""

  delta: str
  spoken: bool


@dataclasses.dataclass(frozen=True)
class Sound:
  """The next samples of speech, float32 [L] in [-1, 1]."""

  wave_L: np.ndarray


@dataclasses.dataclass(frozen=True)
class Picture:
  """A whole picture, uint8 [H, W, C]."""

  pixels_HWC: np.ndarray


@dataclasses.dataclass(frozen=True)
class End:
  """Nothing more comes. It is the last event of every sequence, and there is always one."""

  # stop: the model ended its turn. length: there was no room for more. cancelled: it was asked to.
  reason: Literal["stop", "length", "cancelled", "failed"]
  prompt: int = 0  # positions of the prompt
  written: int = 0  # and of what was written
  error: str = ""


@dataclasses.dataclass(frozen=True)
class Frame:
  """80 ms of a dialogue: what the model says, which may be silence."""

  index: int
  wave_L: np.ndarray  # float32 [frame_size] in [-1, 1]
  text: str  # of words that begin in it
  took_s: float  # from the arrival of the last sample heard to this event


Event = Text | Sound | Picture | End


class TooLong(ValueError):
  """A prompt, or what is put into a dialogue, leaves no room for an answer."""


class Full(RuntimeError):
  """There is no room for more at the moment."""
