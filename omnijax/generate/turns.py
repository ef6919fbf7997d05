"""What rows are asked to write, as the arrays that a step wants.

B rows  T positions of a piece  S positions  G = 2Q codes of a frame  K kinds of token
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from omnijax import sharding
from omnijax.data.documents import Streams
from omnijax.generate import grammar, step
from omnijax.generate.events import TooLong
from omnijax.generate.grammar import Grammar, Layout
from omnijax.generate.sample import Sampling

To = Literal["text", "image", "audio", "any"]
_START = {"text": grammar.FIRST, "image": grammar.ROWS, "audio": grammar.OPEN,
          "any": grammar.TEXT, "talk": grammar.DUPLEX}
PIECE = 32  # positions of a prompt that are run together
_ENDLESS = 1 << 30  # positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
  """What to write after a prompt: one output of a kind, or ("any") what the model likes.

  Before an image the model may write text, such as what it will draw. "talk" is a side of a
  dialogue, which goes on until it is ended.
  """

  to: To | Literal["talk"]
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
      TooLong: the room is too little for the shortest such output.
      ValueError: max_new is.
    """
    if self.to == "talk":
      return _ENDLESS
    h, w = self.grid or (1, 1)
    least = {"text": 2, "any": 2, "image": 3 + h * w, "audio": layout.shortest_speech + 1}[self.to]
    if room < least:
      raise TooLong(f"the prompt leaves {max(room, 0)} positions, and {self.to} output takes "
                       f"at least {least}; raise max_positions or shorten the prompt.")
    if self.to == "image":
      return min(least + self.max_new, room) if self.grid else room
    if self.max_new + 1 < least:
      raise ValueError(f"max_new is {self.max_new}, and {self.to} output takes at least "
                       f"{least - 1} positions; raise max_new.")
    return min(self.max_new + 1, room)


def turn(prompts: Sequence[Streams], goals: Sequence[Goal], limits: Sequence[int] | np.ndarray,
         rows: int, layout: Layout, *, sampling: Sampling, keys_B2: Any, guidance_B: np.ndarray
         ) -> dict[str, Any]:
  """The arrays of a `step.Turn`, before prompts are written but for their last position.

  Args:
    prompts: of the first rows; the final EOS of each marks where the output begins.
    goals, limits: what each of them shall write, and the most positions of it.
    rows: B; those beyond the prompts are done.
    layout: vocabulary and delays.
    sampling: how tokens are drawn.
    keys_B2: see `step.keys`.
    guidance_B: weights of classifier-free guidance; 0 is none.
  """
  def column(values: Any, fill: int, dtype: type = np.int32) -> np.ndarray:
    column_B = np.full(rows, fill, dtype)
    column_B[: len(values)] = values
    return column_B

  grids = [g.grid or (0, 0) for g in goals]
  zeros = np.zeros(rows, np.int32)
  free = [g.to == "any" for g in goals]
  state = dict(
    phase_B=column([_START[g.to] for g in goals], grammar.DONE),
    number_B=column([p.position[-1, 0] for p in prompts], 0), rows_B=zeros, cols_B=zeros,
    count_B=zeros, want_rows_B=column([h for h, _ in grids], 0),
    want_cols_B=column([w for _, w in grids], 0), draws_B=column(free, False, np.bool_),
    speaks_B=column(free, False, np.bool_),
    once_B=column([not f for f in free], True, np.bool_))
  return dict(
    grammar=state, next=_last(prompts, rows, layout), written_B=zeros, limit_B=column(limits, 1),
    key_B=np.asarray(keys_B2),
    setting_BK3=np.repeat(np.asarray(sampling.table(), np.float32)[None], rows, 0),
    guidance_B=np.asarray(guidance_B, np.float32))


def placed(given: dict[str, Any]) -> step.Turn:
  """The arrays of `turn` on the devices of the current mesh."""
  put = sharding.place
  rest = {k: x for k, x in given.items() if k not in ("grammar", "next")}
  return step.Turn(grammar=Grammar(**put(given["grammar"])), next=step.Next(**put(given["next"])),
                   **put(rest))


def pieces(prompts: Sequence[Streams], B: int, layout: Layout) -> list[dict[str, np.ndarray]]:
  """Prompts without their last position and final EOS, right-padded, cut into pieces of one length.
  """
  T, Q = PIECE, layout.vocab.codebooks
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


def _last(prompts: Sequence[Streams], B: int, layout: Layout) -> dict[str, np.ndarray]:
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
