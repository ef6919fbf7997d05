"""Made documents of text, pictures and speech, packed as real ones are.

B rows  S positions  F frames  N documents  M modalities  R packed rows, more than B
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.data import documents, loader
from omnijax.data.pack import pack

_ROWS = 32  # drawn and packed for each row that is used
_SPREAD = 0.7  # deviation of the logarithm of a document's length
_SHORTEST = 8  # positions of a document: its controls and something between


def make(data: config_lib.Data, vocab: vocab_lib.Vocab, *, mix: Sequence[float], document: int,
         seed: int = 0) -> loader.Batch:
  """A packed batch of text, of captioned pictures, and of speech, half spoken and half heard.

  Args:
    data: shapes of the batch; its sources aren't read.
    vocab: ids are drawn from it, all alike.
    mix: shares of text, image and audio, by positions.
    document: mean positions of a document; lengths are log-normal.
    seed: of all draws.

  Raises:
    ValueError: the mix, the length and the row's budgets don't fit together.
  """
  share_M = _shares(mix)
  if not _SHORTEST <= document <= data.positions:
    raise ValueError(f"--document is {document}; wanted {_SHORTEST} or more positions and at most "
                     f"data.positions, {data.positions}.")
  spoken = share_M[vocab_lib.AUDIO] * data.positions
  if spoken > data.frames:
    raise ValueError(f"--mix has {share_M[vocab_lib.AUDIO]:.0%} of speech, {spoken:.0f} of a row's "
                     f"{data.positions} positions, and data.frames is {data.frames}; raise "
                     "data.frames or lower the share.")
  rng = np.random.default_rng(seed)
  data = dataclasses.replace(data, caption_dropout=0.0)
  count_M, drawn = np.zeros(len(share_M)), []
  while count_M.sum() < _ROWS * data.rows * data.positions:
    # The modality that is furthest behind, so that shares hold to a document.
    kind = int(np.argmax(share_M * (count_M.sum() + 1) - count_M))
    streams = documents.render(_parts(rng, kind, _length(rng, kind, document, data), vocab),
                               documents.PLAIN, False, data, vocab)
    count_M += np.bincount(streams.modality, minlength=len(count_M))
    drawn.append(streams)
  positions_N = np.array([len(s.main) for s in drawn])
  frames_N = np.array([len(s.frame_at) for s in drawn])
  row_N, rows = pack(positions_N, frames_N, data.positions, data.frames, data.documents)
  chosen = _choose(drawn, row_N, rows, share_M, data)
  made = [loader.assemble([drawn[i] for i in np.flatnonzero(row_N == row)], data, vocab, rng)
          for row in chosen]
  return {name: np.stack([row[name] for row in made]) for name in made[0]}


def _choose(drawn: list[documents.Streams], row_N: np.ndarray, rows: int, share_M: np.ndarray,
            data: config_lib.Data) -> list[int]:
  """Rows that together are nearest to the shares, one after the other: few of many would not be."""
  count_RM = np.zeros((rows, len(share_M)))
  for streams, row in zip(drawn, row_N.tolist(), strict=True):
    count_RM[row] += np.bincount(streams.modality, minlength=len(share_M))
  sum_M, out = np.zeros(len(share_M)), []
  for i in range(data.rows):
    off_R = np.abs(sum_M + count_RM - (i + 1) * data.positions * share_M).sum(1)
    off_R[out] = np.inf
    out.append(int(np.argmin(off_R)))
    sum_M += count_RM[out[-1]]
  return out


def shares(batch: loader.Batch) -> dict[str, float]:
  """Of all positions, those of each modality, and the padding."""
  real = batch["segment"] > 0
  out = {name: float((real & (batch["modality"] == tag)).mean())
         for tag, name in enumerate(vocab_lib.MODALITIES)}
  return out | {"padding": float(1 - real.mean())}


def _shares(mix: Sequence[float]) -> np.ndarray:
  if len(mix) != len(vocab_lib.MODALITIES) or min(mix) < 0 or sum(mix) <= 0:
    raise ValueError(f"--mix is {tuple(mix)}; wanted a share for each of text, image and audio, "
                     "none below 0, such as 60 25 15.")
  return np.asarray(mix, np.float64) / sum(mix)


def _length(rng: np.random.Generator, kind: int, mean: int, data: config_lib.Data) -> int:
  most = data.positions
  if kind == vocab_lib.AUDIO:
    most = min(most, data.frames)
  drawn = rng.lognormal(np.log(mean) - _SPREAD**2 / 2, _SPREAD)
  return int(np.clip(round(drawn), _SHORTEST, most))


def _parts(rng: np.random.Generator, kind: int, length: int, vocab: vocab_lib.Vocab
           ) -> list[documents.Part]:
  """Parts that take at most so many positions; what isn't speech that is heard is learned."""
  def text(n: int) -> np.ndarray:
    return rng.integers(0, vocab.text, (n,))

  role = documents.ASSISTANT
  room = length - 3  # BOS, a turn, EOS
  if kind == vocab_lib.TEXT:
    return [documents.Part(kind, role, text(room))]
  if kind == vocab_lib.IMAGE:
    room -= 2  # rows, columns
    high = min(int(room**0.5), vocab_lib.MAX_GRID)
    wide = min(room // high, vocab_lib.MAX_GRID)
    codes_HW = rng.integers(0, vocab.image, (high, wide))
    return [documents.Part(vocab_lib.TEXT, role, text(room - high * wide)),
            documents.Part(kind, role, codes_HW)]
  heard = rng.random() < 0.5  # and then transcribed, in another turn
  room -= 2 + heard  # the start, and the end with the last acoustic codes
  frames = max(1, room * 4 // 5 if heard else room)
  codes_TQ = rng.integers(0, vocab.audio, (frames, vocab.codebooks))
  if heard:
    return [documents.Part(kind, documents.USER, codes_TQ),
            documents.Part(vocab_lib.TEXT, role, text(room - frames))]
  return [documents.Part(kind, role, codes_TQ, text(frames // 4))]
