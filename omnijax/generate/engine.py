"""Batches of prompts of any lengths to streams, with few compiled shapes.

B rows  S positions  T positions of a piece  G = 2Q codes of a frame
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np

from omnijax import config as config_lib
from omnijax import sharding
from omnijax import vocab as vocab_lib
from omnijax.data.documents import Streams
from omnijax.generate import cache, grammar, step, weights
from omnijax.generate.grammar import Grammar, Layout
from omnijax.generate.sample import Sampling
from omnijax.model.transformer import Omni

To = Literal["text", "image", "audio", "any"]
_START = {"text": grammar.FIRST, "image": grammar.ROWS, "audio": grammar.OPEN,
          "any": grammar.TEXT}
_PIECE = 32  # positions of a prompt that are run together
_LEAST = 64  # positions of the smallest cache; others are this times a power of two
_AHEAD = 48  # positions that a cache has room for beyond the prompt, to begin with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
  """What to write after a prompt: one output of a kind, or ("any") what the model likes.

  Before an image the model may write text, such as what it will draw.
  """

  to: To
  grid: tuple[int, int] | None = None  # size of images in codes; None leaves it to the model
  max_new: int = 256  # most positions of text or speech; images take what they take

  def __post_init__(self) -> None:
    if self.to not in _START:
      raise ValueError(f"output {self.to!r} is unknown; use one of {', '.join(_START)}.")
    if self.max_new < 1:
      raise ValueError(f"max_new is {self.max_new}; it must be 1 or more.")

  def positions(self, layout: Layout, room: int) -> int:
    """Positions that the turn may take, its end included, where there is room for so many.

    Raises:
      ValueError: the room, or max_new, is too little for the shortest such output.
    """
    h, w = self.grid or (1, 1)
    least = {"text": 2, "any": 2, "image": 3 + h * w, "audio": layout.shortest_speech + 1}[self.to]
    if room < least:
      raise ValueError(f"the prompt leaves {max(room, 0)} positions, and {self.to} output takes "
                       f"at least {least}; raise max_positions or shorten the prompt.")
    if self.to == "image":
      return min(least + self.max_new, room) if self.grid else room
    if self.max_new + 1 < least:
      raise ValueError(f"max_new is {self.max_new}, and {self.to} output takes at least "
                       f"{least - 1} positions; raise max_new.")
    return min(self.max_new + 1, room)


class Engine:
  """A model with its compiled prefill and step loop; the level of streams, without tokenizers."""

  def __init__(self, model: Omni, data: config_lib.Data, *, max_positions: int, max_batch: int):
    self.layout = Layout(model.vocab, data.text_delay, data.acoustic_delay)
    self.max_positions, self.max_batch = max_positions, max_batch
    placed = model.head_DV[...].sharding
    assert isinstance(placed, jax.sharding.NamedSharding)
    assert isinstance(placed.mesh, jax.sharding.Mesh)
    self.mesh = placed.mesh
    with jax.set_mesh(self.mesh):
      self.model = weights.prepare(model)
    axes = model.rules("batch")[0] or ()
    axes = (axes,) if isinstance(axes, str) else axes
    self._ways = int(np.prod([self.mesh.shape[a] for a in axes]))

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
      for piece in _pieces(every, B * copies, self.layout):
        state = step.prefill(self.model, state, step.Piece(**sharding.place(piece)))
      given = self._turn(every, goals, limits, B, copies, first, sampling, seed, guidance)
      turn = step.Turn(grammar=Grammar(**sharding.place(given.pop("grammar"))),
                       next=step.Next(**sharding.place(given.pop("next"))),
                       **sharding.place(given))
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

  def _turn(self, prompts: list[Streams], goals: Sequence[Goal], limits: Sequence[int], B: int,
            copies: int, first: int, sampling: Sampling, seed: int, guidance: float) -> dict:
    """The arrays of a Turn; rows beyond the prompts are done."""
    n = len(goals)

    def column(values: Sequence[int], fill: int, dtype: type = np.int32) -> np.ndarray:
      column_B = np.full(B, fill, dtype)
      column_B[:n] = values
      return np.repeat(column_B, copies)

    grids = [g.grid or (0, 0) for g in goals]
    zeros = np.zeros(B * copies, np.int32)
    numbers = zeros.copy()
    numbers[: len(prompts)] = [p.position[-1, 0] for p in prompts]
    state = dict(
      phase_B=column([_START[g.to] for g in goals], grammar.DONE), number_B=numbers,
      rows_B=zeros, cols_B=zeros, count_B=zeros,
      want_rows_B=column([h for h, _ in grids], 0), want_cols_B=column([w for _, w in grids], 0),
      draws_B=column([g.to == "any" for g in goals], False, np.bool_),
      speaks_B=column([g.to == "any" for g in goals], False, np.bool_),
      once_B=column([g.to != "any" for g in goals], True, np.bool_))
    table_K3 = np.asarray(sampling.table(), np.float32)
    return dict(
      grammar=state, next=_last(prompts, B * copies, self.layout), written_B=zeros,
      limit_B=column(limits, 1), key_B=np.repeat(np.asarray(step.keys(seed, first, B)), copies, 0),
      setting_BK3=np.repeat(table_K3[None], B * copies, 0),
      guidance_B=np.full(B * copies, guidance if copies == 2 else 0, np.float32))


def _bucket(positions: int) -> int:
  """The smallest size of cache that holds so many positions."""
  S = _LEAST
  while S < positions:
    S *= 2
  return S


def _pieces(prompts: list[Streams], B: int, layout: Layout) -> list[dict[str, np.ndarray]]:
  """Prompts without their last position and final EOS, right-padded, cut into pieces of one length.
  """
  T, Q = _PIECE, layout.vocab.codebooks
  lengths = np.array([len(p.main) - 2 for p in prompts])
  S = -(-int(lengths.max()) // T) * T
  main_BS = np.zeros((B, S), np.int32)
  modality_BS = np.zeros((B, S), np.int32)
  position_BS3 = np.zeros((B, S, 3), np.int32)
  frames_BSG = np.full((B, S, 2 * Q), layout.vocab.no_code, np.int32)
  length_B = np.zeros(B, np.int32)
  for b, (p, n) in enumerate(zip(prompts, lengths, strict=True)):
    main_BS[b, :n], modality_BS[b, :n], position_BS3[b, :n] = (
      p.main[:n], p.modality[:n], p.position[:n])
    some = p.frame_at < n
    frames_BSG[b, p.frame_at[some]] = p.frames[some]
    length_B[b] = n
  cut = lambda x, i: np.ascontiguousarray(x[:, i : i + T])
  return [dict(main_BT=cut(main_BS, i), modality_BT=cut(modality_BS, i),
               position_BT3=cut(position_BS3, i), frames_BTG=cut(frames_BSG, i),
               count_B=np.clip(length_B - i, 0, T)) for i in range(0, S, T)]


def _last(prompts: list[Streams], B: int, layout: Layout) -> dict[str, np.ndarray]:
  """The last position of each prompt, before its final EOS, as the fields of step.Next."""
  main_B, modality_B = np.zeros(B, np.int32), np.zeros(B, np.int32)
  position_B3 = np.zeros((B, 3), np.int32)
  frames_BG = np.full((B, 2 * layout.vocab.codebooks), layout.vocab.no_code, np.int32)
  for b, p in enumerate(prompts):
    n = len(p.main) - 2
    main_B[b], modality_B[b], position_B3[b] = p.main[n], p.modality[n], p.position[n]
    if len(p.frame_at) and p.frame_at[-1] == n:
      frames_BG[b] = p.frames[-1]
  return dict(main_B=main_B, modality_B=modality_B, position_B3=position_B3, frames_BG=frames_BG,
              takes_B=np.arange(B) < len(prompts))


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
