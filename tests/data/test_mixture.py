"""Mixtures: weights, stages, passes, what a run will read, and what tasks are asked with."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import config_data, one, rows_of, source

from omnijax import config
from omnijax import vocab as v
from omnijax.data import documents as d
from omnijax.data import fit, forecast
from omnijax.data.lengths import Lengths
from omnijax.data.mixture import Stream
from omnijax.data.plan import Plan
from omnijax.data.prompts import Prompts


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4), seed=st.integers(0, 9),
       weights=st.lists(st.sampled_from([0.5, 1, 2, 3]), min_size=8, max_size=8),
       passes=st.lists(st.sampled_from([0, 0.5, 1, 2.25]), min_size=4, max_size=4),
       change=st.integers(0, 120))
def test_a_stream_draws_each_document_as_often_as_it_says(sizes, seed, weights, passes, change):
  n = len(sizes)
  stream = Stream(sizes, weights[:n], passes[:n], seed)
  stop = 160 if stream.end is None else min(160, stream.end)
  change = min(change, stop)
  before = stream.draw(0, stop)
  stream.change(change, weights[4 : 4 + n])
  stop = 160 if stream.end is None else min(160, stream.end)
  if not stop:
    return
  source_N, epoch_N, document_N = stream.draw(0, stop)
  for a, b in zip(before, (source_N, epoch_N, document_N), strict=True):
    assert a[:change].tolist() == b[:change].tolist(), "what was drawn before stays"
  parts_of = [stream.draw(a, a + 1) for a in range(stop)]
  assert [int(p[2][0]) for p in parts_of] == document_N.tolist(), "any place by itself"
  drawn = np.bincount(source_N, minlength=n)
  assert drawn.tolist() == stream.drawn(stop)
  for s, (size, most) in enumerate(zip(sizes, passes, strict=False)):
    assert not most or drawn[s] <= most * size
    for epoch in range(int(epoch_N.max()) + 1):
      mine = document_N[(source_N == s) & (epoch_N == epoch)].tolist()
      assert len(mine) == len(set(mine)), "twice in an epoch"
      if epoch < drawn[s] // size:
        assert sorted(mine) == list(range(size))
  if stream.end is not None and stop == stream.end:
    assert drawn.tolist() == [int(m * z) for m, z in zip(passes, sizes, strict=False)]
  else:  # those who are left share by their weights
    left = [w if not m or k < m * z - 1 else 0 for w, k, m, z in zip(
      weights[4:], drawn, passes, sizes, strict=False)]
    after = np.bincount(source_N[change:], minlength=n)
    if all(left) and change:
      share = np.array(left) / sum(left) * (stop - change)
      assert np.abs(after - share).max() <= n / 2 + 1


def test_a_stage_begins_with_its_row_and_nothing_is_lost_or_drawn_twice():
  sources = [source(300), source(300, 1)]
  data = config_data(sources=("a", "b"), weights=(1, 0, 1, 3, 0, 1), stages=(7, 20))
  plan = Plan(sources, data, seed=3)
  rows = rows_of(plan, 120)
  assert {s for row in rows[:28] for s, *_ in row} == {0}
  middle = [s for row in rows[28:80] for s, *_ in row]
  np.testing.assert_allclose(np.mean(middle), 0.75, atol=0.02)
  assert {s for row in rows[80:] for s, *_ in row} == {1}
  for source_of in (0, 1):
    seen = [i for row in rows for s, i, *_ in row if s == source_of]
    assert len(seen) == len(set(seen)) or len(seen) > 300
  drawn = np.concatenate([plan._stream.draw(0, plan._places[-1])[0]])
  assert np.bincount(drawn).tolist() == plan._stream.drawn(plan._places[-1])
  again = Plan(sources, data, seed=3)
  assert again.row(110) == rows[110] and again.row(29) == rows[29]
  assert sum(not row for row in rows) <= 2


def test_what_is_drawn_in_a_stage_is_what_the_plan_shows():
  sources = [source(300), source(300, 1)]
  data = config_data(sources=("a", "b"), weights=(1, 1, 1, 3), stages=(9,), window=100)
  plan = Plan(sources, data, seed=3)
  plan.row(100)
  shown, stop = [], plan._places[-1]
  for index in range(len(plan._ends)):
    w = plan.window(index)
    shown += zip(w.source.tolist(), w.document.tolist(), strict=True)
  source_N, _, document_N = plan._stream.draw(0, stop)
  assert sorted(shown) == sorted(zip(source_N.tolist(), document_N.tolist(), strict=True))
  assert plan._ends[plan._changes[0]] == 36


def test_nothing_of_anything_is_a_stream_without_an_end():
  stream = Stream([1], [0.5], [0.5], 0)
  assert stream.end == 0 and [x.tolist() for x in stream.draw(0, 0)] == [[], [], []]
  stream.change(0, [1.0])
  assert stream.end == 0 and stream.drawn(0) == [0]


def test_data_that_run_out_end_the_plan():
  data = config_data(sources=("a", "b"), weights=(1, 1), epochs=(1, 2.5))
  plan = Plan([source(60), source(40, 1)], data, seed=3)
  rows = rows_of(plan, plan.rows)
  often = [np.bincount([i for row in rows for s, i, *_ in row if s == k]) for k in (0, 1)]
  assert often[0].tolist() == [1] * 60 and often[1].sum() == 100
  assert set(often[1].tolist()) == {2, 3}
  with pytest.raises(IndexError, match=f"a pass of {plan.rows} rows"):
    plan.row(plan.rows)


def test_weights_by_tokens_are_of_tokens():
  short, long = source(400, longest=8), source(400, 1, longest=50)
  shares = []
  for by in ("documents", "tokens"):
    data = config_data(sources=("a", "b"), weights=(1, 1), weights_by=by, tasks=config.Tasks(
      caption=0, draw=0, transcribe=0, speak=0, follow=0))
    plan = Plan([short, long], data, seed=3)
    row = [x for r in rows_of(plan, 200) for x in r]
    tokens = [sum(d.lengths((short, long)[s][i : i + 1], t, x, data)[0][0]
                  for s, i, t, x, _ in row if s == k) for k in (0, 1)]
    shares.append(tokens[0] / sum(tokens))
  np.testing.assert_allclose(shares[1], 0.5, atol=0.02)
  assert shares[0] < 0.4


def test_windows_that_others_counted_are_taken_over():
  sources = [source(300), source(300, 1)]
  data = config_data(sources=("a", "b"), weights=(1, 1, 1, 3), stages=(9,), window=64)
  plain, ahead = Plan(sources, data, seed=3), Plan(sources, data, seed=3)
  plain.row(160)
  spans = []

  def counts(plan, some):
    spans.append(len(some))
    counting = pickle.loads(pickle.dumps(plan))
    counting.attach(sources)
    yield from [counting.count(*span) for span in some]

  reached = list(ahead.ahead(plain._ends[-1], counts, 4))
  assert max(spans) == 4 and reached[-1] == ahead._ends[-1]
  n = len(plain._ends)
  assert ahead._ends[:n] == plain._ends and ahead._places[: n + 1] == plain._places
  fresh = Plan(sources, data, seed=3)
  fresh.recall(ahead.counted())
  assert rows_of(fresh, 160) == rows_of(plain, 160)


# --- what a run will read ----------------------------------------------------------


@pytest.mark.parametrize("changes", [
  {}, {"weights_by": "tokens"}, {"stages": (30,), "weights": (1, 3, 2, 0)}, {"epochs": (0, 2)}])
def test_a_forecast_is_near_what_is_read(changes):
  sources = [source(300), source(200, 1, longest=20)]
  plain = config.Tasks(caption=0, draw=0, transcribe=0, speak=0, follow=0)
  data = config_data(**{"sources": ("a", "b"), "weights": (1, 3), "tasks": plain, **changes})
  steps = 80
  found = forecast.forecast(sources, data, steps)
  rows = rows_of(Plan(sources, data, seed=0), steps * data.rows)
  for s, epochs in enumerate(found.epochs):
    read = sum(s == x for row in rows for x, *_ in row) / len(sources[s])
    assert abs(epochs - read) < 0.1 * read + 0.05
  assert found.ends is None
  assert "80 steps read about: a (300 documents)" in forecast.told("ab", [300, 200], found, steps)


def test_data_that_run_out_are_told_beforehand():
  sources, data = [source(300)], config_data(sources=("a",), epochs=(2,), weights=(1,))
  last = Plan(sources, data, seed=0).rows / data.rows
  found = forecast.forecast(sources, data, 200)
  assert abs(found.ends - last) < 0.25 * last
  with pytest.raises(ValueError, match=f"run out after about {found.ends} of 200 steps: a .*2.00"):
    forecast.told("a", [300], found, 200)
  assert "may run out" in forecast.told("a", [300], found, found.ends + 1)


# --- instructions ------------------------------------------------------------------


PROMPTS = ("caption: What?", "caption: Qu'est-ce que c'est ?", "draw: Draw!", "follow: Listen.")


def test_tasks_are_asked_with_their_instructions_in_equal_parts():
  asked = Prompts(PROMPTS, lambda text: list(text.encode()))
  index = source(4000)
  plan = Plan([index], config_data(window=4096, positions=80), seed=0, prompts=asked)
  w = plan.window(0)
  for task, count in ((d.CAPTION, 2), (d.DRAW, 1), (d.PLAIN, 0), (d.SPEAK, 0)):
    mine = w.prompt[(w.task == task) & ~w.dropped]
    assert len(mine) > 100
    share = np.bincount(mine + 1, minlength=3) / len(mine)
    want = [0, *[1 / count] * count] if count else [1]
    np.testing.assert_allclose(share[: len(want)], want, atol=0.06)
  assert (w.prompt[w.dropped] == -1).all() and w.dropped.any()


def test_rows_have_room_for_instructions():
  plain, asked = Prompts(), Prompts(PROMPTS, lambda text: list(text.encode()))
  index = Lengths.join([source(500), one(v.TEXT, 0, 0, 0, 40, -1)])
  data = config_data(positions=48)
  some, fewer = (fit.usable(index, data, p) for p in (plain, asked))
  assert (some >= fewer).all() and (some != fewer).any()
  assert (some[:, d.PLAIN] == fewer[:, d.PLAIN]).all()
  plan = Plan([index], data, seed=0, prompts=asked)
  for row in rows_of(plan, 60):
    need = sum(d.lengths(index[i : i + 1], t, x, data)[0][0] + (
      len(asked.of(t, p)) if p >= 0 else 0) for _, i, t, x, p in row)
    assert need <= 48
