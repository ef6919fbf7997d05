"""The plan: permutations, mixtures, packing, and rows as a pure function of their number."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnijax import config
from omnijax import vocab as v
from omnijax.data import documents as d
from omnijax.data import fit
from omnijax.data.lengths import Lengths
from omnijax.data.mixture import Mixture
from omnijax.data.order import key, mix, permute
from omnijax.data.pack import pack
from omnijax.data.plan import Plan


def config_data(**changes):
  return config.Data(**{"sources": (), "rows": 4, "positions": 64, "frames": 24, "window": 128,
                        **changes})


def source(n, seed=0, longest=40):
  """A length index of n documents: texts, images with captions, and told recordings."""
  rng = np.random.default_rng(seed)
  rows, sizes = [], []
  for _ in range(n):
    kind, length = rng.integers(3), int(rng.integers(1, longest))
    if kind == 0:
      parts = [(v.TEXT, 0, 0, 0, length, -1, 0, 0, 0, -1)]
    elif kind == 1:
      parts = [(v.IMAGE, 0, 2, 2, 4, -1, 0, 0, 0, -1), (v.TEXT, 0, 0, 0, length, -1, 0, 0, 0, -1)]
    else:
      parts = [(v.AUDIO, 0, 0, 0, min(length, 20), min(length, 7), 0, 0, 0, -1)]
    rows += parts
    sizes.append(len(parts))
  return Lengths.of(d.counts(np.array(rows, d.PART), np.cumsum(sizes) - sizes))


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), salt=st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation(size, salt):
  assert sorted(permute(np.arange(size), size, salt).tolist()) == list(range(size))


def test_permute_is_even_and_depends_on_its_key():
  size, keys = 10, 4000
  where = np.stack([permute(np.arange(size), size, key(7, k)) for k in range(keys)])
  counts = np.stack([np.bincount(where[:, i], minlength=size) for i in range(size)])
  chi2 = ((counts - keys / size) ** 2 / (keys / size)).sum(1)
  assert chi2.max() < 35  # 9 degrees of freedom: p < 1e-4
  big = permute(np.arange(5000), 1_000_003, 1)
  assert abs(np.corrcoef(np.arange(5000), big)[0, 1]) < 0.06
  assert not np.array_equal(big, permute(np.arange(5000), 1_000_003, 2))


def test_mix_is_even():
  bits = mix(np.arange(20_000), 3)[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)
  np.testing.assert_allclose(bits.mean(0), 0.5, atol=0.02)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.1, 0.25, 1.0, 2.0, 3.7, 100.0]), min_size=1, max_size=5))
def test_mixture_keeps_its_shares_at_every_place(weights):
  source, count = Mixture.of(weights).draw(np.arange(3000))
  for i, share in enumerate(np.array(weights) / sum(weights)):
    mine = source == i
    error = np.abs(np.cumsum(mine) - share * np.arange(1, 3001))
    assert error.max() <= (1 if len(weights) < 3 else len(weights) / 2)
    assert count[mine].tolist() == list(range(mine.sum()))


def test_mixture_of_weights_with_a_long_period_is_as_close_as_it_can_be():
  shares = np.array(Mixture.of([1e-9, 0.123456789, 0.5]).shares)
  assert shares.min() >= 1
  np.testing.assert_allclose((shares / shares.sum())[1:], [0.123456789 / 0.623456790,
                                                           0.5 / 0.623456790], atol=3e-6)


@settings(max_examples=100, deadline=None)
@given(docs=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=0, max_size=60),
       frames=st.integers(1, 30), most=st.integers(0, 5))
def test_pack_holds_all_budgets(docs, frames, most):
  positions_N = np.array([p for p, _ in docs], np.int64)
  frames_N = np.array([min(f, p, frames) for p, f in docs], np.int64)
  row_N, rows = pack(positions_N, frames_N, 30, frames, most)
  if most:
    assert not len(row_N) or np.bincount(row_N).max() <= most
  assert sorted(set(row_N.tolist())) == list(range(rows))
  used = np.bincount(row_N, positions_N, rows), np.bincount(row_N, frames_N, rows)
  assert (used[0] <= 30).all() and (used[1] <= frames).all()
  # Any rule that opens a row only when the document fits no other needs no more than this.
  assert most or rows <= 2 * (positions_N.sum() / 30 + frames_N.sum() / frames) + 1
  if not most and not frames_N.any() and rows > 1:  # no row was opened while another had room
    assert np.sort(used[0])[:2].sum() > 30


def test_pack_fills_rows():
  rng = np.random.default_rng(0)
  positions = rng.integers(50, 800, 8192)
  frames = np.where(rng.random(8192) < 0.2, positions - 40, 0)
  _, rows = pack(positions, frames, 2048, 1024)
  assert positions.sum() / (rows * 2048) > 0.985


def test_pack_of_few_documents_a_row_keeps_rows_full_where_it_can():
  rng = np.random.default_rng(0)
  positions = rng.integers(50, 800, 8192)
  frames = np.where(rng.random(8192) < 0.2, positions - 40, 0)
  row, rows = pack(positions, frames, 2048, 1024, 8)
  assert np.bincount(row).max() <= 8
  assert positions.sum() / (rows * 2048) > 0.95


# Sizes of a few kinds only: of the rows full of frames a part stays empty that no picture fits in.
@pytest.mark.parametrize("frames, share", [(128, 0.96), (256, 0.97), (511, 0.97)])
def test_pack_is_not_stopped_by_rows_that_are_full_in_one_budget(frames, share):
  # Many short recordings use the frames of a row up long before its positions.
  rng = np.random.default_rng(0)
  kind = rng.integers(3, size=8192)
  frames_N = np.where(kind == 2, 0, rng.integers(5, 12, 8192))
  positions_N = np.array([5, 75, 71])[kind] + frames_N
  _, rows = pack(positions_N, frames_N, 512, frames)
  assert max(positions_N.sum() / 512, frames_N.sum() / frames) / rows > share


@pytest.mark.parametrize("frames", [384, 448, 512, 640])
def test_pack_of_frames_nearly_as_scarce_as_positions_fills_one_of_them(frames):
  # As of the stamps: captions, pictures that are spoken of, words, and longer sentences.
  rng = np.random.default_rng(0)
  kind = rng.choice(4, 16384, p=[0.35, 0.27, 0.18, 0.2])
  frames_N = np.choose(kind, [0, rng.integers(5, 60, 16384), rng.integers(5, 60, 16384),
                              np.minimum(rng.geometric(1 / 40, 16384), 350) + 3])
  positions_N = frames_N + np.choose(kind, [rng.integers(10, 100, 16384), 70, 5, 25])
  _, rows = pack(positions_N, frames_N, 1024, frames)
  assert max(positions_N.sum() / 1024, frames_N.sum() / frames) / rows > 0.975


def rows_of(plan, n):
  return [plan.row(r) for r in range(n)]


def test_every_document_once_in_an_epoch_and_within_budget():
  sources, data = [source(100), source(57, 1)], config_data(sources=("a", "b"), weights=(3, 1))
  plan = Plan(sources, data, seed=3)
  seen = {0: [], 1: []}
  for r in range(300):
    row = plan.row(r)
    lengths = [d.lengths(sources[s][i : i + 1], t, x, data) for s, i, t, x, _ in row]
    assert 0 < sum(p[0] for p, _ in lengths) <= data.positions
    assert sum(f[0] for _, f in lengths) <= data.frames
    for s, i, *_ in row:
      seen[s].append(i)
  for s, counts in seen.items():
    often = np.bincount(counts, minlength=len(sources[s]))
    # Rows are shuffled within a window, so the epochs blur by one window on either side.
    assert often.max() - often.min() <= 1 + -(-data.window // len(sources[s])), often
  np.testing.assert_allclose(len(seen[0]) / len(seen[1]), 3, atol=0.25)


def test_no_row_has_more_documents_than_asked_for():
  plans = [Plan([source(100)], config_data(documents=n), seed=3) for n in (0, 2)]
  most = [max(map(len, rows_of(plan, 40))) for plan in plans]
  assert most[0] > 2 == most[1]


@pytest.mark.parametrize("once", [False, True])
def test_windows_of_an_epoch_hold_every_document_once(once):
  sources = [source(96), source(32, 1)]
  plan = Plan(sources, config_data(window=64), seed=3, once=once)
  epochs = []
  for first in (0,) if once else (0, 2):
    windows = [plan.window(first), plan.window(first + 1)]
    order = [(int(s), int(i)) for w in windows for s, i in zip(w.source, w.document, strict=True)]
    assert sorted(order) == [(0, i) for i in range(96)] + [(1, i) for i in range(32)]
    epochs.append(set(order[: len(windows[0].document)]))
  assert once or epochs[0] != epochs[1]
  if once:
    assert plan.rows == sum(plan.window(i).rows for i in range(2))
    with pytest.raises(IndexError, match=f"a pass of {plan.rows} rows"):
      plan.row(plan.rows)


def test_a_row_is_a_function_of_its_number_alone():
  sources, data = [source(100), source(57, 1)], config_data()
  plan = Plan(sources, data, seed=3)
  forward = rows_of(plan, 120)
  other = Plan(sources, data, seed=3)
  for r in (119, 3, 60, 61, 0):
    assert other.row(r) == forward[r]
  sent = pickle.dumps(other)
  assert len(sent) < 5000  # without the lengths of the documents
  received = pickle.loads(sent)
  received.attach(sources)
  assert rows_of(received, 120) == forward
  assert rows_of(Plan(sources, data, seed=4), 120) != forward


def test_tasks_change_between_epochs():
  plan = Plan([source(60)], config_data(window=60), seed=0)
  tasks = []
  for index in (0, 1):
    w = plan.window(index)
    tasks.append(w.task[np.argsort(w.document)].tolist())
  assert tasks[0] != tasks[1]


def test_rows_show_no_order_by_length():
  data = config_data(window=4096, positions=256, frames=64)
  plan = Plan([source(4096, longest=200)], data, seed=0)
  w = plan.window(0)
  documents_per_row = np.diff(w.starts)
  half = len(documents_per_row) // 2
  first, second = documents_per_row[:half].mean(), documents_per_row[half:].mean()
  assert abs(first - second) < 0.1 * documents_per_row.mean()
  # Rows as the packer opens them do have that order: the shuffle is what removes it.
  lengths = np.sort(np.random.default_rng(0).integers(1, 200, 4096))[::-1]
  row, rows = pack(lengths, 0 * lengths, 256, 64)
  opened = np.bincount(row, minlength=rows)
  assert abs(opened[: rows // 2].mean() - opened[rows // 2 :].mean()) > 0.1 * opened.mean()


def test_what_fits_no_row_is_drawn_in_vain():
  index, data = source(200, longest=100), config_data(positions=64)
  plan = Plan([index], data, seed=0)
  plain, _ = d.lengths(index, d.PLAIN, False, data)
  lost = fit.unfit(index, data)
  assert lost.tolist() == np.flatnonzero(plain > 64).tolist() and 20 < len(lost) < 180
  used = {i for w in range(4) for i in plan.window(w).document.tolist()}
  assert used == set(np.flatnonzero(plain <= 64).tolist())
  assert sum(plan.window(w).unfit for w in range(4)) > 0


def test_documents_are_too_long_by_their_delays():
  index = source(300, longest=22)
  for lag, lead in ((0, 0), (1, 0), (3, 0), (1, 4)):
    data = config_data(positions=25, acoustic_delay=lag, text_delay=lead)
    want = np.flatnonzero(~fit.usable(index, data).any(1))
    assert fit.unfit(index, data).tolist() == want.tolist() and len(want)


def one(*part):
  return Lengths.of(d.counts(np.array([(*part, 0, 0, 0, -1)], d.PART), np.array([0])))


def check(index, **changes):
  data = config_data(**changes)
  fit.check(index, fit.unfit(index, data), data, "pics")


def test_messages():
  picture, text = one(v.IMAGE, 0, 10, 10, 100, -1), one(v.TEXT, 0, 0, 0, 3, -1)
  with pytest.raises(ValueError, match="row budget too small for one image: the smallest such "
                     "document of pics needs 104 positions, Data.positions is 64; raise Data."):
    check(picture)
  with pytest.raises(ValueError, match="one image.*of pics needs 104"):
    check(Lengths.join([text, picture, text]))
  check(Lengths.join([text, picture]), positions=104)
  check(Lengths.join([picture, one(v.IMAGE, 0, 2, 2, 4, -1)]))
  with pytest.raises(ValueError, match="one recording.*needs 31 frames, Data.frames is 24"):
    check(one(v.AUDIO, 0, 0, 0, 30, -1))


def test_an_index_of_sixteen_bytes_says_what_the_table_says():
  assert sum(d.COUNTS[name].itemsize for name in ("positions", "frames", "text")) == 12
  some, other = source(100, 1), source(50, 2)
  both = Lengths.join([some, other])
  assert both.rows.itemsize == 16 and len(both) == 150 and len(both.forms) < 10
  for name in d.COUNTS.names[1:]:
    assert both[name].tolist() == [*some[name].tolist(), *other[name].tolist()]
    assert both[[120, 3]][name].tolist() == [other[name][20], some[name][3]]
