"""The id space of the main stream: [ control | text | image codes ], blocks padded to 128.

Audio codes are not in it: they ride beside the main stream as frames (see data/documents.py).
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from omnijax import config as config_lib

BLOCK = 128

# Modality tags of a position.
TEXT, IMAGE, AUDIO = 0, 1, 2
MODALITIES = ("text", "image", "audio")

# Control ids, fixed for ever: a checkpoint's meaning depends on them.
PAD = 0  # nothing to write: padding of a row, and silence of the inner monologue
BOS = 1
EOS = 2
USER = 3  # what follows is said to the model
ASSISTANT = 4  # what follows is said by the model
LISTEN = 5  # frames of somebody else's speech follow
SPEAK = 6  # frames of the model's own speech follow
AUDIO_END = 7
MAX_GRID = 96  # an image is at most this many codes high or wide
_ROWS = 16
_COLS = _ROWS + MAX_GRID
CONTROL = 256


def _pad(n: int) -> int:
  return -(-n // BLOCK) * BLOCK


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocab:
  """Sizes of the blocks, and where each starts.

  An image is written as `rows(h) cols(w)` and then its h * w codes, row by row: its length
  follows from its first two tokens, so it needs no end mark.
  """

  text: int  # pieces of the text tokenizer
  image: int  # codes of the image tokenizer
  audio: int  # codes of each codebook
  codebooks: int  # Q, codebooks per group (speak, listen)
  # Of the vectors that a code stands for in its tokenizer.
  image_dim: int = 8
  code_dim: int = 64  # of an audio code

  @property
  def text_start(self) -> int:
    return CONTROL

  @property
  def image_start(self) -> int:
    return CONTROL + _pad(self.text)

  @property
  def size(self) -> int:
    """Ids of the main stream, a multiple of 128."""
    return self.image_start + _pad(self.image)

  @property
  def no_code(self) -> int:
    """The audio code that means "no code here"; tables have `audio + 1` rows."""
    return self.audio

  @property
  def fingerprint(self) -> str:
    return config_lib.fingerprint(self)


class Vectors(NamedTuple):
  """What codes stand for in their tokenizers, float32: codes that are like have like vectors."""

  image_KA: np.ndarray  # [image, image_dim]
  audio_QCA: np.ndarray  # [codebooks, audio, code_dim]


def rows(h: int) -> int:
  """The id that opens an image of h rows of codes."""
  return _ROWS + _grid(h)


def cols(w: int) -> int:
  """The id that says an image has w columns of codes."""
  return _COLS + _grid(w)


def grid_of(token: int) -> tuple[str, int] | None:
  """("rows", h) or ("cols", w) of a size token, None for any other id."""
  if _ROWS <= token < _ROWS + MAX_GRID:
    return "rows", token - _ROWS + 1
  if _COLS <= token < _COLS + MAX_GRID:
    return "cols", token - _COLS + 1
  return None


def _grid(n: int) -> int:
  if not 1 <= n <= MAX_GRID:
    raise ValueError(f"an image of {n} codes on a side; wanted 1 to {MAX_GRID}: "
                     "resize the image or use a tokenizer that down-samples more.")
  return n - 1


def block_of(vocab: Vocab, ids: np.ndarray) -> np.ndarray:
  """The block of each id: 0 control, 1 text, 2 image; -1 for ids in the padding of a block."""
  ids = np.asarray(ids)
  out = np.full(ids.shape, -1, np.int8)
  out[(ids >= 0) & (ids < CONTROL)] = 0
  out[(ids >= vocab.text_start) & (ids < vocab.text_start + vocab.text)] = 1
  out[(ids >= vocab.image_start) & (ids < vocab.image_start + vocab.image)] = 2
  return out
