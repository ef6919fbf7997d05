"""Rendering against streams written by hand, and lengths against rendering."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnijax import config
from omnijax import vocab as v
from omnijax.data import documents as d

VOCAB = v.Vocab(text=256, image=256, audio=50, codebooks=2)
DATA = config.Data(sources=(), rows=1, positions=512, frames=256)
T0, I0, NO = VOCAB.text_start, VOCAB.image_start, VOCAB.no_code


def text(*ids, role=d.NONE):
  return d.Part(v.TEXT, role, np.array(ids, np.uint16))


def image(h, w, role=d.NONE):
  return d.Part(v.IMAGE, role, np.arange(h * w, dtype=np.uint16).reshape(h, w))


def audio(T, words=None, role=d.NONE):
  codes = np.arange(T, dtype=np.uint16)[:, None] + np.array([0, 10, 20], np.uint16)
  return d.Part(v.AUDIO, role, codes, None if words is None else np.array(words, np.uint16))


def timed(at, T, role=d.NONE):
  """Audio of T frames whose piece i lies at frame at[i]."""
  words = np.full(T, -1, np.int32)
  words[list(at)] = np.arange(len(at)) + 1
  return dataclasses.replace(audio(T, [], role), words=words, timed=True)


def dialogue(part):
  return dataclasses.replace(part, heard=part.codes + np.uint16(5))


def render(parts, task=d.PLAIN, dropped=False, **changes):
  return d.render(parts, task, dropped, dataclasses.replace(DATA, **changes), VOCAB)


def test_text():
  s = render([text(7, 8)])
  assert s.main.tolist() == [v.BOS, T0 + 7, T0 + 8, v.EOS]
  assert s.weight.tolist() == [0, 1, 1, 1]
  assert s.modality.tolist() == [v.TEXT] * 4
  assert s.position.tolist() == [[i] * 3 for i in range(4)]
  assert s.frames.shape == (0, 4) and s.frame_weight.shape == (0, 2)


def test_image_positions_are_a_grid_and_text_goes_on_after_its_longer_side():
  s = render([text(5), image(2, 3), text(6)])
  assert s.main.tolist() == [v.BOS, T0 + 5, v.rows(2), v.cols(3), *range(I0, I0 + 6), T0 + 6,
                             v.EOS]
  assert s.modality.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0]
  assert s.position.tolist() == [
    [0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3],
    [4, 4, 4], [4, 4, 5], [4, 4, 6], [4, 5, 4], [4, 5, 5], [4, 5, 6],
    [7, 7, 7], [8, 8, 8]]


def test_speech_with_words():
  s = render([audio(3, words=[1, 2])], acoustic_delay=1, text_delay=1)
  assert s.main.tolist() == [v.BOS, v.SPEAK, T0 + 1, T0 + 2, v.PAD, v.PAD, v.AUDIO_END, v.EOS]
  assert s.modality.tolist() == [0, 0, 2, 2, 2, 2, 2, 0]
  assert s.weight.tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
  assert s.frame_at.tolist() == [2, 3, 4, 5, 6]
  speak = [[NO, NO], [0, NO], [1, 10], [2, 11], [NO, 12]]
  assert s.frames.tolist() == [[*row, NO, NO] for row in speak]
  assert s.frame_weight.tolist() == [[0, 0], [1, 0], [1, 1], [1, 1], [0, 1]]
  assert s.position.tolist() == [[i] * 3 for i in range(8)]


@pytest.mark.parametrize("lag", [0, 1, 2, 3])
def test_the_end_of_speech_is_at_the_first_position_without_a_first_code(lag):
  s = render([audio(2, words=[1])], acoustic_delay=lag)
  ending = [v.AUDIO_END] + [v.PAD] * (lag - 1)
  assert s.main.tolist() == [v.BOS, v.SPEAK, T0 + 1, v.PAD, *ending, v.EOS]
  assert s.frames[:, 0].tolist() == [0, 1] + [NO] * lag
  assert s.weight.tolist() == [0, 1, 1, 1, 1] + [0] * (len(ending) - 1) + [1]
  assert s.modality.tolist() == [0, 0] + [2] * (2 + lag) + [0] * (1 + (lag == 0))


def test_words_are_spread_over_the_frames():
  s = render([audio(6, words=[1, 2])], acoustic_delay=0)
  assert s.main[2:8].tolist() == [T0 + 1, 0, 0, T0 + 2, 0, 0]
  s = render([audio(2, words=[1, 2])])
  assert s.main[2:5].tolist() == [T0 + 1, T0 + 2, v.AUDIO_END]


def test_speech_without_words_trains_no_main_stream_and_has_no_lead():
  s = render([audio(2)], text_delay=3)
  assert s.main.tolist() == [v.BOS, v.SPEAK, 0, 0, v.AUDIO_END, v.EOS]
  assert s.weight.tolist() == [0, 1, 0, 0, 0, 1]
  assert s.frame_weight.tolist() == [[1, 0], [1, 1], [0, 1]]


def test_speech_in_which_nothing_is_said_trains_the_silence():
  s = render([audio(2, words=[])])
  assert s.main.tolist() == [v.BOS, v.SPEAK, 0, 0, v.AUDIO_END, v.EOS]
  assert s.weight.tolist() == [0, 1, 1, 1, 1, 1]


def test_listening_is_input_only_and_turns_are_marked():
  s = render([audio(2, words=[9], role=d.USER), text(3, role=d.USER), text(4, role=d.ASSISTANT)],
             prompt_weight=0.25, text_delay=2)
  assert s.main.tolist() == [v.BOS, v.USER, v.LISTEN, 0, 0, v.AUDIO_END, T0 + 3, v.ASSISTANT,
                             T0 + 4, v.EOS]
  assert s.weight.tolist() == [0, 1, 0.25, 0, 0, 0, 0.25, 1, 1, 1]
  assert s.frames.tolist() == [[NO, NO, 0, NO], [NO, NO, 1, 10], [NO, NO, NO, 11]]
  assert not s.frame_weight.any()


def test_a_part_without_a_role_neither_opens_nor_ends_a_turn():
  s = render([text(1, role=d.USER), text(2), text(3, role=d.USER)], prompt_weight=0)
  assert s.main.tolist() == [v.BOS, v.USER, T0 + 1, T0 + 2, T0 + 3, v.EOS]
  assert s.weight.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("order", [1, -1])
def test_caption_and_draw(order):
  parts = [text(7), image(1, 1)][::order]
  s = render(parts, d.CAPTION)
  assert s.main.tolist() == [v.BOS, v.USER, v.rows(1), v.cols(1), I0, v.ASSISTANT, T0 + 7, v.EOS]
  s = render(parts, d.DRAW)
  assert s.main.tolist() == [v.BOS, v.USER, T0 + 7, v.ASSISTANT, v.rows(1), v.cols(1), I0, v.EOS]
  s = render(parts, d.DRAW, dropped=True)
  assert s.main.tolist() == [v.BOS, v.USER, v.ASSISTANT, v.rows(1), v.cols(1), I0, v.EOS]


def test_transcribe_and_speak():
  s = render([audio(2, words=[7])], d.TRANSCRIBE)
  assert s.main.tolist() == [v.BOS, v.USER, v.LISTEN, 0, 0, v.AUDIO_END, v.ASSISTANT, T0 + 7,
                             v.EOS]
  s = render([audio(2, words=[7])], d.SPEAK)
  assert s.main.tolist() == [v.BOS, v.USER, T0 + 7, v.ASSISTANT, v.SPEAK, T0 + 7, 0,
                             v.AUDIO_END, v.EOS]


def test_timed_words_lie_at_their_frames():
  s = render([timed([1, 2], 4)], acoustic_delay=1, text_delay=1)
  assert s.main.tolist() == [v.BOS, v.SPEAK, 0, T0 + 1, T0 + 2, 0, 0, v.AUDIO_END, v.EOS]
  assert s.frames[:, 0].tolist() == [NO, 0, 1, 2, 3, NO]
  s = render([timed([1, 2], 4)], d.TRANSCRIBE)
  assert s.main[-3:].tolist() == [T0 + 1, T0 + 2, v.EOS]


@pytest.mark.parametrize("lag", [0, 1])
def test_what_is_followed_is_written_while_it_is_heard(lag):
  s = render([timed([0, 2], 3)], d.FOLLOW, follow_delay=2, acoustic_delay=lag, prompt_weight=0.5)
  more = [0] * lag
  assert s.main.tolist() == [v.BOS, v.USER, v.LISTEN, 0, 0, T0 + 1, 0, T0 + 2, *more, v.AUDIO_END,
                             v.EOS]
  assert s.weight.tolist() == [0, 1, 0.5, 1, 1, 1, 1, 1, *(1 for _ in more), 1, 1]
  assert s.frames[:, 2].tolist() == [0, 1, 2, NO, NO, *(NO for _ in more)]
  assert s.frames[lag : lag + 3, 3].tolist() == [10, 11, 12] and (s.frames[:, :2] == NO).all()
  assert not s.frame_weight.any() and s.modality.tolist() == [0, 0, 0, *[2] * (5 + lag), 0, 0]


def test_both_sides_of_a_dialogue_share_their_frames():
  s = render([dialogue(timed([0], 3))], text_delay=1)
  assert s.main.tolist() == [v.BOS, v.SPEAK, T0 + 1, 0, 0, 0, v.AUDIO_END, v.EOS]
  assert s.frames.tolist() == [[NO, NO, NO, NO], [0, NO, 5, NO], [1, 10, 6, 15], [2, 11, 7, 16],
                               [NO, 12, NO, 17]]
  assert s.frame_weight.tolist() == [[0, 0], [1, 0], [1, 1], [1, 1], [0, 1]]


def test_instructions_come_before_what_they_ask_for():
  ask = np.array([5, 6], np.int32)

  def main(parts, task, **more):
    return d.render(parts, task, more.get("dropped", False), DATA, VOCAB, ask).main.tolist()

  asked, picture = [T0 + 5, T0 + 6], [v.rows(1), v.cols(1), I0]
  both = [text(7), image(1, 1)]
  assert main(both, d.CAPTION) == [v.BOS, v.USER, *picture, *asked, v.ASSISTANT, T0 + 7, v.EOS]
  assert main(both, d.DRAW) == [v.BOS, v.USER, *asked, T0 + 7, v.ASSISTANT, *picture, v.EOS]
  assert main(both, d.DRAW, dropped=True) == [v.BOS, v.USER, v.ASSISTANT, *picture, v.EOS]
  told = [audio(2, words=[7])]
  assert main(told, d.TRANSCRIBE)[-5:] == [*asked, v.ASSISTANT, T0 + 7, v.EOS]
  assert main(told, d.SPEAK)[:6] == [v.BOS, v.USER, *asked, T0 + 7, v.ASSISTANT]
  assert main([timed([0], 2)], d.FOLLOW)[:5] == [v.BOS, v.USER, *asked, v.LISTEN]


def test_a_drawing_may_lose_all_that_is_written_and_said_but_no_picture():
  asked = [text(7, role=d.USER), audio(2, role=d.USER), image(1, 1, d.USER)]
  drawn = [text(8, role=d.ASSISTANT), image(1, 1, d.ASSISTANT), audio(3, [1], d.ASSISTANT)]
  s = render([*asked, *drawn], dropped=True)
  picture = [v.rows(1), v.cols(1), I0]
  assert s.main.tolist() == [v.BOS, v.USER, *picture, v.ASSISTANT, *picture, v.EOS]
  assert len(s.frame_at) == 0
  answered = [*asked, text(1, role=d.ASSISTANT)]
  assert render(answered, dropped=True).main.tolist() == render(answered).main.tolist()


def part_rows(parts):
  rows = []
  for p in parts:
    h, w = p.codes.shape if p.kind == v.IMAGE else (0, 0)
    length = h * w or len(p.codes)
    rows.append((p.kind, p.role, h, w, length, -1 if p.words is None else len(p.transcript),
                 p.timed, 0, 0, -1 if p.heard is None else 0))
  return np.array(rows, d.PART)


_role = st.sampled_from([d.NONE, d.NONE, d.USER, d.ASSISTANT])
_part = st.one_of(
  st.builds(lambda n, r: text(*range(n), role=r), st.integers(1, 9), _role),
  st.builds(image, st.integers(1, 4), st.integers(1, 4), _role),
  st.builds(lambda T, n, r: audio(T, None if n is None else range(min(n, T)), r),
            st.integers(1, 9), st.none() | st.integers(0, 5), _role),
  st.builds(lambda T, n, r: timed(range(min(n, T)), T, r), st.integers(1, 9), st.integers(0, 5),
            _role),
  st.builds(lambda T, n: dialogue(audio(T, None if n is None else range(min(n, T)))),
            st.integers(1, 9), st.none() | st.integers(0, 5)))


@settings(max_examples=150, deadline=None)
@given(docs=st.lists(st.lists(_part, min_size=1, max_size=4), min_size=1, max_size=4),
       delays=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)),
       dropped=st.booleans())
def test_lengths_are_those_of_the_rendering(docs, delays, dropped):
  data = dataclasses.replace(DATA, acoustic_delay=delays[0], text_delay=delays[1],
                             follow_delay=delays[2])
  sizes = np.array([len(doc) for doc in docs])
  index = d.counts(part_rows([p for doc in docs for p in doc]), np.cumsum(sizes) - sizes)
  allowed = d.allowed(index)
  assert allowed[:, d.PLAIN].all()
  for i, doc in enumerate(docs):
    for task in np.flatnonzero(allowed[i]).tolist():
      s = d.render(doc, task, dropped, data, VOCAB)
      positions, frames = d.lengths(index[i : i + 1], task, dropped, data)
      assert (positions[0], frames[0]) == (len(s.main), len(s.frame_at))
      assert (s.frame_weight[s.frames[:, :2] == NO] == 0).all()
      assert (s.modality[s.frame_at] == v.AUDIO).all()


def test_what_a_document_allows():
  def allows(*parts):
    (row,) = d.allowed(d.counts(part_rows(parts), np.array([0])))
    return {d.TASKS[i] for i in np.flatnonzero(row)}

  assert allows(text(1)) == allows(image(1, 1)) == allows(audio(1)) == {"plain"}
  assert allows(image(1, 1), text(1)) == {"plain", "caption", "draw"}
  assert allows(audio(1, [1])) == {"plain", "transcribe", "speak"}
  assert allows(timed([0], 1)) == {"plain", "transcribe", "speak", "follow"}
  assert allows(dialogue(timed([0], 1))) == {"plain"}
  assert allows(image(1, 1, role=d.USER), text(1)) == {"plain"}
  assert allows(audio(1, [1], role=d.USER)) == {"plain"}
  assert allows(image(1, 1), text(1), text(1)) == {"plain"}


def test_tasks_are_drawn_by_their_odds_among_those_usable():
  n = 40_000
  chance = np.random.default_rng(0).integers(0, 1 << 64, n, np.uint64)
  data = dataclasses.replace(DATA, caption_dropout=0.25, tasks=config.Tasks(
    plain=0, caption=1, draw=3, transcribe=5, speak=0))
  usable = np.tile([True, True, True, False, False, False], (n, 1))
  counts = np.zeros(n, d.COUNTS)
  task, dropped = d.choose(counts, usable, chance, data)
  share = np.bincount(task, minlength=6) / n
  np.testing.assert_allclose(share, [0, 0.25, 0.75, 0, 0, 0], atol=0.01)
  assert not dropped[task != d.DRAW].any()
  np.testing.assert_allclose(dropped[task == d.DRAW].mean(), 0.25, atol=0.01)
  only_plain = np.tile([True, *[False] * 5], (n, 1))
  counts["asked_positions"][::2] = 3
  task, dropped = d.choose(counts, only_plain, chance, data)
  assert (task == d.PLAIN).all() and not dropped[1::2].any()
  np.testing.assert_allclose(dropped[::2].mean(), 0.25, atol=0.01)
