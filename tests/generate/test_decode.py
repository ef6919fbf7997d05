"""Generation against one pass over the whole sequence, and what it may not depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from omnijax import config, sharding
from omnijax import vocab as vl
from omnijax.data import documents
from omnijax.generate import cache, grammar, sample, step, turns, weights
from omnijax.generate.engine import Engine
from omnijax.generate.sample import GREEDY, Sampling, Setting
from omnijax.generate.turns import Goal
from omnijax.model.transformer import Omni

# Text in user's turns, and an empty part that gives the turn to the assistant.
ANSWER = documents.Part(vl.TEXT, documents.ASSISTANT, np.zeros(0, np.int32))
HOT = Sampling(**{f.name: Setting(temperature=10.0) for f in dataclasses.fields(Sampling)})
GOALS = [Goal(to="text", max_new=9), Goal(to="image", grid=(2, 3), max_new=9),
         Goal(to="audio", max_new=12), Goal(to="any", max_new=40)]


def make_model(mesh) -> Omni:
  with jax.set_mesh(mesh):
    return jax.jit(lambda key: Omni(tiny.MODEL, tiny.VOCAB, sharding.RULES, rngs=nnx.Rngs(key)))(
      jax.random.key(0))


@pytest.fixture(scope="module")
def model() -> Omni:
  return make_model(sharding.make_mesh(config.Mesh(data=1, fsdp=1)))


@pytest.fixture(scope="module")
def four(model) -> Engine:
  return Engine(model, tiny.DATA, max_positions=160, max_batch=4)


def part(kind: int, n: int, seed: int = 0, role: int = documents.USER) -> documents.Part:
  r = np.random.default_rng((kind, n, seed))
  Q = tiny.VOCAB.codebooks
  codes = {vl.TEXT: lambda: r.integers(0, tiny.VOCAB.text, n),
           vl.IMAGE: lambda: r.integers(0, tiny.VOCAB.image, (2, n)),
           vl.AUDIO: lambda: r.integers(0, tiny.VOCAB.audio, (n, Q))}[kind]()
  words = r.integers(0, tiny.VOCAB.text, 2) if kind == vl.AUDIO else None
  return documents.Part(kind, role, codes, words)


def prompt(*parts: documents.Part) -> documents.Streams:
  return documents.render([*parts, ANSWER], documents.PLAIN, False, tiny.DATA, tiny.VOCAB)


PROMPTS = [prompt(part(vl.TEXT, 3)), prompt(part(vl.IMAGE, 4), part(vl.TEXT, 2)),
           prompt(part(vl.AUDIO, 17), part(vl.TEXT, 5)),
           prompt(part(vl.TEXT, 4), part(vl.AUDIO, 6, role=documents.ASSISTANT))]


def same(a: documents.Streams, b: documents.Streams) -> bool:
  return all(np.array_equal(x, y) for x, y in zip(dataclasses.astuple(a), dataclasses.astuple(b),
                                                  strict=True))


def joined(before: documents.Streams, after: documents.Streams) -> dict[str, np.ndarray]:
  """A prompt and what was written after it, as a batch of one row."""
  n = len(before.main) - 1
  cat = lambda name: np.concatenate([getattr(before, name)[:n], getattr(after, name)])[None]
  out = {k: cat(k) for k in ("main", "modality", "position")}
  out["segment"] = np.ones_like(out["main"])
  out["frame_at"] = np.concatenate([before.frame_at, after.frame_at + n])[None]
  out["frames"] = np.concatenate([before.frames, after.frames])[None]
  out["frame_weight"] = np.concatenate([before.frame_weight, after.frame_weight])[None]
  return out


def none_of(streams: documents.Streams) -> documents.Streams:
  """The first nothing of a stream."""
  return documents.Streams(**{f.name: getattr(streams, f.name)[:0]
                              for f in dataclasses.fields(streams)})


def padded(batch: dict[str, np.ndarray], S: int, F: int) -> dict[str, np.ndarray]:
  """The same row in a fixed shape, so that the whole pass compiles once."""
  fill = {"frame_at": S, "frames": tiny.VOCAB.no_code}
  size = lambda k: F if k.startswith("frame") else S
  return {k: np.pad(x, [(0, 0), (0, size(k) - x.shape[1])] + [(0, 0)] * (x.ndim - 2),
                    constant_values=fill.get(k, 0)) for k, x in batch.items()}


WHOLE = jax.jit(lambda model, batch: model(batch))


def check_greedy(model: Omni, before: documents.Streams, goal: Goal, after: documents.Streams,
                 limit: int, layout: grammar.Layout) -> None:
  """Every token is the most likely one that the grammar allows, under the whole pass."""
  n, end = len(before.main) - 1, len(before.main) - 1 + len(after.main)
  batch = joined(before, after)
  with jax.set_mesh(model.head_DV[...].sharding.mesh):
    main_1SV, frame_QFC = WHOLE(model, sharding.place(padded(batch, 256, 128)))
  main_SV, frame_QFC = np.asarray(main_1SV[0]), np.asarray(frame_QFC)
  turn = turns.turn([before], [goal], [limit], 1, layout, sampling=GREEDY,
                    keys_B2=step.keys(0, 0, 1), guidance_B=np.zeros(1))
  g = grammar.Grammar(**{k: jnp.asarray(v) for k, v in turn["grammar"].items()})
  allowed, advance = (jax.jit(f, static_argnums=2) for f in (grammar.allowed, grammar.advance))
  for i in range(n, end):
    ok_V = np.asarray(allowed(g, jnp.asarray([limit - (i - n)]), layout))[0]
    best = np.where(ok_V, main_SV[i - 1], -np.inf)
    assert best.max() - best[batch["main"][0, i]] < 1e-4
    g = advance(g, batch["main"][:, i], layout)
  # Only what was written, and only where the frame has a code.
  codes_FQ = np.asarray(after.frames[:, : tiny.VOCAB.codebooks])
  for f, codes_Q in enumerate(codes_FQ, len(before.frame_at)):
    for q, code in enumerate(codes_Q):
      if code != tiny.VOCAB.no_code:
        assert frame_QFC[q, f].max() - frame_QFC[q, f, code] < 1e-4


def test_every_greedy_token_is_the_most_likely_of_a_whole_pass(model, four):
  out = four.write(PROMPTS, GOALS, sampling=GREEDY, seed=0)
  assert len(out[2].frame_at) > 2
  for before, goal, after in zip(PROMPTS, GOALS, out, strict=True):
    limit = goal.positions(four.layout, 160 - len(before.main) + 1)
    check_greedy(model, before, goal, after, limit, four.layout)


def test_a_cache_that_grows_changes_nothing(model, four):
  goal = Goal(to="audio", max_new=100)
  one, *_ = four.write(PROMPTS[:4], [goal] * 4, sampling=GREEDY, seed=0)
  assert len(one.main) > 64
  check_greedy(model, PROMPTS[0], goal, one, 101, four.layout)


@pytest.mark.parametrize("T", [1, 3, 5])
def test_pieces_of_a_prompt_give_the_logits_of_one_pass(model, T):
  """After every layer: the model may end with any of them."""
  streams = prompt(part(vl.TEXT, 3), part(vl.AUDIO, 6), part(vl.IMAGE, 3),
                   part(vl.AUDIO, 5, role=documents.ASSISTANT))
  batch = joined(streams, none_of(streams))
  S = batch["main"].shape[1]
  wants = []
  for layers in range(1, tiny.MODEL.layers + 1):
    first = ending_with(model, layers)
    with jax.set_mesh(model.head_DV[...].sharding.mesh):
      want_SV = np.asarray(WHOLE(first, sharding.place(padded(batch, 256, 128)))[0])[0, :S]
      state = cache.empty(first, rows=1, positions=64)
      at = 0
      for piece in _pieces_of(streams, T):
        got_V, state = after(first, state, step.Piece(**sharding.place(piece)))
        at += int(piece["count_B"][0])
        assert state.length_B[0] == at
        np.testing.assert_allclose(got_V[0], want_SV[at - 1], atol=1e-4)
    assert at == S - 1 and np.abs(want_SV[-2] - want_SV[-3]).max() > 1e-2
    wants.append(want_SV)
  assert np.abs(wants[0] - wants[1]).max() > 1e-2


def ending_with(model: Omni, layers: int) -> Omni:
  """The model without its later layers."""
  graph, weights = nnx.split(model.blocks)
  first = nnx.clone(model)
  first.cfg = dataclasses.replace(model.cfg, layers=layers)
  first.blocks = nnx.merge(graph, jax.tree.map(lambda x: x[:layers], weights))
  return first


@jax.jit
def after(model: Omni, state: cache.State, piece: step.Piece) -> tuple[jax.Array, cache.State]:
  """Logits behind the last position of a piece that leaves no row without one, and the state."""
  x_BTD = model.embed.at_once(piece.main_BT, piece.modality_BT, piece.frames_BTG)
  hidden_BTD, state = step._trunk(model, state, x_BTD, piece.position_BT3, piece.modality_BT,
                                  piece.count_B)
  last_BTV = model.logits(hidden_BTD)
  last_B11 = jnp.maximum(piece.count_B - 1, 0)[:, None, None]
  return jnp.take_along_axis(last_BTV, last_B11, 1)[:, 0], state


def _pieces_of(streams: documents.Streams, T: int) -> list[dict[str, np.ndarray]]:
  layout = grammar.Layout(tiny.VOCAB, tiny.DATA.text_delay, tiny.DATA.acoustic_delay)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(turns, "PIECE", T)
    return turns.pieces([streams], 1, layout)


def test_writing_a_frame_code_by_code_gives_the_logits_of_all_at_once(model):
  r = np.random.default_rng(0)
  B, D, Q = 3, tiny.MODEL.dim, tiny.VOCAB.codebooks
  hidden_BD, main_BD = (jnp.asarray(r.normal(0, 1, (B, D)), jnp.float32) for _ in range(2))
  codes_BQ = r.integers(0, tiny.VOCAB.audio + 1, (B, Q))  # "no code" among them
  seen = {}

  def choose(q, logits_BC):
    jax.debug.callback(lambda q, x: seen.__setitem__(int(q), np.asarray(x)), q, logits_BC)
    return jnp.asarray(codes_BQ, jnp.int32)[:, q]

  with jax.set_mesh(model.head_DV[...].sharding.mesh):
    got_BQ = jax.jit(lambda m, h, x: m.depth.write(h, x, choose))(model, hidden_BD, main_BD)
    want = jax.jit(lambda m, *x: m.depth(*x))(model, hidden_BD, main_BD, jnp.asarray(codes_BQ))
  jax.effects_barrier()
  assert got_BQ.tolist() == codes_BQ.tolist() and sorted(seen) == list(range(Q))
  for q in range(Q):
    np.testing.assert_allclose(seen[q], want[q], atol=1e-4)
  assert np.abs(seen[0] - seen[1]).max() > 1e-2


def test_hot_output_is_whole_and_nothing_compiles_again(four):
  four.write(PROMPTS, GOALS, sampling=GREEDY, seed=0)
  before = step.run._cache_size(), step.prefill._cache_size()
  lengths = [[3, 9, 1, 5], [12, 2, 7, 4], [2, 2, 2, 2]]
  for seed, ns in enumerate(lengths):
    goals = GOALS[seed:] + GOALS[:seed]
    out = four.write([prompt(part(vl.TEXT, n, seed)) for n in ns], goals, sampling=HOT, seed=seed)
    for goal, s in zip(goals, out, strict=True):
      if goal.to == "image":
        assert s.main[-8:-6].tolist() == [vl.rows(2), vl.cols(3)] and len(s.main) <= 9 + 8
        assert (s.modality == vl.IMAGE).tolist() == [False] * (len(s.main) - 6) + [True] * 6
      if goal.to == "audio":
        T = s.main.tolist().index(vl.AUDIO_END) - 1
        codes = s.frames[:, : tiny.VOCAB.codebooks] != tiny.VOCAB.no_code
        assert codes[:T, 0].all() and not codes[T:, 0].any()
        assert codes[1:, 1:].all() and not codes[0, 1:].any() and len(codes) == T + 1
  assert (step.run._cache_size(), step.prefill._cache_size()) == before


def test_a_row_depends_on_its_prompt_and_number_only(model, four):
  sampling = Sampling(text=Setting(temperature=1.0))
  together = four.write(PROMPTS, GOALS, sampling=sampling, seed=5)
  again = four.write(PROMPTS, GOALS, sampling=sampling, seed=5)
  other = four.write(PROMPTS, GOALS, sampling=sampling, seed=6)
  assert all(map(same, together, again))
  assert not any(map(same, together, other))
  single = Engine(model, tiny.DATA, max_positions=160, max_batch=1)
  assert all(map(same, together, single.write(PROMPTS, GOALS, sampling=sampling, seed=5)))


def test_guidance_of_1_is_none_and_of_3_is_some(four):
  prompts = [prompt(part(vl.TEXT, n)) for n in (3, 6, 4, 2)]
  without = [prompt(dataclasses.replace(part(vl.TEXT, 1), codes=np.zeros(0, np.int32)))] * 4
  goals = [Goal(to="image", grid=(3, 3))] * 3 + [Goal(to="any", max_new=30)]
  write = lambda seed=1, **more: four.write(prompts, goals, sampling=Sampling(), seed=seed, **more)
  plain, one = write(), write(guidance=1.0, without=without)
  three = write(guidance=3.0, without=without)
  assert all(map(same, plain, one))
  assert not any(map(same, plain[:3], three[:3]))


def test_guidance_compares_pictures_with_those_after_no_words_at_all(model, four):
  prompts = [prompt(part(vl.TEXT, n)) for n in (3, 6, 4, 2)]
  silent = prompt(part(vl.TEXT, 0))
  out = four.write(prompts, [Goal(to="image", grid=(2, 3), max_new=8)] * 4, sampling=GREEDY,
                   seed=0, guidance=3.0, without=[silent] * 4)
  named = 0
  for before, after in zip(prompts, out, strict=True):
    named += (after.modality[0] == vl.TEXT) and not vl.grid_of(int(after.main[0]))
    start = int(np.flatnonzero(after.modality == vl.IMAGE)[0])
    picture = documents.Part(vl.IMAGE, documents.ASSISTANT, after.main[start:].reshape(2, 3)
                             - tiny.VOCAB.image_start)
    alone = documents.render([part(vl.TEXT, 0), picture], documents.PLAIN, False, tiny.DATA,
                             tiny.VOCAB)
    given, free = joined(before, after), joined(alone, none_of(alone))
    with jax.set_mesh(model.head_DV[...].sharding.mesh):
      c_SV, u_SV = (np.asarray(WHOLE(model, sharding.place(padded(batch, 256, 128)))[0])[0]
                    for batch in (given, free))
    image = slice(tiny.VOCAB.image_start, tiny.VOCAB.image_start + tiny.VOCAB.image)
    for i in range(6):
      at, free_at = len(before.main) - 2 + start + i, len(alone.main) - 8 + i
      c, u = c_SV[at, image], u_SV[free_at, image]
      mixed = u + 3.0 * (c - u)
      assert mixed.max() - mixed[picture.codes.reshape(-1)[i]] < 1e-4
  assert named


def test_a_sharded_model_writes_the_same(four):
  mesh = sharding.make_mesh(config.Mesh(data=2, fsdp=1, tensor=2))
  spread = Engine(make_model(mesh), tiny.DATA, max_positions=160, max_batch=4)
  assert len(spread.model.head_DV[...].sharding.device_set) == 4
  for got, want in zip(spread.write(PROMPTS, GOALS, sampling=GREEDY, seed=0),
                       four.write(PROMPTS, GOALS, sampling=GREEDY, seed=0), strict=True):
    assert same(got, want)


def test_too_long_a_prompt_says_so(four):
  with pytest.raises(ValueError, match="leaves 0 positions.*raise max_positions"):
    four.write([prompt(part(vl.TEXT, 170))], GOALS[:1], sampling=GREEDY, seed=0)


def test_empty_rows_of_a_state_start_anew(model):
  with jax.set_mesh(model.head_DV[...].sharding.mesh):
    state = cache.empty(model, rows=2, positions=64)
    piece = turns.pieces(PROMPTS[:2], 2, grammar.Layout(tiny.VOCAB, 0, 1))[0]
    kept_BV, once = after(model, state, step.Piece(**sharding.place(piece)))
    once = cache.reset(once, jnp.array([True, False]))
    assert once.length_B.tolist()[0] == 0 < once.length_B.tolist()[1]
    piece["count_B"] = np.array([piece["count_B"][0], 0], np.int32)
    got_BV, twice = after(model, once, step.Piece(**sharding.place(piece)))
  np.testing.assert_allclose(got_BV[0], kept_BV[0], atol=1e-5)
  assert (twice.length_B == once.length_B.at[0].set(int(piece["count_B"][0]))).all()


def test_prepared_weights_compute_the_same(mesh):
  cfg = dataclasses.replace(tiny.MODEL, dtype="bfloat16")
  def make(key):
    model = Omni(cfg, tiny.VOCAB, sharding.RULES, rngs=nnx.Rngs(key))
    # As trained: codes of images look like something, to be read and to be written.
    for i, table in enumerate((model.embed.fixed_VA, model.embed.image_AD, model.image_AD)):
      table[...] = jax.random.normal(jax.random.fold_in(key, i), table.shape)
    return jax.tree.map(lambda x: 1.001 * x, model)  # gains aren't 1 either
  raw = jax.jit(make)(jax.random.key(0))
  ready = weights.prepare(raw)
  assert raw.image_AD is not None and ready.head_DV.dtype == jnp.bfloat16
  size = lambda model: sum(x.nbytes for x in jax.tree.leaves(model))
  assert size(ready) < 0.55 * size(raw)
  pieces = turns.pieces(PROMPTS[:2], 2, grammar.Layout(tiny.VOCAB, 0, 1))
  def hidden(model):
    state = cache.empty(model, rows=2, positions=64)
    for piece in pieces:
      logits_BV, state = after(model, state, step.Piece(**sharding.place(piece)))
    x_BD = jax.random.normal(jax.random.key(1), (2, cfg.dim), jnp.bfloat16)
    codes = model.depth.write(x_BD, x_BD, lambda q, x: jnp.argmax(x, -1))
    return logits_BV, codes
  for a, b in zip(hidden(raw), hidden(ready), strict=True):
    np.testing.assert_array_equal(np.float32(a), np.float32(b))


def test_the_settings_of_a_kind_reach_its_tokens(four):
  """Greedy but for the acoustic codes: those change with the seed, the first codes do not."""
  greedy = Setting(temperature=0.0)
  sampling = Sampling(text=greedy, image=greedy, first_codebook=greedy, acoustic=HOT.acoustic)
  goal = [dataclasses.replace(GOALS[2], max_new=5)] * 4
  a, b = (four.write(PROMPTS, goal, sampling=sampling, seed=seed)[0] for seed in (0, 1))
  assert a.frames[0, 0] == b.frames[0, 0] != tiny.VOCAB.no_code
  assert (a.frames[1, 1:3] != b.frames[1, 1:3]).any()
  assert sample.GREEDY == dataclasses.replace(sampling, acoustic=greedy)


def test_what_is_rounded_in_training_is_not_in_generation(mesh):
  make = lambda kind: Omni(dataclasses.replace(tiny.MODEL, matmuls=kind), tiny.VOCAB,
                           sharding.RULES, rngs=nnx.Rngs(jax.random.key(0)))
  x_BTD = jnp.ones((1, 2, tiny.MODEL.dim))
  first = jax.tree.map(lambda x: x[0], make("int8").blocks.mlp)
  ready = jax.tree.map(lambda x: x[0], weights.prepare(make("int8")).blocks.mlp)
  plain = jax.tree.map(lambda x: x[0], weights.prepare(make("dtype")).blocks.mlp)
  assert np.abs(first(x_BTD) - plain(x_BTD)).max() > 1e-6
  np.testing.assert_array_equal(ready(x_BTD), plain(x_BTD))
  assert weights.prepare(make("int8")).blocks.attn.kind == "dtype"
