"""A model of a few thousand parameters, and real documents of every modality to feed it."""

import dataclasses

import numpy as np

from omnijax import config
from omnijax import vocab as vocab_lib
from omnijax.data import documents

VOCAB = vocab_lib.Vocab(text=200, image=100, audio=48, codebooks=3, image_dim=5, code_dim=6)
_RNG = np.random.default_rng(0)
VECTORS = vocab_lib.Vectors(_RNG.normal(size=(100, 5)).astype(np.float32),
                            _RNG.normal(size=(3, 48, 6)).astype(np.float32))
MODEL = config.Model(layers=2, dim=32, heads=4, kv_heads=2, head_dim=16, mlp=64, depth_layers=1,
                     depth_dim=32, depth_heads=2, depth_mlp=32)
DATA = config.Data(sources=("none",), rows=8, positions=64, frames=24)


def run(**changes) -> config.Run:
  """The tiny run; keywords replace whole sections, or fields of one given as a dict."""
  base = config.Run(name="tiny", model=MODEL, data=DATA, train=config.Train(steps=10),
                    optim=config.Optim(warmup_steps=2, peak_lr=1e-2))
  new = {k: dataclasses.replace(getattr(base, k), **v) if isinstance(v, dict) else v
         for k, v in changes.items()}
  return dataclasses.replace(base, **new)


def parts(r: np.random.Generator) -> list[documents.Part]:
  """One to three parts of random kinds, each said by the user or the assistant."""
  make = {
    vocab_lib.TEXT: lambda: (r.integers(0, VOCAB.text, r.integers(1, 6)), None),
    vocab_lib.IMAGE: lambda: (r.integers(0, VOCAB.image, (2, 3)), None),
    vocab_lib.AUDIO: lambda: (r.integers(0, VOCAB.audio, (r.integers(3, 7), VOCAB.codebooks)),
                              r.integers(0, VOCAB.text, 2)),
  }
  kinds = r.integers(0, 3, r.integers(1, 4))
  roles = r.choice([documents.USER, documents.ASSISTANT], len(kinds))
  return [documents.Part(int(k), int(role), *make[int(k)]())
          for k, role in zip(kinds, roles, strict=True)]


def streams(r: np.random.Generator) -> documents.Streams:
  """A rendered document."""
  return documents.render(parts(r), documents.PLAIN, False, DATA, VOCAB)


def pack(rows: list[list[documents.Streams]]) -> dict[str, np.ndarray]:
  """A batch with these documents in these rows, laid out by hand."""
  B, S, F, Q = len(rows), DATA.positions, DATA.frames, VOCAB.codebooks
  b = {"main": np.zeros((B, S), np.int32), "modality": np.zeros((B, S), np.int8),
       "segment": np.zeros((B, S), np.int32), "position": np.zeros((B, S, 3), np.int32),
       "weight": np.zeros((B, S), np.float32), "frame_at": np.full((B, F), S, np.int32),
       "frames": np.full((B, F, 2 * Q), VOCAB.no_code, np.int32),
       "frame_weight": np.zeros((B, F, Q), np.float32)}
  for i, row in enumerate(rows):
    at, frame = 0, 0
    for j, doc in enumerate(row):
      n, m = len(doc.main), len(doc.frame_at)
      for key in ("main", "modality", "position", "weight"):
        b[key][i, at : at + n] = getattr(doc, key)
      b["segment"][i, at : at + n] = j + 1
      b["frame_at"][i, frame : frame + m] = doc.frame_at + at
      b["frames"][i, frame : frame + m] = doc.frames
      b["frame_weight"][i, frame : frame + m] = doc.frame_weight
      at, frame = at + n, frame + m
    assert at <= S and frame <= F
  return b


def batch(seed: int, rows: int = 8) -> dict[str, np.ndarray]:
  """Rows of random documents with every modality somewhere; rows fill up unequally."""
  r = np.random.default_rng(seed)
  out = []
  for i in range(rows):
    row, positions, frames = [], 0, 0
    budget = DATA.positions if i % 2 else DATA.positions // 2
    while True:
      doc = streams(r)
      positions, frames = positions + len(doc.main), frames + len(doc.frame_at)
      if positions > budget or frames > DATA.frames:
        break
      row.append(doc)
    out.append(row)
  return pack(out)
