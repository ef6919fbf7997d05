"""Packing, causality, grouped queries, rotary positions: the model against statements of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from omnijax import config, sharding
from omnijax.kernels import attention
from omnijax.model import layers, rope, transformer
from omnijax.model.attention import Cache
from omnijax.model.transformer import Omni

_forward = jax.jit(lambda model, batch: model(batch))


def forward(model, batch):
  main_BSV, frames_QLC = jax.device_get(_forward(model, sharding.place(batch)))
  rows, frames, _ = batch["frame_weight"].shape
  return main_BSV, np.moveaxis(frames_QLC, 0, 1).reshape(rows, frames, *frames_QLC.shape[::2])


@pytest.fixture
def model(mesh):
  # Bigger weights than at birth, so that a leak of one position into another is loud.
  small = Omni(tiny.MODEL, tiny.VOCAB, sharding.RULES, rngs=nnx.Rngs(1))
  return jax.tree.map(lambda x: x * 2, small)


def documents(seed, n=4):
  r = np.random.default_rng(seed)
  docs = [tiny.streams(r) for _ in range(60)]
  short = [d for d in docs if len(d.main) <= 16 and len(d.frame_at) <= 8]
  speech = next(d for d in short if d.frame_weight.any())
  image = next(d for d in short if (d.modality == 1).any() and d is not speech)
  others = [d for d in short if d is not speech and d is not image]
  return [speech, image, *others][:n]


def test_packed_logits_are_those_of_each_document_alone(model):
  docs = documents(0)
  rows = tiny.pack([docs])
  main, frames = forward(model, rows)
  alone_main, alone_frames = forward(model, tiny.pack([[d] for d in docs]))
  at, frame = 0, 0
  for i, d in enumerate(docs):
    n, m = len(d.main), len(d.frame_at)
    np.testing.assert_allclose(main[0, at : at + n], alone_main[i, :n], atol=1e-4)
    np.testing.assert_allclose(frames[0, frame : frame + m], alone_frames[i, :m], atol=1e-4)
    at, frame = at + n, frame + m
  assert np.abs(main[0, :8] - main[0, at - 8 : at]).max() > 0.1


def test_a_token_changes_only_what_comes_later_in_its_document(model):
  docs = documents(1)
  batch = tiny.pack([docs])
  start = len(docs[0].main)
  changed = start + 3
  other = {k: v.copy() for k, v in batch.items()}
  other["main"][0, changed] ^= 1
  before, after = forward(model, batch)[0][0], forward(model, other)[0][0]
  differs = np.abs(before - after).max(-1) > 1e-6
  end = start + len(docs[1].main)
  assert not differs[:changed].any() and not differs[end:].any()
  assert differs[changed:end].all()


def test_a_code_changes_only_later_codebooks_and_later_positions(model):
  docs = documents(2)
  batch = tiny.pack([docs])
  f = int(np.flatnonzero(batch["frame_weight"][0, :, 1])[1])
  at = batch["frame_at"][0, f]
  other = {k: v.copy() for k, v in batch.items()}
  other["frames"][0, f, 1] = (batch["frames"][0, f, 1] + 1) % tiny.VOCAB.audio
  (main, codes), (main2, codes2) = forward(model, batch), forward(model, other)
  differs = np.abs(codes - codes2).max(-1)[0] > 1e-6
  assert not differs[:f].any() and not differs[f, :2].any() and differs[f, 2]
  moved = np.abs(main - main2).max(-1)[0] > 1e-6
  end = len(docs[0].main)
  assert not moved[:at].any() and moved[at:end].all() and not moved[end:].any()


def test_listening_is_heard_but_not_scored(model):
  docs = documents(3)
  batch = tiny.pack([docs])
  Q = tiny.VOCAB.codebooks
  other = {k: v.copy() for k, v in batch.items()}
  other["frames"][0, 1, Q] = (batch["frames"][0, 1, Q] + 1) % tiny.VOCAB.audio
  (main, codes), (main2, codes2) = forward(model, batch), forward(model, other)
  assert np.abs(main - main2).max() > 1e-3
  assert np.abs(codes[0, 1] - codes2[0, 1]).max() < 1e-6


def test_attention_against_numpy(mesh, monkeypatch):
  monkeypatch.setattr(attention, "_CHUNK", 4)  # two chunks, the second not full
  r = np.random.default_rng(0)
  q, k, v = (r.normal(size=(2, 6, n, 4)).astype(np.float32) for n in (4, 2, 2))
  segment = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]], np.int32)
  out = attention.rows(q, k, v, segment, order_S=np.arange(6), blocks=(8, 8))
  for b in range(2):
    for n in range(4):
      for t in range(6):
        keys = [s for s in range(t + 1) if segment[b, s] == segment[b, t]]
        score = np.array([q[b, t, n] @ k[b, s, n // 2] for s in keys]) / 2.0
        p = np.exp(score - score.max())
        want = (p / p.sum()) @ np.stack([v[b, s, n // 2] for s in keys])
        np.testing.assert_allclose(out[b, t, n], want, atol=1e-5)


@pytest.mark.parametrize(("window", "room", "int8"), [(0, 32, False), (6, 32, False),
                                                       (6, 10, False), (0, 8, False),
                                                       (6, 10, True)])
def test_attention_against_a_ring(mesh, window, room, int8):
  """Pieces of odd sizes, rows of different lengths, one of which goes back in between."""
  r = np.random.default_rng(0)
  L = 25
  q, k, v = (r.normal(size=(2, L, n, 4)).astype(np.float32) for n in (4, 2, 2))
  whole = attention.rows(q, k, v, np.ones((2, L), np.int32), order_S=np.arange(L), blocks=(8, 8),
                         window=window or min(room, L))
  shape = (1, 2, 2, room, 4)
  old = Cache(jnp.zeros(shape), jnp.zeros(shape))
  if int8:
    ones = jnp.ones((*shape[:-1], 1))
    old = Cache(*(x.astype(jnp.int8) for x in old[:2]), ones, ones)
  n, high = np.zeros(2, int), np.zeros(2, int)
  attend = jax.jit(functools.partial(attention.cached, window=window))
  append = jax.jit(Cache.append)
  took = lambda x, T: np.stack([np.pad(x[b, n[b] : n[b] + T], ((0, T), (0, 0), (0, 0)))[:T]
                                for b in range(2)])
  back = True
  while (n < L).any():
    T = int(r.choice([1, 4]))
    count = np.minimum(r.integers(0, T + 1, 2), L - n)
    at = attention.Lengths(*(jnp.asarray(x, jnp.int32) for x in (n, high, count)))
    new = took(k, T), took(v, T)
    layer = tuple(x[0] for x in old if x is not None)
    got = attend(took(q, T), layer, *new, at=at)
    for b in range(2):
      span = slice(n[b], n[b] + count[b])
      np.testing.assert_allclose(got[b, : count[b]], whole[b, span], atol=0.03 if int8 else 1e-5)
    old = append(old, Cache(*(jnp.asarray(x)[None] for x in new)), at)
    n = n + count
    high = np.maximum(high, n)
    if back and n[0] > 8 and room - (window or room) > 3:  # where nothing that it saw is gone
      n[0], back = n[0] - 3, False
  assert int8 == (old.k_scale_BKS1 is not None)


def test_rotary_scores_depend_on_differences_on_each_axis():
  r = np.random.default_rng(0)
  x, y = r.normal(size=(2, 1, 1, 1, 16)).astype(np.float32)

  def score(a, b):
    turned = []
    for v, p in ((x, a), (y, b)):
      cos, sin = rope.angles(jnp.array([[p]]), 16, 100.0, (2, 1, 1))
      turned.append(rope.rotate(v, cos, sin))
    return float((turned[0] * turned[1]).sum())

  same = score((5, 2, 3), (7, 1, 1))
  np.testing.assert_allclose(same, score((15, 22, 8), (17, 21, 6)), atol=1e-4)
  for other in ((8, 1, 1), (7, 2, 1), (7, 1, 2)):
    assert abs(score((5, 2, 3), other) - same) > 1e-3


def test_bfloat16_is_near_float32(mesh):
  batch = tiny.batch(0, rows=2)
  cfg = dataclasses.replace(tiny.MODEL, dtype="bfloat16")
  half, full = (Omni(c, tiny.VOCAB, sharding.RULES, rngs=nnx.Rngs(1)) for c in (cfg, tiny.MODEL))
  a, b = forward(half, batch)[0], forward(full, batch)[0]
  assert a.dtype == jnp.float32
  assert 0 < np.abs(a - b).max() < 0.2


def test_codes_with_like_vectors_are_alike(mesh):
  """What an image code stands for decides its input and its score, beside a row of its own."""
  like = tiny.VECTORS._replace(image_KA=np.ones_like(tiny.VECTORS.image_KA))
  made = transformer.init(tiny.MODEL, tiny.VOCAB, sharding.RULES, jax.random.key(0), like)
  made.image_AD[...] = made.image_AD[...] + 1.0
  made.embed.main_VD[...] = made.embed.main_VD[...] * 0
  made.head_DV[...] = made.head_DV[...] * 0
  first = tiny.VOCAB.image_start
  ids = jax.reshard(jnp.asarray([[0, first, first + 7]]), jax.P(None, None))
  row_13D = np.asarray(jax.jit(lambda m: m.embed.tokens(ids))(made))
  np.testing.assert_allclose(row_13D[0, 1], row_13D[0, 2])
  assert not row_13D[0, 0].any() and row_13D[0, 1].any()
  hidden = jnp.ones((1, 1, tiny.MODEL.dim))
  logits_V = np.asarray(jax.jit(lambda m: m.logits(hidden))(made))[0, 0]
  assert np.ptp(logits_V[first : first + 100]) < 1e-5 and logits_V[first] > 1
  assert not logits_V[:first].any()
  other = transformer.init(tiny.MODEL, tiny.VOCAB, sharding.RULES, jax.random.key(0), tiny.VECTORS)
  other.embed.main_VD[...] = other.embed.main_VD[...] * 0
  row_13D = np.asarray(jax.jit(lambda m: m.embed.tokens(ids))(other))
  assert np.abs(row_13D[0, 1] - row_13D[0, 2]).max() > 0.1


def test_a_tpu_turns_pairs_by_a_product_exactly_alike(monkeypatch):
  r = np.random.default_rng(0)
  x = jnp.asarray(r.normal(size=(1, 5, 2, 16)), jnp.bfloat16)
  cos, sin = rope.angles(jnp.asarray(r.integers(0, 99, (1, 5, 3))), 16, 100.0, (2, 1, 1))
  here = rope.rotate(x, cos, sin)
  monkeypatch.setattr(rope.compiler, "platform", lambda: "tpu")
  assert "dot_general" in str(jax.make_jaxpr(rope.rotate)(x, cos, sin))
  np.testing.assert_array_equal(np.float32(rope.rotate(x, cos, sin)), np.float32(here))


def test_gradients_of_the_gated_layer_are_those_of_its_formula():
  r = np.random.default_rng(0)
  gate, up = (jnp.asarray(r.normal(size=(2, 3, 8)), jnp.float32) for _ in range(2))
  w = jnp.asarray(r.normal(size=(8, 4)), jnp.float32)
  formula = lambda gate, up, w: (gate * jax.nn.sigmoid(gate) * up) @ w
  grads = lambda f: jax.grad(lambda *args: jnp.sum(jnp.sin(f(*args))), (0, 1, 2))(gate, up, w)
  with jax.set_mesh(sharding.make_mesh(config.Mesh(fsdp=1))):
    down = functools.partial(layers.dense, out=jax.P(None))
    made = grads(lambda *args: layers._down(down, *args))
  for got, want in zip(made, grads(formula), strict=True):
    np.testing.assert_allclose(got, want, atol=1e-5)
