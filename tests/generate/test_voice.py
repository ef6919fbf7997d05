"""Dialogues frame by frame, against one pass over the documents that they are."""

import dataclasses
import types

import jax
import numpy as np
import pytest
import tiny
from flax import nnx

from omnijax import config, sharding
from omnijax import vocab as vl
from omnijax.data import documents
from omnijax.generate import grammar, step
from omnijax.generate import slots as slots_lib
from omnijax.generate.sample import GREEDY
from omnijax.generate.slots import Slots, Work
from omnijax.generate.turns import Goal
from omnijax.generate.voice import Voice
from omnijax.model.transformer import Omni

Q, NO = tiny.VOCAB.codebooks, tiny.VOCAB.no_code
SILENCE = np.array([7, 8, 9], np.int32)
EMPTY = documents.Part(vl.TEXT, documents.ASSISTANT, np.zeros(0, np.int32))
WHOLE = jax.jit(lambda model, batch: model(batch))


class Letters:
  """A text tokenizer: ids are letters."""

  def decode(self, ids):
    return "".join(chr(97 + i % 26) for i in ids)


class Talking:
  """A dialogue in the second of two rows, and everything that it said and heard."""

  def __init__(self, lead: int, lag: int, window: int):
    cfg = dataclasses.replace(tiny.MODEL, attention_window=window)
    self.data = dataclasses.replace(tiny.DATA, text_delay=lead, acoustic_delay=lag)
    with jax.set_mesh(sharding.make_mesh(config.Mesh(data=1, fsdp=1))):
      self.model = jax.jit(lambda key: Omni(cfg, tiny.VOCAB, sharding.RULES, rngs=nnx.Rngs(key)))(
        jax.random.key(0))
    # At times likelier than all words together.
    head_DV = self.model.head_DV
    head_DV[...] = head_DV[...].at[:, vl.PAD].multiply(8.0)
    self.slots = Slots(self.model, self.data, rows=2, positions=96, silence_Q=SILENCE)
    self.voice = Voice(self.slots.layout, Letters(), SILENCE, self.slots.kept)
    self.r, self.lag = np.random.default_rng(0), lag
    self.heard, self.main, self.said = [], [], []  # of the part that is going on
    self.parts = []
    self.pieces(self.slots.begin(1, self.work(self.voice.opening(self.render([EMPTY])))))
    self.wait()

  def render(self, parts):
    return documents.render(parts, documents.PLAIN, False, self.data, tiny.VOCAB)

  def work(self, streams):
    return Work([streams], Goal(to="talk"), 1 << 30, GREEDY, 0)

  def pieces(self, pieces):
    for row, piece in pieces:
      self.slots.prefill(row, piece)

  def step(self, heard_Q, quiet=False):
    both = np.full((2, Q), NO, np.int32)
    if heard_Q is not None:
      both[1] = heard_Q
    out = self.slots.step(np.array([False, True]), both, np.array([False, quiet]))
    main, codes = int(out.main_B[1]), out.codes_BQ[1]
    whole, text = self.voice.take(main, codes, heard_Q)
    self.main.append(main)
    self.said.append(codes)
    return whole, text

  def wait(self):
    while self.voice.waits:
      self.step(None)

  def frame(self, loud=False, quiet=None):
    codes = self.r.integers(0, tiny.VOCAB.audio, Q)
    heard = self.voice.hears(codes, loud)
    self.heard.append(codes)
    return self.step(heard, self.voice.quiet if quiet is None else quiet)

  def part(self):
    """What was heard, and said meanwhile, as a part of a document."""
    lead, n = self.data.text_delay, len(self.heard)
    # What the row stands before has been heard nothing with: it comes with the next frame.
    main = np.array(self.main[: n])
    said = np.stack(self.said)
    codes = np.concatenate([said[lead : lead + n, :1],
                            said[lead + self.lag : lead + self.lag + n, 1:]], 1)
    codes = np.pad(codes, ((0, n - len(codes)), (0, 0)), constant_values=NO)
    words = np.where(main >= tiny.VOCAB.text_start, main - tiny.VOCAB.text_start, -1)
    return documents.Part(vl.AUDIO, documents.ASSISTANT, codes, words, timed=True,
                          heard=np.stack(self.heard))

  def insert(self, *said):
    self.frame()
    self.parts += [self.part(), *said]
    streams = self.voice.insertion(self.render([*said, EMPTY]), self.said[-1])
    self.heard, self.main, self.said = [], [], []
    self.pieces(self.slots.go_on(1, self.work(streams)))
    self.wait()

  def forget(self, frame):
    again = self.voice.forget(frame)
    if again is None:
      return False
    self.slots.rewind(1, again.length)
    self.pieces((1, p) for p in self.slots.pieces(again.streams))
    self.slots.replace(1, int(again.streams.main[-2]), again.streams.frames[-1])
    lead, lag = self.data.text_delay, self.lag
    for i in range(len(self.main)):
      tick = i - 1 - lead  # at which it was written
      if tick + lead + lag >= frame:
        self.main[i] = vl.PAD
      late = [tick + lag >= frame, *[tick >= frame] * (Q - 1)]
      self.said[i] = np.where(late & (self.said[i] != NO), SILENCE, self.said[i])
    return True

  def check(self, since: int = 0):
    """Every position is the most likely one of a whole pass over the document, and lies there."""
    streams = self.render([*self.parts, self.part()])
    S, F = 256, 160
    n, m = len(streams.main), len(streams.frame_at)
    pad = lambda x, size, fill: np.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1),
                                       constant_values=fill)[None]
    batch = {k: pad(getattr(streams, k), S, 0) for k in ("main", "modality", "position")}
    batch["segment"] = pad(np.ones(n, np.int32), S, 0)
    batch["frame_at"] = pad(streams.frame_at, F, S)
    batch["frames"] = pad(streams.frames, F, NO)
    batch["frame_weight"] = pad(streams.frame_weight, F, 0)
    with jax.set_mesh(self.model.head_DV[...].sharding.mesh):
      main_1SV, frame_QFC = WHOLE(self.model, sharding.place(batch))
    main_SV, frame_QFC = np.asarray(main_1SV[0]), np.asarray(frame_QFC)
    v = tiny.VOCAB
    ok_V = np.zeros(v.size, bool)
    ok_V[v.text_start : v.text_start + v.text] = ok_V[vl.PAD] = True
    n = len(self.heard)
    first = m - (n + self.data.text_delay + self.lag)
    checked = 0
    for i in range(since, n):  # those that were heard while they were said
      at = streams.frame_at[first + i]
      scores = np.where(ok_V, main_SV[at - 1], -np.inf)
      # First whether there is a word, then which.
      sure = np.log(np.exp(np.delete(scores, vl.PAD)).sum()) > scores[vl.PAD] + step.SURE
      scores[(np.arange(v.size) == vl.PAD) == sure] = -np.inf
      assert scores.max() - scores[streams.main[at]] < 1e-4, i
      for q, code in enumerate(streams.frames[first + i, :Q]):
        if code != NO:
          assert frame_QFC[q, first + i].max() - frame_QFC[q, first + i, code] < 1e-4, (i, q)
          checked += 1
    assert checked >= (n - since - 4) * Q
    return streams


@pytest.mark.parametrize(("lead", "lag", "window"), [(0, 0, 0), (0, 1, 12), (2, 1, 0), (1, 0, 12)])
def test_a_dialogue_is_the_document_of_it(lead, lag, window):
  """With a window, far longer than what the ring of the cache holds."""
  talk = Talking(lead, lag, window)
  whole = [talk.frame()[0] for _ in range(90)]
  assert talk.slots.kept < 90 or not window
  talk.check()
  assert 0.1 < np.mean(np.array(talk.main) == vl.PAD) < 0.9
  codes = talk.part().codes
  # What comes out after frame i is what is said in the next one, or in itself if codes lag.
  for i in range(5, 80):
    assert whole[i].tolist() == codes[i + 1 - lag].tolist()
  assert len({tuple(c) for c in codes}) > 10


@pytest.mark.parametrize(("lead", "lag"), [(0, 0), (0, 1)])
def test_text_and_pictures_are_put_into_the_middle(lead, lag):
  talk = Talking(lead, lag, 0)
  for _ in range(9):
    talk.frame()
  talk.insert(documents.Part(vl.TEXT, documents.USER, np.array([5, 6, 7])),
              documents.Part(vl.IMAGE, documents.USER, np.arange(6).reshape(2, 3)))
  for _ in range(12):
    talk.frame()
  talk.insert(documents.Part(vl.TEXT, documents.USER, np.array([3])))
  for _ in range(12):
    talk.frame()
  talk.check()


@pytest.mark.parametrize(("lead", "lag", "window"), [(0, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 12)])
def test_what_was_never_heard_is_forgotten(lead, lag, window):
  talk = Talking(lead, lag, window)
  for _ in range(30):
    talk.frame()
  assert talk.forget(22) and not talk.forget(22) and not talk.forget(40)
  before = talk.part()
  assert (before.codes[23:29] == SILENCE).all() and (before.codes[22 - lag - 1] != SILENCE).any()
  for _ in range(20):
    talk.frame()
  # What it says then follows from what was left, and from all that it heard. The row stood before
  # position 30 + lead.
  talk.check(since=31 + lead)
  assert (talk.part().codes[31 - lag :] != SILENCE).any()


def test_first_whether_a_word_comes_then_which():
  """Log odds of a word: of one that is likelier than none, and of four that are not."""
  scores_BV = np.full((3, 8), -1e9, np.float32)
  scores_BV[:, vl.PAD] = 0
  words = [i for i in range(8) if i != vl.PAD]
  scores_BV[0, words[0]] = step.SURE - 0.1
  scores_BV[1:, words[:4]] = step.SURE + 0.1 - np.log(4)
  turn = types.SimpleNamespace(phase_B=np.array([grammar.DUPLEX, grammar.DUPLEX, grammar.TEXT]))
  may_BV = np.asarray(step._whether(turn, scores_BV, np.ones((3, 8), bool)))
  pad_V = np.arange(8) == vl.PAD
  np.testing.assert_array_equal(may_BV, [pad_V, ~pad_V, pad_V | True])


def test_hush_is_silence_until_something_is_heard():
  talk = Talking(0, 0, 0)
  said = lambda **how: talk.frame(**how)[0].tolist() != SILENCE.tolist()
  assert any(said() for _ in range(5))
  talk.voice.hush()
  assert not any(said(loud=True) for _ in range(6)) and not any(said() for _ in range(9))
  assert any(said(loud=True) for _ in range(5)) and not talk.voice.quiet


def test_words_are_set_apart_by_time():
  voice = Voice(Talking(0, 0, 0).slots.layout, Letters(), SILENCE, 9)
  text = tiny.VOCAB.text_start
  says = lambda *mains: [voice._word(m) for m in mains]
  assert says(0, 0, text, text + 1, 0, text + 2) == ["", "", "a", "b", "", " c"]
  assert says(*[0] * 12, text + 3) == [""] * 12 + ["d"]


def test_nothing_compiles_again():
  talk = Talking(0, 0, 12)
  run = lambda n: [talk.frame() for _ in range(n)]
  run(20)
  talk.forget(5)
  talk.insert(documents.Part(vl.TEXT, documents.USER, np.array([5, 6, 7])))
  functions = [getattr(slots_lib, f) for f in ("_step", "_prefill", "_put", "_rewind", "_replace")]
  before = [f._cache_size() for f in functions]
  assert all(before)
  run(70)
  talk.forget(80)
  talk.insert(documents.Part(vl.TEXT, documents.USER, np.arange(9)))
  run(30)
  assert [f._cache_size() for f in functions] == before
