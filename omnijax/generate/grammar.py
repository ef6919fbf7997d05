"""The grammar of generated streams: a small automaton per row, as arrays inside the jitted step.

It says which main tokens may come next, where a written token stands (modality and position
numbers, exactly as documents.render would place it), and which codes its frame has. It also keeps
to a budget: a row that has begun something always has room left to end it.

B rows of the batch  V vocabulary
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from omnijax import vocab as vocab_lib

# Phases: what the next main token of a row must be.
DONE = 0  # nothing: the turn is over
TEXT = 1  # a text piece, the end of the turn, or the start of an image or of speech
FIRST = 2  # a text piece: an answer in text has at least one
ROWS = 3  # a text piece, or the rows of an image: what is drawn may be named first
COLS = 4  # the columns of an image
IMAGE = 5  # an image code
OPEN = 6  # the start of speech
SPEECH = 7  # text aligned with speech, PAD, or the end of speech
TAIL = 8  # PAD, while the acoustic codes of the last frames arrive
LAST = 9  # the end of the turn
DUPLEX = 10  # text aligned with speech, or PAD: a dialogue, which ends when it is ended


@dataclasses.dataclass(frozen=True)
class Layout:
  """What the shape of a stream depends on; hashable, a static argument of jitted functions."""

  vocab: vocab_lib.Vocab
  text_delay: int
  acoustic_delay: int

  @property
  def ending(self) -> int:
    """Positions from AUDIO_END, itself included, to the last frame of speech."""
    return max(self.acoustic_delay, 1)

  @property
  def shortest_speech(self) -> int:
    """Positions of SPEAK, one frame of sound, its delays and AUDIO_END."""
    return 1 + self.text_delay + 1 + self.ending


@functools.partial(jax.tree_util.register_dataclass, data_fields=[
  "phase_B", "number_B", "rows_B", "cols_B", "count_B", "want_rows_B", "want_cols_B",
  "draws_B", "speaks_B", "once_B"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Grammar:
  """Where each row is; int32 [B] unless said otherwise."""

  phase_B: jax.Array
  number_B: jax.Array  # the next position number
  rows_B: jax.Array  # size of the image that is being written
  cols_B: jax.Array
  count_B: jax.Array  # codes of the image, or positions of the speech, written so far
  want_rows_B: jax.Array  # size that every image must have; 0 leaves it to the model
  want_cols_B: jax.Array
  draws_B: jax.Array  # bool: may begin an image in the middle of text
  speaks_B: jax.Array  # bool: may begin speech in the middle of text
  once_B: jax.Array  # bool: the turn ends with the first image or speech


def allowed(g: Grammar, left_B: jax.Array, layout: Layout) -> jax.Array:
  """Main tokens that may come next, bool [B, V], never none.

  Args:
    g: where the rows are.
    left_B: positions that each row may still take, this one and the end of the turn included.
    layout: vocabulary and delays.
  """
  v = layout.vocab
  ids_1V = jnp.arange(v.size)[None]
  at = lambda *phases: functools.reduce(jnp.logical_or, [g.phase_B == p for p in phases])[:, None]
  room = lambda n: (left_B >= n)[:, None]
  is_ = lambda token: ids_1V == token
  block = lambda start, n: (ids_1V >= start) & (ids_1V < start + n)
  free = lambda size_1V, want_B: (want_B[:, None] == 0) | (size_1V == want_B[:, None])

  text_1V = block(v.text_start, v.text)
  out_BV = at(FIRST, TEXT) & room(2) & text_1V
  out_BV |= at(SPEECH) & room(2 + layout.ending) & (text_1V | is_(vocab_lib.PAD))
  out_BV |= at(DUPLEX) & (text_1V | is_(vocab_lib.PAD))
  out_BV |= at(IMAGE) & block(v.image_start, v.image)
  # A turn ends with the document or with the turn of the other.
  out_BV |= at(TEXT, LAST) & (is_(vocab_lib.EOS) | is_(vocab_lib.USER))
  out_BV |= at(TAIL, DONE) & is_(vocab_lib.PAD)

  h_1V = ids_1V - vocab_lib.rows(1) + 1
  starts_B1 = at(ROWS) | (at(TEXT) & g.draws_B[:, None])
  height_B1 = jnp.maximum(g.want_rows_B, 1)[:, None]
  width_B1 = jnp.maximum(g.want_cols_B, 1)[:, None]
  out_BV |= at(ROWS) & text_1V & (height_B1 * width_B1 + 4 <= left_B[:, None])
  fits_BV = h_1V * width_B1 + 3 <= left_B[:, None]
  out_BV |= (starts_B1 & fits_BV & block(vocab_lib.rows(1), vocab_lib.MAX_GRID)
             & free(h_1V, g.want_rows_B))
  w_1V = ids_1V - vocab_lib.cols(1) + 1
  fits_BV = g.rows_B[:, None] * w_1V + 2 <= left_B[:, None]
  out_BV |= (at(COLS) & fits_BV & block(vocab_lib.cols(1), vocab_lib.MAX_GRID)
             & free(w_1V, g.want_cols_B))

  starts_B1 = at(OPEN) | (at(TEXT) & g.speaks_B[:, None])
  out_BV |= starts_B1 & room(layout.shortest_speech + 1) & is_(vocab_lib.SPEAK)
  heard_B1 = (g.count_B > layout.text_delay)[:, None]
  return out_BV | (at(SPEECH) & heard_B1 & is_(vocab_lib.AUDIO_END))


def place(g: Grammar, main_B: jax.Array, layout: Layout) -> tuple[jax.Array, jax.Array]:
  """Modality [B] and position numbers [B, 3] of the main tokens about to be written."""
  image_B = g.phase_B == IMAGE
  sound_B = (g.phase_B == SPEECH) | (g.phase_B == TAIL) | (g.phase_B == DUPLEX)
  if not layout.acoustic_delay:
    sound_B &= main_B != vocab_lib.AUDIO_END
  modality_B = jnp.where(image_B, vocab_lib.IMAGE,
                         jnp.where(sound_B, vocab_lib.AUDIO, vocab_lib.TEXT))
  cols_B = jnp.maximum(g.cols_B, 1)
  inside = lambda n_B: jnp.where(image_B, n_B, 0)
  numbers = [g.number_B, g.number_B + inside(g.count_B // cols_B),
             g.number_B + inside(g.count_B % cols_B)]
  return modality_B, jnp.stack(numbers, 1)


def live(g: Grammar, main_B: jax.Array, layout: Layout) -> tuple[jax.Array, jax.Array]:
  """Whether the frame of the token about to be written has a first code, and acoustic codes."""
  speech_B, tail_B = (g.phase_B == SPEECH) | (g.phase_B == DUPLEX), g.phase_B == TAIL
  ends_B = main_B == vocab_lib.AUDIO_END
  first_B = speech_B & ~ends_B & (g.count_B >= layout.text_delay)
  acoustic_B = (speech_B | tail_B) & (g.count_B >= layout.text_delay + layout.acoustic_delay)
  if not layout.acoustic_delay:
    acoustic_B &= ~ends_B
  return first_B, acoustic_B


def advance(g: Grammar, main_B: jax.Array, layout: Layout) -> Grammar:
  """Where the rows are after writing tokens that `allowed` allows."""
  phase_B = g.phase_B
  text_B = (phase_B == TEXT) | (phase_B == FIRST) | (phase_B == ROWS) | (phase_B == OPEN)
  image_B, speech_B, tail_B = (phase_B == p for p in (IMAGE, SPEECH, TAIL))
  after_B = jnp.where(g.once_B, LAST, TEXT)
  count_B = g.count_B + 1

  h_B, w_B = main_B - vocab_lib.rows(1) + 1, main_B - vocab_lib.cols(1) + 1
  opens_B = text_B & (h_B >= 1) & (h_B <= vocab_lib.MAX_GRID)
  rows_B = jnp.where(opens_B, h_B, g.rows_B)
  cols_B = jnp.where(phase_B == COLS, w_B, g.cols_B)
  whole_B = image_B & (count_B >= g.rows_B * g.cols_B)
  speaks_B = text_B & (main_B == vocab_lib.SPEAK)
  ends_B = speech_B & (main_B == vocab_lib.AUDIO_END)
  # In the tail, rows_B counts the positions left: no image is being written.
  rows_B = jnp.where(ends_B, layout.ending - 1, jnp.where(tail_B, g.rows_B - 1, rows_B))
  silent_B = (ends_B | tail_B) & (rows_B == 0)

  new_B = phase_B
  for mask_B, value in [
      (text_B & (phase_B != ROWS), TEXT), (opens_B, COLS), (phase_B == COLS, IMAGE),
      (speaks_B, SPEECH), (ends_B, TAIL), (whole_B | silent_B, after_B),
      ((text_B | (phase_B == LAST))
       & ((main_B == vocab_lib.EOS) | (main_B == vocab_lib.USER)), DONE)]:
    new_B = jnp.where(mask_B, value, new_B)
  passed_B = jnp.where(image_B, jnp.where(whole_B, jnp.maximum(g.rows_B, g.cols_B), 0), 1)
  return dataclasses.replace(
    g, phase_B=new_B, number_B=g.number_B + passed_B, rows_B=rows_B, cols_B=cols_B,
    count_B=jnp.where(image_B | speech_B | tail_B | (phase_B == DUPLEX), count_B, 0))


def drawn(before: Grammar, after: Grammar) -> jax.Array:
  """Whether the token between two states belongs to an image, its size included; bool [B]."""
  inside = lambda g: (g.phase_B == COLS) | (g.phase_B == IMAGE)
  return inside(before) | inside(after)
