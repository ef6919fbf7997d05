"""Made batches: shares, lengths and shapes as asked for, of whole documents."""

import dataclasses

import numpy as np
import pytest
import tiny

from omnijax.bench import batch

DATA = dataclasses.replace(tiny.DATA, positions=256, frames=64)


def made(document=32, mix=(60, 25, 15), **kwargs):
  return batch.make(DATA, tiny.VOCAB, mix=mix, document=document, **kwargs)


@pytest.mark.parametrize("mix", [(60, 25, 15), (100, 0, 0), (10, 80, 10)])
def test_shares_are_those_of_the_mix(mix):
  shares = batch.shares(made(mix=mix))
  assert sum(shares.values()) == pytest.approx(1) and shares["padding"] < 0.05
  for kind, share in zip(("text", "image", "audio"), mix, strict=True):
    assert shares[kind] == pytest.approx(share / 100, abs=0.04), shares
  if not mix[2]:
    assert not made(mix=mix)["frame_weight"].any()


@pytest.mark.parametrize("document", [16, 32, 64])
def test_documents_are_as_long_as_asked(document):
  b = made(document)
  assert b["main"].shape == (8, 256) and b["frames"].shape == (8, 64, 2 * tiny.VOCAB.codebooks)
  documents = b["segment"].max(1).sum()
  assert 0.6 * document < (b["segment"] > 0).sum() / documents < 1.6 * document


def test_rows_keep_to_a_limit_of_documents():
  data = dataclasses.replace(DATA, documents=4)
  b = batch.make(data, tiny.VOCAB, mix=(60, 25, 15), document=32)
  assert b["segment"].max() == 4 < made(32)["segment"].max()


def test_every_frame_has_its_position():
  b = made()
  row, frame = np.nonzero(b["frame_at"] < 256)
  assert len(row) > 100
  assert (b["modality"][row, b["frame_at"][row, frame]] == 2).all()
  assert b["frames"].max() == tiny.VOCAB.no_code and b["main"].max() < tiny.VOCAB.size
  # Some are spoken, the rest heard.
  spoken = b["frame_weight"].any(-1).sum() / len(row)
  heard = (b["frames"][..., tiny.VOCAB.codebooks:] < tiny.VOCAB.no_code).any(-1).sum() / len(row)
  assert 0.25 < spoken < 0.75 and 0.25 < heard < 0.75 and spoken + heard <= 1


def test_the_seed_decides():
  same, other = made(), made(seed=1)
  assert all((made()[k] == v).all() for k, v in same.items())
  assert (same["main"] != other["main"]).any()


@pytest.mark.parametrize("kwargs, message", [
  ({"mix": (1, 1)}, r"--mix is \(1, 1\)"),
  ({"mix": (1, -1, 1)}, "none below 0"),
  ({"mix": (10, 10, 80)}, "80% of speech, 205 of a row's 256 positions, and data.frames is 64"),
  ({"document": 7}, "--document is 7; wanted 8 or more"),
  ({"document": 257}, "at most data.positions, 256"),
])
def test_bad_wishes_are_named(kwargs, message):
  with pytest.raises(ValueError, match=message):
    made(**kwargs)
