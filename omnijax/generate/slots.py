"""Rows of one batch that begin and end when they like: streams of people who come and go.

Everything has one shape, so nothing is compiled again: a row is prefilled piece by piece while
others wait, steps take the rows that are ready, and what a row keeps is a ring of its newest
positions, however long it goes on.

B rows  S positions of the ring  Q codebooks
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from omnijax import config as config_lib
from omnijax.data.documents import Streams
from omnijax.generate import cache, step, turns, weights
from omnijax.generate.cache import State
from omnijax.generate.grammar import Layout
from omnijax.generate.sample import Sampling
from omnijax.generate.turns import Goal
from omnijax.model.transformer import Omni


class Work(NamedTuple):
  """What a row, or a pair of rows for guidance, is to do."""

  prompts: list[Streams]  # as documents.render gives them; of a pair the second lacks what is asked
  goal: Goal
  limit: int  # most positions of the output, its end included
  sampling: Sampling
  seed: int
  guidance: float = 0.0


class Slots:
  """A model and B rows.

  Args:
    model: the weights, on devices that don't share out the batch.
    data: the delays are read.
    rows: B; for guided pictures a multiple of 2, of which two neighbours are taken.
    positions: most of a prompt and its output; dialogues go on for ever and see the newest of them,
      or as many as the model's window.
    int8: weights and cache are rounded to 8 bits.
    silence_Q: codes of silence.
  """

  def __init__(self, model: Omni, data: config_lib.Data, *, rows: int, positions: int,
               silence_Q: np.ndarray, int8: bool = False):
    self.layout = Layout(model.vocab, data.text_delay, data.acoustic_delay)
    self.rows, self.positions = rows, positions
    self.mesh = weights.mesh_of(model)
    if (ways := weights.ways(model)) > 1:
      raise ValueError(f"the model's mesh shares out a batch over {ways} devices; slots come and "
                       "go one by one: put it on a mesh of tensor only.")
    window = model.cfg.attention_window
    # With room to go back a little.
    self.kept = window + turns.PIECE if window else positions
    self._nothing_BQ = np.full((rows, model.vocab.codebooks), model.vocab.no_code, np.int32)
    self.silence_Q = np.asarray(silence_Q, np.int32)
    with jax.set_mesh(self.mesh):
      self.model = weights.prepare(model, int8=int8)
      self.state = cache.empty(self.model, rows=rows, positions=self.kept, int8=int8)
      self.turn = turns.placed(self._turn(Work([], Goal(to="text"), 1, Sampling(), 0), rows))

  def begin(self, row: int, work: Work) -> list[tuple[int, step.Piece]]:
    """Gives a row, or two, to some work; the pieces it returns are to be prefilled in order."""
    copies = len(work.prompts)
    pieces = [(row + i, piece) for i, prompt in enumerate(work.prompts)
              for piece in self.pieces(prompt)]
    with jax.set_mesh(self.mesh):
      mask_B = np.isin(np.arange(self.rows), np.arange(row, row + copies))
      self.state = _reset(self.state, mask_B)
      self.turn = _put(self.turn, jnp.int32(row), turns.placed(self._turn(work, copies)))
    return pieces

  def go_on(self, row: int, work: Work) -> list[tuple[int, step.Piece]]:
    """Has a row that isn't reset read more, and then do some work."""
    with jax.set_mesh(self.mesh):
      self.turn = _put(self.turn, jnp.int32(row), turns.placed(self._turn(work, 1)))
    return [(row, piece) for piece in self.pieces(work.prompts[0])]

  def pieces(self, prompt: Streams) -> list[step.Piece]:
    """A prompt without its last position and its EOS."""
    return [step.Piece(**{k: jnp.asarray(x) for k, x in piece.items()})
            for piece in turns.pieces([prompt], 1, self.layout)]

  def prefill(self, row: int, piece: step.Piece) -> None:
    """Reads a piece into a row."""
    with jax.set_mesh(self.mesh):
      self.state = _prefill(self.model, self.state, jnp.int32(row), piece)

  def step(self, active_B: np.ndarray, heard_BQ: np.ndarray | None = None,
           quiet_B: np.ndarray | None = None) -> step.Written:
    """Lets the active rows take their position and write the next one.

    Args:
      active_B: bool [B].
      heard_BQ: codes of what each row that talks has heard meanwhile.
      quiet_B: rows that may only be silent.

    Returns:
      numpy arrays.
    """
    heard = step.Heard(*map(jnp.asarray, (
      self._nothing_BQ if heard_BQ is None else heard_BQ,
      np.zeros(self.rows, bool) if quiet_B is None else quiet_B, self.silence_Q)))
    with jax.set_mesh(self.mesh):
      self.state, self.turn, written = _step(
        self.model, self.state, self.turn, jnp.asarray(active_B, bool), heard, layout=self.layout,
        guided=self.rows % 2 == 0)
    return jax.device_get(written)

  def replace(self, row: int, main: int, frames_G: np.ndarray) -> None:
    """Changes what the position is that a row stands before."""
    with jax.set_mesh(self.mesh):
      self.turn = _replace(self.turn, jnp.int32(row), jnp.int32(main), jnp.asarray(frames_G))

  def rewind(self, row: int, length: int) -> None:
    """Forgets what a row has beyond so many positions."""
    with jax.set_mesh(self.mesh):
      self.state = _rewind(self.state, jnp.int32(row), jnp.int32(length))

  def warm(self) -> None:
    """Compiles what is rarely wanted, at the cost of what row 0 has."""
    self.rewind(0, 0)
    self.replace(0, 0, np.concatenate([self._nothing_BQ[0]] * 2))

  def _turn(self, work: Work, rows: int) -> dict:
    n = len(work.prompts)
    return turns.turn(
      work.prompts, [work.goal] * n, [work.limit] * n, rows, self.layout, sampling=work.sampling,
      keys_B2=np.repeat(np.asarray(step.keys(work.seed, 0, 1)), rows, 0),
      guidance_B=np.full(rows, work.guidance if n == 2 else 0.0))


_step = jax.jit(step.step, donate_argnames=("state", "turn"), static_argnames=("layout", "guided"))


@functools.partial(jax.jit, donate_argnames="turn")
def _put(turn: step.Turn, row: jax.Array, some: step.Turn) -> step.Turn:
  """The turn with that of some rows from one on."""
  put = lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, row, 0)
  return jax.tree.map(put, turn, some)


@functools.partial(jax.jit, donate_argnames="turn")
def _replace(turn: step.Turn, row: jax.Array, main: jax.Array, frames_G: jax.Array) -> step.Turn:
  then = turn.next._replace(main_B=turn.next.main_B.at[row].set(main),
                            frames_BG=turn.next.frames_BG.at[row].set(frames_G))
  return dataclasses.replace(turn, next=then)


@functools.partial(jax.jit, donate_argnames="state")
def _reset(state: State, mask_B: jax.Array) -> State:
  return cache.reset(state, mask_B)


@functools.partial(jax.jit, donate_argnames="state")
def _rewind(state: State, row: jax.Array, length: jax.Array) -> State:
  return cache.rewind(state, state.length_B.at[row].set(length))


@functools.partial(jax.jit, donate_argnames="state")
def _prefill(model: Omni, state: State, row: jax.Array, piece: step.Piece) -> State:
  """A piece of one row; the others are not touched."""
  rows = lambda x: int(x.ndim > 1)  # the dim of the rows: the cache has layers before it
  take = lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1, rows(x))
  put = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, row, rows(x))
  return jax.tree.map(put, state, step.prefill(model, jax.tree.map(take, state), piece))
