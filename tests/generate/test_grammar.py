"""Whatever is drawn, what comes out is a document: rendering its parts gives it back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from omnijax import config
from omnijax import vocab as vl
from omnijax.data import documents
from omnijax.generate import engine, grammar, parse, step, turns
from omnijax.generate.grammar import Layout
from omnijax.generate.sample import GREEDY

VOCAB = vl.Vocab(text=30, image=20, audio=9, codebooks=2)
LAYOUTS = [Layout(VOCAB, 0, 1), Layout(VOCAB, 2, 0), Layout(VOCAB, 1, 3)]
ROWS = 16




def _stepper(layout: Layout):
  def one(g, left_B, noise_BV, odds_BV):
    allowed_BV = grammar.allowed(g, left_B, layout)
    main_B = jnp.argmax(jnp.where(allowed_BV, noise_BV + odds_BV, -jnp.inf), 1)
    main_B = main_B.astype(jnp.int32)
    after = grammar.advance(g, main_B, layout)
    return (allowed_BV, main_B, grammar.place(g, main_B, layout),
            grammar.live(g, main_B, layout), after)
  return jax.jit(one)


STEPPERS = {layout: _stepper(layout) for layout in LAYOUTS}


def simulate(layout: Layout, goals: list[turns.Goal], seed: int, start: int = 7):
  """Streams of rows in which every draw is random, and the limits they had."""
  r = np.random.default_rng(seed)
  data = _data(layout)
  empty = documents.render([], documents.PLAIN, False, data, VOCAB)  # BOS and EOS
  prompt = dataclasses.replace(empty, position=empty.position + start)
  limits = [g.positions(layout, room=60) for g in goals]
  n = len(goals)
  turn = turns.turn([prompt] * n, goals, limits, n, layout, sampling=GREEDY,
                    keys_B2=step.keys(0, 0, n), guidance_B=np.zeros(n))
  g = grammar.Grammar(**{k: jnp.asarray(v) for k, v in turn["grammar"].items()})
  written_B, limit_B, records = np.zeros(len(goals), np.int32), np.array(limits), []
  # Control tokens would drown among the text, or text among them: each row has favourites.
  odds_BV = r.uniform(-0.7, 0.7, (len(goals), VOCAB.size))
  odds_BV = np.where(np.arange(VOCAB.size) < vl.CONTROL, odds_BV, 0.0)
  odds_BV[:, [vl.SPEAK, vl.EOS]] += [0.5, -0.5]
  for _ in range(64):
    noise_BV = r.random((len(goals), VOCAB.size))
    allowed_BV, main_B, place, live, after = STEPPERS[layout](
      g, jnp.asarray(limit_B - written_B, jnp.int32), jnp.asarray(noise_BV), jnp.asarray(odds_BV))
    assert np.asarray(allowed_BV).any(1).all()
    wrote_B = np.asarray((g.phase_B != grammar.DONE) & (after.phase_B != grammar.DONE))
    codes_BQ = r.integers(0, VOCAB.audio, (len(goals), 2))
    codes_BQ = np.where(np.stack([live[0], live[1]], 1), codes_BQ, VOCAB.no_code)
    records.append(step.Written(main_B, place[0], place[1], codes_BQ, wrote_B))
    written_B += wrote_B
    g = after
    if (g.phase_B == grammar.DONE).all():
      break
  assert (g.phase_B == grammar.DONE).all() and (written_B < limit_B).all()
  whole = step.Written(*(np.stack(x) for x in zip(*records, strict=True)))
  return [engine._streams(whole, i, layout) for i in range(len(goals))]


def _data(layout: Layout) -> config.Data:
  return dataclasses.replace(tiny.DATA, text_delay=layout.text_delay,
                             acoustic_delay=layout.acoustic_delay)


def _again(streams: documents.Streams, layout: Layout, start: int) -> documents.Streams:
  """The parts of a stream, rendered as the answer in a document."""
  parts = parse.parts(streams, layout)
  s = documents.render([dataclasses.replace(p, role=documents.NONE) for p in parts],
                       documents.PLAIN, False, _data(layout), VOCAB)
  cut = slice(1, len(s.main) - 1)
  return dataclasses.replace(s, main=s.main[cut], modality=s.modality[cut],
                             position=s.position[cut] + start, frame_at=s.frame_at - 1)


def _spoken(s: documents.Streams) -> np.ndarray:
  """Positions of the monologue, whose words may stand anywhere in it."""
  return (s.modality == vl.AUDIO) & (s.main != vl.AUDIO_END)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda x: f"{x.text_delay}-{x.acoustic_delay}")
@pytest.mark.parametrize("seed", range(6))
def test_random_output_is_a_document(layout, seed):
  goals = [turns.Goal(to=to, max_new=20 + seed) for to in ("any", "text", "image", "audio")]
  out = simulate(layout, goals * (ROWS // 4), seed)
  for goal, s in zip(goals * (ROWS // 4), out, strict=True):
    parts = parse.parts(s, layout)
    kinds = [p.kind for p in parts]
    assert all(len(p.codes) for p in parts)
    if goal.to == "image":  # perhaps named first
      assert kinds in ([vl.IMAGE], [vl.TEXT, vl.IMAGE])
    elif goal.to != "any":
      assert kinds == [{"text": vl.TEXT, "audio": vl.AUDIO}[goal.to]]
    same = _again(s, layout, 7)
    assert same.position.tolist() == s.position.tolist()
    assert same.modality.tolist() == s.modality.tolist()
    assert same.frame_at.tolist() == s.frame_at.tolist()
    assert same.frames.tolist() == s.frames.tolist()
    assert same.main[~_spoken(same)].tolist() == s.main[~_spoken(s)].tolist()


def test_mixed_output_has_every_kind():
  out = simulate(LAYOUTS[0], [turns.Goal(to="any", max_new=50)] * ROWS, 3)
  kinds = {p.kind for s in out for p in parse.parts(s, LAYOUTS[0])}
  assert kinds == {vl.TEXT, vl.IMAGE, vl.AUDIO}


def test_a_size_that_was_asked_for_is_kept_and_any_other_is_free():
  goals = [turns.Goal(to="image", grid=(2, 5), max_new=6)] * 4
  goals += [turns.Goal(to="image")] * (ROWS - 4)
  out = simulate(LAYOUTS[0], goals, 0)
  assert all(len(s.main) <= 6 + 2 + 10 for s in out[:4])
  shapes = [parse.parts(s, LAYOUTS[0])[-1].codes.shape for s in out]
  assert shapes[:4] == [(2, 5)] * 4
  assert len(set(shapes[4:])) > 3


@pytest.mark.parametrize(("goal", "room", "message"), [
  (dict(to="image", grid=(4, 4)), 18, "leaves 18 positions, and image output takes at least 19"),
  (dict(to="audio"), 3, "leaves 3 positions"),
  (dict(to="audio", max_new=2), 60, "max_new is 2, and audio output takes at least 3"),
  (dict(to="text"), -3, "leaves 0 positions")])
def test_too_little_room_says_how_much_is_wanted(goal, room, message):
  with pytest.raises(ValueError, match=message):
    turns.Goal(**goal).positions(LAYOUTS[0], room)


def test_a_goal_is_checked():
  with pytest.raises(ValueError, match="'video' is unknown; use one of text, image, audio, any"):
    turns.Goal(to="video")
  with pytest.raises(ValueError, match="max_new is 0"):
    turns.Goal(to="text", max_new=0)
