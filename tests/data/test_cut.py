"""Documents longer than a row: pieces that fit, hold all that was there, and nothing twice."""

import dataclasses
import json
import time

import fakes
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prepare import run

from omnijax import config
from omnijax import vocab as v
from omnijax.data import cut, loader, records
from omnijax.data import documents as d

DATA = config.Data(sources=(), rows=1, positions=100, frames=60)
_role = st.sampled_from([d.NONE, d.USER, d.ASSISTANT])


def part(kind, role, length, words=-1, timed=0, heard=-1):
  side = int(length**0.5)
  shape = (side, side, side * side) if kind == v.IMAGE else (0, 0, length)
  return (kind, role, *shape, words, timed, 1000, 5000 if timed else 0, heard)


_part = st.one_of(
  st.builds(lambda n, r: part(v.TEXT, r, n), st.integers(1, 400), _role),
  st.builds(lambda n, r: part(v.IMAGE, r, n), st.integers(1, 60), _role),
  st.builds(lambda n, r: part(v.AUDIO, r, n), st.integers(1, 300), _role),
  st.builds(lambda n, r: part(v.AUDIO, r, n, n // 3, 1), st.integers(1, 300), _role),
  st.builds(lambda n: part(v.AUDIO, 0, n, heard=9000), st.integers(1, 300)),
  st.builds(lambda n, r: part(v.AUDIO, r, n, n // 3), st.integers(1, 40), _role))


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(_part, min_size=1, max_size=5), delays=st.tuples(
  st.integers(0, 2), st.integers(0, 2)))
def test_pieces_fit_and_hold_everything_in_order(parts, delays):
  data = config.Data(sources=(), rows=1, positions=100, frames=60, acoustic_delay=delays[0],
                     text_delay=delays[1])
  table = np.array(parts, d.PART)
  found = cut.pieces(table, data)
  assert found is not None
  for piece in found:
    index = cut.index(piece, np.array([0]))
    positions, frames = d.lengths(index, d.PLAIN, False, data)
    assert positions[0] <= 100 and frames[0] <= 60
  # Joined again where one goes on with what the last left off.
  joined = [x.copy() for x in found[0]]
  for piece in found[1:]:
    for k, x in enumerate(piece):
      last = joined[-1]
      if not k and x["offset"] == last["offset"] + last["length"] and x["kind"] == last["kind"]:
        for name in ("words_offset", "heard_offset"):
          moved = last["timed"] if name == "words_offset" else last["heard_offset"] >= 0
          assert x[name] - last[name] == (last["length"] if moved else 0)
        last["length"] += x["length"]
      else:
        joined.append(x.copy())
  assert np.array(joined, d.PART).tolist() == table.tolist()
  full = [d.lengths(cut.index(p, np.array([0])), d.PLAIN, False, data) for p in found[:-1]]
  if all(p[0] == v.TEXT for p in parts):  # nothing is left empty but scraps
    assert all(positions[0] > 100 - 34 for positions, _ in full)


@pytest.mark.parametrize("long", [part(v.IMAGE, 0, 110), part(v.AUDIO, 0, 70, 9)])
def test_a_picture_and_words_without_times_are_not_cut(long):
  table = np.array([part(v.TEXT, 0, 300), long], d.PART)
  assert cut.pieces(table, DATA) is None
  both = np.concatenate([table, table[:1], table[1:]])
  parts, starts, lost = cut.cut(both, np.array([2, 1, 1]), DATA)
  assert lost.tolist() == [0, 2] and len(starts) == len(parts) == 4


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(_part, min_size=1, max_size=8), delay=st.integers(0, 2))
def test_many_documents_of_one_part_are_cut_as_each_alone(parts, delay):
  data = dataclasses.replace(DATA, acoustic_delay=delay)
  table = np.array(parts, d.PART)
  room = [int(cut._room([], part, data)) for part in table]
  found, lost = cut.singles(table, data)
  # As loops see them; what fits whole is one piece, also if it could not be cut.
  want = [p for part, n in zip(table, room, strict=True) if cut._divisible(part) and n > 0
          for p in cut.pieces(part[None], data)]
  assert found.tolist() == np.concatenate([np.zeros((0,), d.PART), *want]).tolist()
  assert lost.tolist() == [i for i, part in enumerate(table) if not cut._divisible(part)]


def test_a_million_long_texts_are_cut_in_seconds():
  table = np.zeros(1_000_000, d.PART)
  table["words"] = table["heard_offset"] = -1
  table["length"] = np.random.default_rng(0).integers(101, 2000, len(table))
  begun = time.process_time()
  parts, starts, lost = cut.cut(table, np.ones(len(table), np.int64), DATA)
  assert time.process_time() - begun < 20
  assert not len(lost) and parts["length"].sum() == table["length"].sum()
  assert parts["length"].max() == 98 and len(starts) == len(parts)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("long")
  rng = np.random.default_rng(0)
  loud = np.repeat(np.round(rng.random(200), 1).astype(np.float32) * 0.9 + 0.05, fakes.FRAME)
  soundfile.write(root / "long.wav", loud, fakes.RATE)
  words = [[i * 0.8, "ab"] for i in range(19)]
  text = bytes(rng.integers(97, 123, 700).tolist()).decode()
  lines = [{"parts": [{"text": text}]},
           {"parts": [{"audio": "long.wav", "words": words}]},
           {"parts": [{"audio": "long.wav", "listen": "long.wav"}]},
           {"id": "lost", "parts": [{"audio": "long.wav", "transcript": "ab"}]},
           *({"parts": [{"text": "short"}]} for _ in range(20))]
  run(fakes.manifest(root, lines), root / "out")
  return root


def test_every_token_of_a_long_document_is_in_a_row_once(root, caplog):
  caplog.set_level("INFO")
  data = config.Data(sources=(str(root / "out"),), heldout=(str(root / "out"),), rows=2,
                     positions=100, frames=80, acoustic_delay=0,
                     tasks=config.Tasks(transcribe=0, speak=0, follow=0))
  made = loader.Loader.heldout(data, fakes.VOCAB, seed=0)
  assert "3 documents are longer than a row: cut into 14 pieces" in caplog.text
  assert "1 documents fit no row of 100 positions and 80 frames" in caplog.text
  read = records.Records(root / "out")
  want = {"text": read.read(0)[0].codes, "frames": read.read(1)[0].codes}
  pieces = {"text": [], "told": [], "dialogue": []}
  for step in range(made.steps):
    batch = made.batch_at(step)
    for r in range(2):
      for s in range(1, batch["segment"][r].max() + 1):
        span = batch["segment"][r] == s
        main, modality = batch["main"][r][span], batch["modality"][r][span]
        if (modality == v.AUDIO).any():
          mine = np.isin(batch["frame_at"][r], np.flatnonzero(span))
          frames = batch["frames"][r][mine]
          both = (frames[:, fakes.Q] != fakes.VOCAB.no_code).any()
          pieces["dialogue" if both else "told"].append((main, frames))
        elif len(main) > 7:
          pieces["text"].append(main[1:-1] - fakes.VOCAB.text_start)
  letters = b"".join(bytes(p.astype(np.uint8)) for p in pieces["text"])
  assert sorted(letters) == sorted(bytes(want["text"].astype(np.uint8)))
  whole = bytes(want["text"].astype(np.uint8))
  assert all(bytes(p.astype(np.uint8)) in whole for p in pieces["text"])
  first = lambda frames, at: sorted(frames[:, at].tolist())
  heard = np.concatenate([f for _, f in pieces["told"]])
  assert first(heard, 0) == sorted(want["frames"][:, 0].tolist())
  words = np.concatenate([m for m, _ in pieces["told"]])
  assert (words == fakes.VOCAB.text_start + ord("b")).sum() == 19
  both = np.concatenate([f for _, f in pieces["dialogue"]])
  assert first(both, 0) == first(both, fakes.Q) == first(heard, 0)


def test_a_plan_of_pieces_goes_to_workers(root):
  data = config.Data(sources=(str(root / "out"),), rows=2, positions=100, frames=80,
                     workers=1, prefetch=2)
  made = loader.Loader(data, fakes.VOCAB, seed=0)
  for step, batch in enumerate(made.iterate(0, 4)):
    for name, x in made.batch_at(step).items():
      np.testing.assert_array_equal(x, batch[name])
  assert json.dumps(made.stats(0))
