"""The documents of a packed batch read back from its arrays: the inverse of documents.render.

What training gets is all there is here: what a delay moved is moved back, what is hidden stays so.

S positions of a row  T frames of a recording  Q codebooks  h w sides of a picture in codes
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib


@dataclasses.dataclass(frozen=True)
class Sound:
  """Codes of one side of a recording, int32 [T, Q]; those that are hidden are `no_code`."""

  kind: str  # of packing.KINDS
  codes: np.ndarray
  hidden: int
  learnt: int  # of its codes


@dataclasses.dataclass(frozen=True)
class Piece:
  """A stretch of a document that is one thing: a control token, text, a picture, or frames.

  `weight` is the loss weight of its main tokens, least and most. Frames have their `sounds`, and
  the `words` of the main stream beside them: (frame of the sound, main token), the end of the sound
  included where it is there.
  """

  kind: str  # control, text, image, audio
  start: int  # position in the row
  stop: int
  weight: tuple[float, float]
  ids: np.ndarray  # main tokens; of text and of images those of their tokenizers
  sounds: tuple[Sound, ...] = ()
  words: tuple[tuple[int, int], ...] = ()


def read(batch: Mapping[str, np.ndarray], row: int, segment: int, data: config_lib.Data,
         vocab: vocab_lib.Vocab, task: str) -> list[Piece]:
  """The pieces of one document, in order, without gaps.

  Args:
    batch: arrays as the loader gives them.
    row, segment: which document.
    data: the delays are read.
    vocab: of the batch.
    task: how the document was rendered; what is followed is longer than its sound.
  """
  at_n = np.flatnonzero(batch["segment"][row] == segment)
  at, stop, out = int(at_n[0]), int(at_n[-1]) + 1, list[Piece]()
  while at < stop:
    kind, size = _next(batch, row, at, stop, vocab)
    span = slice(at, at + size)
    weight_n, ids = batch["weight"][row, span], batch["main"][row, span]
    weight = float(weight_n.min()), float(weight_n.max())
    if kind == "audio":
      sounds, words = _sounds(batch, row, span, data, vocab, task)
      out.append(Piece(kind, at, at + size, weight, ids, sounds, words))
    else:
      start = {"text": vocab.text_start, "image": vocab.image_start}.get(kind, 0)
      codes = ids - start
      if kind == "image":
        h, w = (vocab_lib.grid_of(int(t)) for t in batch["main"][row, at - 2 : at])
        assert h is not None and w is not None
        codes = codes.reshape(h[1], w[1])
      out.append(Piece(kind, at, at + size, weight, codes))
    at += size
  return out


def _next(batch: Mapping[str, np.ndarray], row: int, at: int, stop: int, vocab: vocab_lib.Vocab
          ) -> tuple[str, int]:
  """What is at a position, and over how many it goes on."""
  def while_(same_n: np.ndarray) -> int:
    return len(same_n) if same_n.all() else int(same_n.argmin())

  modality_n = batch["modality"][row, at:stop]
  if modality_n[0] == vocab_lib.AUDIO:
    return "audio", while_(modality_n == vocab_lib.AUDIO)
  if modality_n[0] == vocab_lib.IMAGE:
    return "image", while_(modality_n == vocab_lib.IMAGE)
  text_n = (vocab_lib.block_of(vocab, batch["main"][row, at:stop]) == 1) & (
    modality_n == vocab_lib.TEXT)
  if text_n[0]:
    weight_n = batch["weight"][row, at:stop]
    return "text", while_(text_n & (weight_n == weight_n[0]))
  return "control", 1


def _sounds(batch: Mapping[str, np.ndarray], row: int, span: slice, data: config_lib.Data,
            vocab: vocab_lib.Vocab, task: str
            ) -> tuple[tuple[Sound, ...], tuple[tuple[int, int], ...]]:
  """Both sides of a recording with their delays undone, and the words beside them."""
  Q, n, none = vocab.codebooks, span.stop - span.start, vocab.no_code
  frame_at, weight_PQ = batch["frame_at"][row], batch["frame_weight"][row]
  mine = np.flatnonzero((frame_at >= span.start) & (frame_at < span.stop))
  mine = mine[np.argsort(frame_at[mine])]
  frames_n = batch["frames"][row][mine]
  assert (frame_at[mine] == np.arange(span.start, span.stop)).all()
  spoken_n = frames_n[:, 0] != none
  # Only what is spoken can have its text first, and nothing of that is ever hidden.
  lead = int(spoken_n.argmax()) if spoken_n.any() else 0
  T = n - data.acoustic_delay - lead - (data.follow_delay if task == "follow" else 0)
  opener = batch["main"][row, span.start - 1]
  learnt = int((weight_PQ[mine[mine < len(weight_PQ)]] > 0).sum())
  sounds = []
  for kind, begins, group, n_learnt in (
      ("speech spoken", vocab_lib.SPEAK, frames_n[:, :Q], learnt),
      ("speech heard", vocab_lib.LISTEN, frames_n[:, Q:], 0)):
    if opener == begins or (group != none).any():
      late = lead + data.acoustic_delay
      codes = np.concatenate([group[lead : lead + T, :1], group[late : late + T, 1:]], 1)
      sounds.append(Sound(kind, codes, int((codes == none).sum()), n_learnt))
  main_n = batch["main"][row, span]
  words = tuple((int(i) - lead, int(main_n[i])) for i in np.flatnonzero(main_n != vocab_lib.PAD))
  return tuple(sounds), words


def audible(sound: Sound, vocab: vocab_lib.Vocab) -> np.ndarray:
  """The codes of a sound with those that are hidden filled in, so that a codec can play them.

  Each is that of the nearest frame before, else after, that has one; where none of a codebook is
  there, it and those after it are left out. At least the first stays: of nothing, code 0.
  """
  codes, keep = sound.codes.copy(), 0
  for q in range(codes.shape[1]):
    there = np.flatnonzero(codes[:, q] != vocab.no_code)
    if not len(there):
      break
    nearest = np.clip(np.searchsorted(there, np.arange(len(codes)), side="right") - 1, 0, None)
    codes[:, q] = codes[there[nearest], q]
    keep = q + 1
  if not keep:
    codes[:, 0], keep = 0, 1
  return codes[:, :keep]
