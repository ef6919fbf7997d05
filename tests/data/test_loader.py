"""Batches from records: layout, hosts, workers, restarts, held-out passes and mismatches."""

import dataclasses
import json
import multiprocessing
import re

import fakes
import numpy as np
import pytest

from omnijax import config
from omnijax import vocab as v
from omnijax.data import documents, loader, prepare, records


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("data")
  prepare.prepare(fakes.mixed(root, 300), root / "out", tokenizers=fakes.tokenizers(),
                  progress=False)
  return root


@pytest.fixture
def data(root):
  return config.Data(sources=(str(root / "out"),), heldout=(str(root / "out"),), rows=4,
                     positions=128, frames=48, window=64)


def make(data, **options):
  return loader.Loader(data, fakes.VOCAB, **{"seed": 1, **options})


def equal(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].dtype == b[name].dtype
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_shapes_and_types_of_a_batch(data):
  B, S, F, Q = 4, 128, 48, fakes.Q
  want = {"main": ((B, S), np.int32), "modality": ((B, S), np.int8),
          "segment": ((B, S), np.int32), "position": ((B, S, 3), np.int32),
          "weight": ((B, S), np.float32), "frame_at": ((B, F), np.int32),
          "frames": ((B, F, 2 * Q), np.int32), "frame_weight": ((B, F, Q), np.float32)}
  batch = make(data).batch_at(0)
  assert {k: (x.shape, x.dtype.type) for k, x in batch.items()} == want


def test_a_row_is_its_documents_one_after_the_other(data):
  batch, Q = make(data).batch_at(2), fakes.Q
  # A row with padding and unused frames, so that both are looked at.
  (r, *_) = np.flatnonzero((batch["segment"][:, -1] == 0) & (batch["frame_at"][:, 0] < 128)
                           & (batch["frame_at"][:, -1] == 128))
  segment, main = batch["segment"][r], batch["main"][r]
  assert segment.max() > 1
  np.testing.assert_array_equal(np.sort(segment[segment > 0]), segment[segment > 0])
  at = batch["frame_at"][r]
  used = at < data.positions
  for s in range(1, segment.max() + 1):
    span = np.flatnonzero(segment == s)
    assert (np.diff(span) == 1).all()
    assert main[span[0]] == v.BOS and main[span[-1]] == v.EOS
    assert batch["position"][r, span[0]].tolist() == [0, 0, 0]
  audio = np.flatnonzero(batch["modality"][r] == v.AUDIO)
  np.testing.assert_array_equal(at[used], audio)
  assert (at[~used] == data.positions).all()
  assert (batch["frames"][r][~used] == fakes.VOCAB.no_code).all()
  assert not batch["frame_weight"][r][~used].any()
  padding = segment == 0
  assert padding.any() and not batch["weight"][r][padding].any() and not main[padding].any()
  assert batch["frames"][r][:, :Q].max() <= fakes.VOCAB.audio


def test_depth_frames_are_drawn_from_those_with_targets_and_nothing_else_changes(data):
  few = 20
  all_of, some_of = make(data), make(dataclasses.replace(data, depth_frames=few))
  cut = whole = scattered = 0
  for step in range(8):
    want, got = all_of.batch_at(step), some_of.batch_at(step)
    assert got["frame_weight"].shape == (4, few, fakes.Q)
    equal({k: got[k] for k in ("main", "weight", "segment")},
          {k: want[k] for k in ("main", "weight", "segment")})
    equal(got, some_of.batch_at(step))
    for r in range(4):
      place = lambda b, r=r: {int(at): (c.tolist(), w.tolist()) for at, c, w in zip(
        b["frame_at"][r], b["frames"][r], [*b["frame_weight"][r], *np.zeros((40, fakes.Q))],
        strict=False) if at < data.positions}
      before, after = place(want), place(got)
      assert {at: codes for at, (codes, _) in before.items()} == {
        at: codes for at, (codes, _) in after.items()}
      spoken = {at for at, (_, weight) in before.items() if any(weight)}
      kept = {at for at, (_, weight) in after.items() if any(weight)}
      assert kept <= spoken and len(kept) == min(few, len(spoken))
      assert all(after[at] == before[at] for at in kept)
      cut, whole = cut + (len(spoken) > few), whole + (0 < len(spoken) <= few)
      scattered += kept != set(sorted(spoken)[:few])
  assert cut and whole and scattered


def test_some_of_what_is_heard_is_hidden_and_nothing_of_what_is_spoken(data):
  want, hides = make(data), make(dataclasses.replace(data, listen_dropout=0.25))
  hidden = heard = 0
  for step in range(8):
    before, after = want.batch_at(step), hides.batch_at(step)
    equal(after, hides.batch_at(step))
    equal(*({k: x for k, x in b.items() if k != "frames"} for b in (before, after)))
    spoken, listened = (slice(fakes.Q), slice(fakes.Q, None))
    np.testing.assert_array_equal(after["frames"][..., spoken], before["frames"][..., spoken])
    there = before["frames"][..., listened] != fakes.VOCAB.no_code
    changed = after["frames"][..., listened] != before["frames"][..., listened]
    assert (after["frames"][..., listened][changed] == fakes.VOCAB.no_code).all()
    hidden, heard = hidden + changed.sum(), heard + there.sum()
  assert heard > 500 and abs(hidden / heard - 0.25) < 0.05
  held = [loader.Loader.heldout(dataclasses.replace(data, listen_dropout=p), fakes.VOCAB, seed=0)
          for p in (0.0, 0.5)]
  equal(*(h.batch_at(0) for h in held))


def test_a_document_reads_back_as_it_was(root):
  r = records.Records(root / "out")
  lines = [json.loads(x) for x in (root / "manifest.jsonl").read_text().splitlines()]
  for i, line in enumerate(lines[:40]):
    for part, raw in zip(r.read(i), line["parts"], strict=True):
      assert part.role == documents.ROLES.get(raw.get("role"), documents.NONE)
      if "text" in raw:
        assert bytes(part.codes.tolist()).decode() == raw["text"]
      elif "image" in raw:
        k = int(raw["image"][0])
        assert part.codes.shape == (2 + k % 2, 2 + k // 2) and (part.codes == 10 * k).all()
      else:
        k = int(raw["audio"][0])
        assert part.codes.shape == (10 + (k > 0), fakes.Q + 1)
        assert part.codes[0].tolist() == [k + 1 + q for q in range(fakes.Q + 1)]
        words = raw.get("transcript")
        assert words is None if part.words is None else bytes(part.words.tolist()).decode() == words


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_same_global_batches(data, hosts):
  one = make(data)
  many = [make(data, mine=range(i * 4 // hosts, (i + 1) * 4 // hosts)) for i in range(hosts)]
  for step in (0, 1, 57):
    slices = [m.batch_at(step) for m in many]
    assert all(len(s["main"]) == 4 // hosts for s in slices)
    equal({k: np.concatenate([s[k] for s in slices]) for k in slices[0]}, one.batch_at(step))
  with pytest.raises(AssertionError):
    equal(one.batch_at(0), one.batch_at(1))


@pytest.mark.parametrize(("workers", "threads", "prefetch"),
                         [(0, 0, 0), (0, 0, 3), (0, 2, 3), (1, 0, 2), (2, 0, 4)])
def test_workers_and_restarts_change_nothing(data, workers, threads, prefetch):
  want = make(data)
  host = make(dataclasses.replace(data, workers=workers, read_threads=threads,
                                  prefetch=prefetch), mine=range(2, 4))
  batches = host.iterate(5, 11)
  slices = [next(batches)]
  assert len(multiprocessing.active_children()) == workers
  slices += batches
  assert len(slices) == 6
  for step, got in enumerate(slices, 5):
    equal(got, {k: x[2:] for k, x in want.batch_at(step).items()})


def test_an_iterator_can_be_left(data):
  batches = make(data).iterate(7)
  first = next(batches)
  batches.close()
  equal(first, make(data).batch_at(7))


def test_seed_changes_the_batches_and_the_fingerprint(data):
  make(data, seed=-1).batch_at(0)  # any integer will do
  a, b = make(data), make(data, seed=2)
  assert not np.array_equal(a.batch_at(0)["main"], b.batch_at(0)["main"])
  assert a.fingerprint != b.fingerprint


def test_fingerprint_is_of_what_decides_the_batches(data):
  same = dataclasses.replace(data, workers=2, read_threads=3, prefetch=9, heldout=())
  assert make(data).fingerprint == make(same).fingerprint
  for change in ({"window": 65}, {"text_delay": 1}, {"rows": 8}, {"prompt_weight": 0.5},
                 {"depth_frames": 8}, {"listen_dropout": 0.1}, {"tasks": config.Tasks(plain=2)}):
    assert make(data).fingerprint != make(dataclasses.replace(data, **change)).fingerprint


def test_heldout_is_one_pass_with_empty_rows_at_its_end(data):
  held = loader.Loader.heldout(dataclasses.replace(data, rows=7), fakes.VOCAB, seed=0)
  batches = list(held.iterate(0))
  assert len(batches) == held.steps
  assert sum(int(b["segment"].max(1).sum()) for b in batches) == 300
  last = batches[-1]["segment"].max(1)
  assert last[0] > 0 and last[-1] == 0
  equal(held.batch_at(held.steps - 1), batches[-1])


def test_stats(data):
  stats = make(data).stats(3)
  assert 0.85 < stats["packing_efficiency"] <= 1
  assert 0 < stats["frame_efficiency"] <= 1
  assert list(stats["documents"].values()) == [300]
  early, late = (next(iter(make(data).stats(s)["epochs"].values())) for s in (0, 100))
  assert early < 1 < late


def test_mismatches_name_both_values(root, data, tmp_path):
  def fails(vocab, message, **options):
    with pytest.raises(ValueError, match=message):
      loader.Loader(data, dataclasses.replace(fakes.VOCAB, **vocab), seed=0, **options)

  fails({"text": 300}, "text tokens of a vocabulary of 256, the model's has 300")
  fails({"image": 8}, "image tokens of a vocabulary of 256, the model's has 8")
  fails({"audio": 65}, "audio tokens of a vocabulary of 64, the model's has 65")
  fails({"codebooks": 5}, "4 codebooks, the model wants 5")
  fails({}, "image tokenizer image-a, but the run's is other", tokenizers={"image": "other"})
  tokenizers = fakes.tokenizers()
  tokenizers.text.fingerprint = "text-b"
  prepare.prepare(root / "manifest.jsonl", tmp_path / "b", tokenizers=tokenizers, progress=False)
  fails({}, f"text tokenizer text-b, but {re.escape(str(root))}/out's is text-a",
        sources=(str(root / "out"), str(tmp_path / "b")))
  with pytest.raises(ValueError, match="no sources"):
    make(data, sources=())
  (tmp_path / "half").mkdir()
  for name, state in (("half", "is not finished"), ("none", "does not exist")):
    with pytest.raises(ValueError, match=f"{name} {state}.*omnijax prepare"):
      make(data, sources=(str(tmp_path / name),))


def test_what_fits_no_row_is_said(data, caplog):
  caplog.set_level("INFO")
  made = make(dataclasses.replace(data, positions=13, frames=13))
  assert "documents are longer than a row: cut into" in caplog.text
  assert "fit no row of 13 positions and 13 frames, and have parts that can't be cut" in caplog.text
  assert made.stats()["unfit"][data.sources[0]] > 0
