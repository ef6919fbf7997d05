"""Random mixtures of real records: nothing lost, nothing too long, the same for any hosts."""

import dataclasses

import fakes
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loader import equal
from test_prepare import run

from omnijax import config
from omnijax import vocab as v
from omnijax.data import documents as d
from omnijax.data import loader

ROWS = 8
PROMPTS = {d.CAPTION: ["What is it?", "Que"], d.TRANSCRIBE: ["Write."], d.FOLLOW: ["So"]}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
  """Of every kind of document; of texts, some long; of recordings, some long and some dialogues."""
  root = tmp_path_factory.mktemp("sources")
  for name in "abc":
    (root / name).mkdir()
  run(fakes.mixed(root / "a", 120), root / "a.out")
  rng = np.random.default_rng(0)
  run(fakes.manifest(root / "b", [{"text": "x" * int(n)} for n in rng.integers(1, 400, 60)]),
      root / "b.out")
  lines = []
  for i, frames in enumerate(rng.integers(2, 90, 20).tolist()):
    loud = np.repeat(0.1 + 0.8 * rng.random(frames).astype(np.float32), fakes.FRAME)
    soundfile.write(root / "c" / f"{i}.wav", loud, fakes.RATE)
    more = ({"words": [[0.0, "a"]]}, {"listen": f"{i}.wav"}, {})[i % 3]
    lines.append({"parts": [{"audio": f"{i}.wav", **more}]})
  run(fakes.manifest(root / "c", lines), root / "c.out")
  return tuple(str(root / f"{name}.out") for name in "abc")


@st.composite
def mixtures(draw):
  n, stages = draw(st.integers(1, 3)), sorted(draw(st.sets(st.integers(1, 30), max_size=2)))
  weights = st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=n, max_size=n)
  odds = st.sampled_from([0.0, 1.0])
  return n, dict(
    rows=ROWS, positions=draw(st.sampled_from([64, 100, 256])), window=draw(st.integers(20, 150)),
    frames=draw(st.sampled_from([40, 60])), stages=tuple(stages),
    weights=tuple(x for _ in range(len(stages) + 1) for x in draw(weights)),
    weights_by=draw(st.sampled_from(["documents", "tokens"])),
    epochs=tuple(draw(st.lists(st.sampled_from([0.0, 6.0]), min_size=n, max_size=n))),
    acoustic_delay=draw(st.integers(0, 2)), text_delay=draw(st.integers(0, 2)),
    documents=draw(st.sampled_from([0, 3])), depth_frames=draw(st.sampled_from([0, 12])),
    prompts=draw(st.sampled_from([(), tuple(f"{d.TASKS[t]}: {words}" for t, some in
                                            PROMPTS.items() for words in some)])),
    tasks=config.Tasks(transcribe=draw(odds), draw=draw(odds), follow=draw(odds)))


@settings(max_examples=25, deadline=None)
@given(mixture=mixtures(), steps=st.lists(st.integers(0, 40), min_size=2, max_size=2),
       seed=st.integers(0, 3))
def test_any_mixture_is_the_same_on_any_hosts_from_any_step(sources, mixture, steps, seed):
  n, fields = mixture
  data = config.Data(sources=sources[:n], **fields)
  make = lambda mine=None: loader.Loader(data, fakes.VOCAB, seed=seed, mine=mine,
                                         encode=fakes.Text().encode)
  one = make()
  for step in steps:
    try:
      whole = one.batch_at(step)
    except ValueError as error:
      assert "the data run out" in str(error) and any(data.epochs)
      continue
    if n > 1:
      at = whole["frame_at"][:, : whole["frame_source"].shape[1]]
      there = at < data.positions
      said = np.take_along_axis(whole["source"], np.where(there, at, 0), 1)
      assert (said == whole["frame_source"])[there].all()
    for hosts in (2, 4, 8):
      each = ROWS // hosts
      slices = [make(range(i * each, i * each + each)).batch_at(step) for i in (0, hosts - 1)]
      equal(slices[0], {k: x[:each] for k, x in whole.items()})
      equal(slices[1], {k: x[-each:] for k, x in whole.items()})


@settings(max_examples=25, deadline=None)
@given(mixture=mixtures(), seed=st.integers(0, 3))
def test_rows_hold_what_was_drawn_whole_and_no_more(sources, mixture, seed):
  n, fields = mixture
  data = config.Data(sources=sources[:n], **fields | {"depth_frames": 0})
  made = loader.Loader(data, fakes.VOCAB, seed=seed, encode=fakes.Text().encode)
  window = made._plan.window(0)
  positions = frames = 0
  for step in range(-(-window.rows // ROWS)):
    try:
      batch = made.batch_at(step)
    except ValueError:
      return
    for r in range(min(ROWS, window.rows - step * ROWS)):
      segment, at = batch["segment"][r], batch["frame_at"][r]
      used = segment > 0
      assert (np.diff(segment[used]) >= 0).all() and used[: used.sum()].all()
      members = made._plan.row(step * ROWS + r)
      assert segment.max(initial=0) == len(members)
      assert not data.documents or len(members) <= data.documents
      for k, (source, document, task, dropped, prompt) in enumerate(members, 1):
        need, slots = d.lengths(made.records[source].lengths[document : document + 1], task,
                                dropped, data)
        asked = 0 if prompt < 0 else len(PROMPTS[task][prompt])
        assert (segment == k).sum() == need[0] + asked
        assert np.isin(at, np.flatnonzero(segment == k)).sum() == slots[0]
      there = at[at < data.positions]
      assert len(set(there.tolist())) == len(there)
      assert (batch["modality"][r][there] == v.AUDIO).all()
      positions, frames = positions + used.sum(), frames + len(there)
      if n > 1:
        assert [int(batch["source"][r][segment == k][0]) for k in range(1, len(members) + 1)] == [
          source for source, *_ in members]
  assert (positions, frames) == (window.positions, window.frames)


QUICK = ((1, 4), (4, 2))


@pytest.mark.parametrize(("hosts", "workers"), [
  pytest.param(h, w, marks=[] if (h, w) in QUICK else pytest.mark.slow)
  for h in (1, 2, 4, 8) for w in (0, 2, 4)])
def test_workers_of_hosts_change_nothing(sources, hosts, workers):
  data = config.Data(sources=sources, rows=ROWS, positions=100, frames=60, window=90, stages=(3,),
                     weights=(1.0, 1.0, 2.0, 3.0, 1.0, 0.0), weights_by="tokens")
  whole = loader.Loader(data, fakes.VOCAB, seed=0)
  each = ROWS // hosts
  mine = range(ROWS - each, ROWS)
  part = loader.Loader(dataclasses.replace(data, workers=workers, prefetch=workers), fakes.VOCAB,
                       seed=0, mine=mine)
  for step, got in enumerate(part.iterate(1, 6), 1):
    equal(got, {k: x[-each:] for k, x in whole.batch_at(step).items()})
