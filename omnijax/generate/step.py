"""Prompts into the cache, and one step of generation. Start reading here.

A step takes the hidden state of the last position of every row, draws the next main token under
the grammar, lets the depth transformer write the codes of its frame if it has one, and runs the
trunk on the new position. `run` repeats it inside one jitted loop. All shapes are static.

B rows  T <= S new positions of a piece  S positions of the cache  V vocabulary  D embed
Q codebooks  G = 2Q  K kinds of token  N steps
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from omnijax.generate import grammar, sample
from omnijax.generate.cache import State
from omnijax.generate.grammar import Grammar, Layout
from omnijax.model.transformer import Omni

FRAME = "frame"  # names, in compiled programs, what runs only where somebody speaks


class Piece(NamedTuple):
  """The next positions of each row's prompt; `count_B` of them, from the left, are real."""

  main_BT: jax.Array
  modality_BT: jax.Array
  position_BT3: jax.Array
  frames_BTG: jax.Array
  count_B: jax.Array


@functools.partial(jax.tree_util.register_dataclass, data_fields=[
  "grammar", "written_B", "limit_B", "row_B", "key", "setting_K3", "guidance"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Turn:
  """What each row is asked to write, and how far it is."""

  grammar: Grammar
  written_B: jax.Array  # positions written in this turn
  limit_B: jax.Array  # most positions of the turn, its end included
  row_B: jax.Array  # number of the row's random stream
  key: jax.Array  # random key of the turn
  setting_K3: jax.Array  # see sample.Sampling.table
  guidance: jax.Array  # weight of classifier-free guidance


class Written(NamedTuple):
  """What a step wrote; rows where `wrote_B` is false wrote nothing."""

  main_B: jax.Array
  modality_B: jax.Array
  position_B3: jax.Array
  codes_BQ: jax.Array
  wrote_B: jax.Array


@functools.partial(jax.jit, donate_argnames="state")
def prefill(model: Omni, state: State, piece: Piece) -> State:
  """Appends a piece of prompt to each row; prompts of any length are pieces of one length."""
  x_BTD = model.embed.at_once(piece.main_BT, piece.modality_BT, piece.frames_BTG)
  hidden_BTD, state = _trunk(model, state, x_BTD, piece.position_BT3, piece.modality_BT,
                             state.length_B)
  last_B = jnp.maximum(piece.count_B - 1, 0)
  pick = jax.vmap(lambda x_TD, i: jax.lax.dynamic_index_in_dim(x_TD, i, 0, keepdims=False))
  some_B1 = (piece.count_B > 0)[:, None]
  hidden_BD = jnp.where(some_B1, pick(hidden_BTD, last_B), state.hidden_BD)
  return dataclasses.replace(state, hidden_BD=hidden_BD, length_B=state.length_B + piece.count_B)


def step(model: Omni, state: State, turn: Turn, *, layout: Layout, guided: bool
         ) -> tuple[State, Turn, Written]:
  """Writes the next position of every row that is not done.

  The token that ends a turn is drawn but not written, so that another turn can follow.

  Args:
    model: the weights.
    state: the streams so far.
    turn: what is asked of each row.
    layout: vocabulary and delays.
    guided: rows 2i + 1 are rows 2i without what they are conditioned on (classifier-free
      guidance, Ho and Salimans, 2022): of what rows 2i write, they take the images alone.
  """
  g = turn.grammar
  logits_BV = model.logits(state.hidden_BD[:, None])[:, 0]
  logits_BV = jax.reshard(logits_BV, model.rules("batch", None))
  hidden_BD = state.hidden_BD
  if guided:
    logits_BV = _guide(logits_BV, g, turn.guidance)
    hidden_BD = _pairs(hidden_BD, lambda pair: pair[:, :1])
  key_B = jax.vmap(lambda row, n: jax.random.fold_in(jax.random.fold_in(turn.key, row), n))(
    turn.row_B, turn.written_B)
  allowed_BV = grammar.allowed(g, turn.limit_B - turn.written_B, layout)
  kind_B = jnp.where(g.phase_B == grammar.IMAGE, sample.IMAGE, sample.TEXT)
  main_B = sample.draw(key_B, logits_BV, allowed_BV, _setting(turn, kind_B))

  after = grammar.advance(g, main_B, layout)
  modality_B, position_B3 = grammar.place(g, main_B, layout)
  codes_BQ = _codes(model, hidden_BD, main_B, key_B, turn, layout)
  frames_BG = jnp.concatenate([codes_BQ, jnp.full_like(codes_BQ, layout.vocab.no_code)], 1)
  wrote_B = (g.phase_B != grammar.DONE) & (after.phase_B != grammar.DONE)
  takes_B = wrote_B
  if guided:
    takes_B &= grammar.drawn(g, after) | (jnp.arange(len(main_B)) % 2 == 0)
    after = dataclasses.replace(after, number_B=jnp.where(takes_B, after.number_B, g.number_B))
  x_B1D = model.embed.at_once(main_B[:, None], modality_B[:, None], frames_BG[:, None])
  # Rows that take nothing write past the end of the cache, where writes are dropped.
  at_B = jnp.where(takes_B, state.length_B, state.positions)
  hidden_B1D, state = _trunk(model, state, x_B1D, position_B3[:, None], modality_B[:, None], at_B)
  state = dataclasses.replace(
    state, length_B=state.length_B + takes_B,
    hidden_BD=jnp.where(takes_B[:, None], hidden_B1D[:, 0], state.hidden_BD))
  turn = dataclasses.replace(turn, grammar=after, written_B=turn.written_B + wrote_B)
  return state, turn, Written(main_B, modality_B, position_B3, codes_BQ, wrote_B)


@functools.partial(jax.jit, donate_argnames="state", static_argnames=("layout", "guided"))
def run(model: Omni, state: State, turn: Turn, *, layout: Layout, guided: bool
        ) -> tuple[State, Turn, Written]:
  """Steps until every row is done, or the cache of one that isn't is full, in one device loop.

  Returns:
    The state, the turn, and what was written, with a leading dim of N = S steps.
  """
  take = lambda state, turn: step(model, state, turn, layout=layout, guided=guided)
  shapes = jax.eval_shape(take, state, turn)[2]
  N = state.positions
  record = lambda x: jnp.zeros((N, *x.shape), x.dtype,
                               out_sharding=jax.P(None, *x.sharding.spec))

  def unfinished(carry) -> jax.Array:
    _, (state, turn, _) = carry
    active_B = turn.grammar.phase_B != grammar.DONE
    return jnp.any(active_B) & ~jnp.any(active_B & (state.length_B >= N))

  def body(carry):
    i, (state, turn, records) = carry
    state, turn, written = take(state, turn)
    put = lambda record, x: jax.lax.dynamic_update_index_in_dim(record, x, i, 0)
    return i + 1, (state, turn, jax.tree.map(put, records, written))

  start = (jnp.int32(0), (state, turn, jax.tree.map(record, shapes)))
  return jax.lax.while_loop(unfinished, body, start)[1]


def _trunk(model: Omni, state: State, x_BTD: jax.Array, position_BT3: jax.Array,
           modality_BT: jax.Array, length_B: jax.Array) -> tuple[jax.Array, State]:
  """The trunk against the cache: a query sees its row's positions up to itself."""
  segment_BT = jnp.ones_like(position_BT3[..., 0])
  hidden_BTD, cache, _ = model.trunk(x_BTD, position_BT3, segment_BT, modality_BT,
                                     cache=state.cache, length_B=length_B)
  assert cache is not None
  return hidden_BTD, dataclasses.replace(state, cache=cache)


def _codes(model: Omni, hidden_BD: jax.Array, main_B: jax.Array, key_B: jax.Array, turn: Turn,
           layout: Layout) -> jax.Array:
  """Codes [B, Q] of the frames of the new positions; "no code" where there is none."""
  no_code = layout.vocab.no_code
  first_B, acoustic_B = grammar.live(turn.grammar, main_B, layout)

  def choose(q: jax.Array, logits_BC: jax.Array) -> jax.Array:
    logits_BC = jax.reshard(logits_BC, model.rules("batch", None))
    keys_B = jax.vmap(lambda key: jax.random.fold_in(key, q + 1))(key_B)
    kind_B = jnp.zeros_like(main_B) + jnp.where(q == 0, sample.FIRST, sample.ACOUSTIC)
    all_BC = jnp.ones_like(logits_BC, bool)
    codes_B = sample.draw(keys_B, logits_BC, all_BC, _setting(turn, kind_B))
    return jnp.where(jnp.where(q == 0, first_B, acoustic_B), codes_B, no_code)

  def write() -> jax.Array:
    with jax.named_scope(FRAME):
      main_BD = model.embed.tokens(main_B[:, None])[:, 0]
      return model.depth.write(hidden_BD, main_BD, choose)

  def silence() -> jax.Array:
    return jnp.full((main_B.shape[0], layout.vocab.codebooks), no_code, jnp.int32,
                    out_sharding=model.rules("batch", None))

  return jax.lax.cond(jnp.any(first_B | acoustic_B), write, silence)


def _setting(turn: Turn, kind_B: jax.Array) -> jax.Array:
  """The sampling settings [B, 3] of each row's kind of token."""
  hit_BK = kind_B[:, None] == jnp.arange(turn.setting_K3.shape[0])[None]
  # A matmul keeps the sharding of the rows also where there is only one of them.
  return jnp.einsum("bk,ks->bs", hit_BK.astype(jnp.float32), turn.setting_K3,
                    precision=jax.lax.Precision.HIGHEST)


def _pairs(x: jax.Array, act) -> jax.Array:
  """Applies a function of [B / 2, 2, ...] to rows in pairs; both get the result."""
  pair = x.reshape(x.shape[0] // 2, 2, *x.shape[1:])
  return (jnp.zeros_like(pair) + act(pair)).reshape(x.shape)


def _guide(logits_BV: jax.Array, g: Grammar, weight: jax.Array) -> jax.Array:
  """Both rows of a pair get u + weight * (c - u) for image codes, c for all else."""
  mixed_BV = _pairs(logits_BV, lambda p: p[:, 1:] + weight * (p[:, :1] - p[:, 1:]))
  given_BV = _pairs(logits_BV, lambda p: p[:, :1])
  return jnp.where((g.phase_B == grammar.IMAGE)[:, None], mixed_BV, given_BV)
