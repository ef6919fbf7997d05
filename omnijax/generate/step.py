"""Prompts into the cache, and one step of generation. Start reading here.

A step runs the trunk on the position that was drawn last, with what is heard meanwhile, and draws
the next one: its main token under the grammar, and, if it has a frame, the codes that the depth
transformer writes. `run` repeats it inside one jitted loop. All shapes are static.

B rows  T <= S new positions of a piece  S positions of the cache  V vocabulary  D embed
Q codebooks  G = 2Q  K kinds of token  N steps
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from omnijax import vocab as vocab_lib
from omnijax.generate import grammar, sample
from omnijax.generate.cache import State
from omnijax.generate.grammar import Grammar, Layout
from omnijax.kernels.attention import Lengths
from omnijax.model.transformer import Omni

# Log odds of a word against none by which one is begun in a dialogue, 62 %: what wasn't said can be
# said a frame later, but who once talks on through a question that interrupts doesn't stop.
SURE = 0.5
FRAME = "frame"  # names, in compiled programs, what runs only where somebody speaks


class Piece(NamedTuple):
  """The next positions of each row's prompt; `count_B` of them, from the left, are real."""

  main_BT: jax.Array
  modality_BT: jax.Array
  position_BT3: jax.Array
  frames_BTG: jax.Array
  count_B: jax.Array


class Next(NamedTuple):
  """The position that each row stands before: written, but not in the cache yet."""

  main_B: jax.Array
  modality_B: jax.Array
  position_B3: jax.Array
  frames_BG: jax.Array
  takes_B: jax.Array  # whether there is one


@functools.partial(jax.tree_util.register_dataclass, data_fields=[
  "grammar", "next", "written_B", "limit_B", "key_B", "setting_BK3", "guidance_B"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Turn:
  """What each row is asked to write, and how far it is."""

  grammar: Grammar
  next: Next
  written_B: jax.Array  # positions written in this turn
  limit_B: jax.Array  # most positions of the turn, its end included
  key_B: jax.Array  # of the row's random stream, uint32 [B, 2]
  setting_BK3: jax.Array  # see sample.Sampling.table
  # Weight of classifier-free guidance; 0 is a row that has no other beside it.
  guidance_B: jax.Array


class Heard(NamedTuple):
  """Of rows in a dialogue, while they speak or are silent."""

  codes_BQ: jax.Array  # of what is heard during the position before which a row stands
  quiet_B: jax.Array  # bool: writes nothing but silence, whatever it would like to say
  silence_Q: jax.Array  # codes of silence


class Written(NamedTuple):
  """What a step wrote; rows where `wrote_B` is false wrote nothing."""

  main_B: jax.Array
  modality_B: jax.Array
  position_B3: jax.Array
  codes_BQ: jax.Array
  wrote_B: jax.Array


def keys(seed: int, first: int, rows: int) -> jax.Array:
  """The random streams of rows: those of one seed and number are the same wherever they are."""
  one = jax.random.key(seed)
  return jax.random.key_data(jax.vmap(lambda i: jax.random.fold_in(one, i))(
    first + jnp.arange(rows)))


@functools.partial(jax.jit, donate_argnames="state")
def prefill(model: Omni, state: State, piece: Piece) -> State:
  """Appends a piece of prompt to each row; prompts of any length are pieces of one length."""
  x_BTD = model.embed.at_once(piece.main_BT, piece.modality_BT, piece.frames_BTG)
  return _trunk(model, state, x_BTD, piece.position_BT3, piece.modality_BT, piece.count_B)[1]


def step(model: Omni, state: State, turn: Turn, active_B: jax.Array, heard: Heard | None = None, *,
         layout: Layout, guided: bool) -> tuple[State, Turn, Written]:
  """Takes the position that every active row stands before, and writes the next.

  The token that ends a turn is drawn but not written, so that another turn can follow.

  Args:
    model: the weights.
    state: the streams so far.
    turn: what is asked of each row.
    active_B: bool; other rows stay as they are.
    heard: where somebody else is heard meanwhile.
    layout: vocabulary and delays.
    guided: rows 2i + 1 that have a guidance are rows 2i without what they are conditioned on
      (classifier-free guidance, Ho and Salimans, 2022): of what rows 2i write, they take the
      images alone.
  """
  now, g, Q = turn.next, turn.grammar, layout.vocab.codebooks
  frames_BG = now.frames_BG
  if heard is not None:
    listens_B1 = (active_B & (g.phase_B == grammar.DUPLEX))[:, None]
    frames_BG = jnp.concatenate([
      frames_BG[:, :Q], jnp.where(listens_B1, heard.codes_BQ, frames_BG[:, Q:])], 1)
  one = lambda x: x[:, None]
  x_B1D = model.embed.at_once(*map(one, (now.main_B, now.modality_B, frames_BG)))
  hidden_B1D, state = _trunk(model, state, x_B1D, one(now.position_B3), one(now.modality_B),
                             (now.takes_B & active_B).astype(jnp.int32))
  hidden_BD = hidden_B1D[:, 0]
  logits_BV = jax.reshard(model.logits(hidden_B1D)[:, 0], model.rules("batch", None))
  if guided:
    logits_BV = _guide(logits_BV, g, turn.guidance_B)
    hidden_BD = _pairs(turn.guidance_B, hidden_BD, lambda pair: pair[:, :1])
  key_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(turn.key_B), turn.written_B)
  allowed_BV = grammar.allowed(g, turn.limit_B - turn.written_B, layout)
  if heard is not None:
    allowed_BV &= _whether(g, logits_BV, allowed_BV)
  kind_B = jnp.where(g.phase_B == grammar.IMAGE, sample.IMAGE, sample.TEXT)
  main_B = sample.draw(key_B, logits_BV, allowed_BV, _setting(turn, kind_B))
  if heard is not None:
    main_B = jnp.where(heard.quiet_B, vocab_lib.PAD, main_B)

  after = grammar.advance(g, main_B, layout)
  modality_B, position_B3 = grammar.place(g, main_B, layout)
  codes_BQ = _codes(model, hidden_BD, main_B, key_B, turn, active_B, layout)
  if heard is not None:
    quiet_BQ = heard.quiet_B[:, None] & (codes_BQ != layout.vocab.no_code)
    codes_BQ = jnp.where(quiet_BQ, heard.silence_Q[None], codes_BQ)
  wrote_B = active_B & (g.phase_B != grammar.DONE) & (after.phase_B != grammar.DONE)
  takes_B = wrote_B
  if guided:
    first_B = jnp.arange(len(main_B)) % 2 == 0
    takes_B &= (turn.guidance_B == 0) | first_B | grammar.drawn(g, after)
    after = dataclasses.replace(after, number_B=jnp.where(takes_B, after.number_B, g.number_B))
  nothing_BQ = jnp.full_like(codes_BQ, layout.vocab.no_code)
  then = Next(main_B, modality_B, position_B3, jnp.concatenate([codes_BQ, nothing_BQ], 1), takes_B)
  stays = lambda new, old: jnp.where(active_B.reshape(-1, *[1] * (new.ndim - 1)), new, old)
  turn = dataclasses.replace(turn, grammar=jax.tree.map(stays, after, g),
                             next=jax.tree.map(stays, then, now),
                             written_B=turn.written_B + wrote_B)
  return state, turn, Written(main_B, modality_B, position_B3, codes_BQ, wrote_B)


@functools.partial(jax.jit, donate_argnames="state", static_argnames=("layout", "guided"))
def run(model: Omni, state: State, turn: Turn, *, layout: Layout, guided: bool
        ) -> tuple[State, Turn, Written]:
  """Steps until every row is done, or the cache of one that isn't is full, in one device loop.

  Returns:
    The state, the turn, and what was written, with a leading dim of N = S steps.
  """
  def take(state: State, turn: Turn) -> tuple[State, Turn, Written]:
    active_B = turn.grammar.phase_B != grammar.DONE
    return step(model, state, turn, active_B, layout=layout, guided=guided)

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
           modality_BT: jax.Array, count_B: jax.Array) -> tuple[jax.Array, State]:
  """The trunk against the cache: a query sees its row's positions up to itself."""
  segment_BT = jnp.ones_like(position_BT3[..., 0])
  at = Lengths(state.length_B, state.high_B, count_B)
  hidden_BTD, cache, _ = model.trunk(x_BTD, position_BT3, segment_BT, modality_BT,
                                     cache=state.cache, at=at)
  assert cache is not None
  length_B = state.length_B + count_B
  return hidden_BTD, State(cache, length_B, jnp.maximum(state.high_B, length_B))


def _codes(model: Omni, hidden_BD: jax.Array, main_B: jax.Array, key_B: jax.Array, turn: Turn,
           active_B: jax.Array, layout: Layout) -> jax.Array:
  """Codes [B, Q] of the frames of the new positions; "no code" where there is none."""
  no_code = layout.vocab.no_code
  first_B, acoustic_B = (x & active_B for x in grammar.live(turn.grammar, main_B, layout))

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


def _whether(g: Grammar, logits_BV: jax.Array, allowed_BV: jax.Array) -> jax.Array:
  """In dialogues all words where it is `SURE` that one comes, and PAD elsewhere: bool [B, V].

  First whether, then which: who isn't sure which word it is to be would else never begin.
  """
  pad_1V = jnp.arange(logits_BV.shape[1])[None] == vocab_lib.PAD
  words_BV = jnp.where(allowed_BV & ~pad_1V, logits_BV, sample.MASKED)
  pad_B1 = jnp.sum(jnp.where(pad_1V, logits_BV, 0.0), 1, keepdims=True)
  word_B1 = jax.nn.logsumexp(words_BV, 1, keepdims=True) > pad_B1 + SURE
  return (word_B1 != pad_1V) | (g.phase_B != grammar.DUPLEX)[:, None]


def _setting(turn: Turn, kind_B: jax.Array) -> jax.Array:
  """The sampling settings [B, 3] of each row's kind of token."""
  hit_BK = kind_B[:, None] == jnp.arange(turn.setting_BK3.shape[1])[None]
  # A matmul keeps the sharding of the rows also where there is only one of them.
  return jnp.einsum("bk,bks->bs", hit_BK.astype(jnp.float32), turn.setting_BK3,
                    precision=jax.lax.Precision.HIGHEST)


def _pairs(guidance_B: jax.Array, x: jax.Array, act) -> jax.Array:
  """Applies a function of [B / 2, 2, ...] to rows in pairs; both get the result if guided."""
  pair = x.reshape(x.shape[0] // 2, 2, *x.shape[1:])
  both = (jnp.zeros_like(pair) + act(pair)).reshape(x.shape)
  return jnp.where((guidance_B > 0)[:, None], both, x)


def _guide(logits_BV: jax.Array, g: Grammar, guidance_B: jax.Array) -> jax.Array:
  """Both rows of a pair get u + weight * (c - u) for image codes, c for all else."""
  weight = guidance_B.reshape(-1, 2)[:, :1, None]
  mixed_BV = _pairs(guidance_B, logits_BV, lambda p: p[:, 1:] + weight * (p[:, :1] - p[:, 1:]))
  given_BV = _pairs(guidance_B, logits_BV, lambda p: p[:, :1])
  return jnp.where((g.phase_B == grammar.IMAGE)[:, None], mixed_BV, given_BV)
