"""Batches of prompts of any lengths to streams, with few compiled shapes.

B rows  S positions  N steps
"""

from collections.abc import Sequence

import jax
import numpy as np

from omnijax import config as config_lib
from omnijax import sharding
from omnijax import vocab as vocab_lib
from omnijax.data.documents import Streams
from omnijax.generate import cache, grammar, step, turns, weights
from omnijax.generate.grammar import Layout
from omnijax.generate.sample import Sampling
from omnijax.generate.turns import Goal
from omnijax.model.transformer import Omni

_LEAST = 64  # positions of the smallest cache; others are this times a power of two
_AHEAD = 48  # positions that a cache has room for beyond the prompt, to begin with


class Engine:
  """A model with its compiled prefill and step loop; the level of streams, without tokenizers."""

  def __init__(self, model: Omni, data: config_lib.Data, *, max_positions: int, max_batch: int):
    self.layout = Layout(model.vocab, data.text_delay, data.acoustic_delay)
    self.max_positions, self.max_batch = max_positions, max_batch
    self.mesh, self._ways = weights.mesh_of(model), weights.ways(model)
    with jax.set_mesh(self.mesh):
      self.model = weights.prepare(model)

  def write(self, prompts: Sequence[Streams], goals: Sequence[Goal], *, sampling: Sampling,
            seed: int, guidance: float = 1.0, without: Sequence[Streams] | None = None
            ) -> list[Streams]:
    """Continues each prompt until its goal is reached.

    Args:
      prompts: as documents.render gives them; the final EOS marks where the output begins and is
        not part of the prompt.
      goals: one for each prompt.
      sampling: how tokens are drawn.
      seed: prompt i's output is a function of (seed, i), the prompt, the goal and the settings.
      guidance: weight of classifier-free guidance of image codes; 1 is none.
      without: for guidance, the prompts without what they ask for.

    Returns:
      The new positions only, in the form of rendered documents, without the end of the turn.

    Raises:
      ValueError: a prompt and its output don't fit `max_positions`.
    """
    out: list[Streams] = []
    size = self.max_batch // 2 if without is not None else self.max_batch
    size = max(size // self._ways * self._ways, self._ways)
    for i in range(0, len(prompts), size):
      take = slice(i, i + size)
      rows = [list(prompts[take])] if without is None else [list(prompts[take]),
                                                            list(without[take])]
      out += self._batch(rows, goals[take], sampling, seed, i, guidance)
    return out

  def _batch(self, rows: list[list[Streams]], goals: Sequence[Goal], sampling: Sampling,
             seed: int, first: int, guidance: float) -> list[Streams]:
    """One batch; `rows` holds the prompts and, for guidance, the same without what they ask."""
    n, copies = len(goals), len(rows)
    longest = [max(len(r[i].main) - 1 for r in rows) for i in range(n)]
    limits = [g.positions(self.layout, self.max_positions - length)
              for g, length in zip(goals, longest, strict=True)]
    # The cache starts small and grows when it is full: most turns end long before their limit.
    S = _bucket(max(length + min(limit, _AHEAD) for length, limit in
                    zip(longest, limits, strict=True)))
    B = self._ways
    while B < n:
      B *= 2
    every = [r[i] for i in range(n) for r in rows]  # rows of a pair are neighbours
    written = []
    with jax.set_mesh(self.mesh):
      state = cache.empty(self.model, rows=B * copies, positions=S)
      for piece in turns.pieces(every, B * copies, self.layout):
        state = step.prefill(self.model, state, step.Piece(**sharding.place(piece)))
      keys_B2 = np.repeat(np.asarray(step.keys(seed, first, B)), copies, 0)
      turn = turns.placed(turns.turn(
        every, [g for g in goals for _ in rows], np.repeat(limits, copies), B * copies,
        self.layout, sampling=sampling, keys_B2=keys_B2,
        guidance_B=np.full(B * copies, guidance if copies == 2 else 0)))
      while True:
        state, turn, part = step.run(self.model, state, turn, layout=self.layout,
                                     guided=copies == 2)
        phase_B, part = jax.device_get((turn.grammar.phase_B, part))
        written.append(part)
        if (phase_B == grammar.DONE).all():
          break
        S = _bucket(S + 1)
        state = cache.grow(state, positions=S)
    whole = [np.concatenate(x) for x in zip(*written, strict=True)]
    return [_streams(whole, i * copies, self.layout) for i in range(n)]


def _bucket(positions: int) -> int:
  """The smallest size of cache that holds so many positions."""
  S = _LEAST
  while S < positions:
    S *= 2
  return S


def _streams(written: Sequence[np.ndarray], row: int, layout: Layout) -> Streams:
  """What one row wrote, as a rendered document; `written` are the fields of step.Written."""
  *fields, wrote_NB = written
  main, modality, position, codes = (x[wrote_NB[:, row], row] for x in fields)
  frame_at = np.flatnonzero(modality == vocab_lib.AUDIO).astype(np.int32)
  codes = codes[frame_at]
  nothing = np.full_like(codes, layout.vocab.no_code)
  return Streams(main, modality.astype(np.int8), position, np.ones(len(main), np.float32),
                 frame_at, np.concatenate([codes, nothing], 1),
                 (codes != layout.vocab.no_code).astype(np.float32))
