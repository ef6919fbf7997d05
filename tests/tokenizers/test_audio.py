"""Speech codec: streaming equals whole, causality, prefixes, phases, files, training, bad input."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx
from rich.console import Console

from omnijax.evals import codec as codec_evals
from omnijax.tokenizers import audio, clips, codec, spectral, train_audio, train_semantic

TINY = codec.AudioConfig(
  frame_size=160,
  window=64,
  hop=16,
  mels=8,
  dim=16,
  semantic_dim=12,
  semantic_channels=(2, 3),
  semantic_layers=1,
  narrow_dim=8,
  narrow_layers_out=1,
  encoder_layers=2,
  decoder_layers=2,
  kernel=3,
  codebooks=3,
  codes=16,
  code_dim=4,
  phase_iterations=4,
)


@pytest.fixture(scope="module")
def tok():
  return audio.AudioTokenizer(TINY, codec.Codec(TINY, rngs=nnx.Rngs(0)), "tiny")


def noise(batch: int, samples: int, seed: int = 0) -> np.ndarray:
  wave = np.random.default_rng(seed).standard_normal((batch, samples))
  return (0.1 * wave).astype(np.float32)


def vowel(seconds: float, pitch: float = 140.0) -> np.ndarray:
  """Harmonics of a gliding pitch under two formants, with pauses."""
  t = np.arange(int(16000 * seconds)) / 16000
  phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.2 * np.sin(3 * t))) / 16000
  wave = np.zeros_like(t)
  for k in range(1, 25):
    formants = sum(np.exp(-(((k * pitch - f) / 200) ** 2)) for f in (600, 1500))
    wave += (0.02 + formants) * np.sin(k * phase)
  return (0.1 * wave * (np.sin(4 * t) > -0.5)).astype(np.float32)


def test_streaming_by_frames_equals_whole(tok):
  wave_BL = noise(3, 160 * 20 - 50)
  codes_BTQ = tok.encode(wave_BL)
  assert codes_BTQ.shape == (3, 20, 3) and codes_BTQ.dtype == np.int32
  whole_BL = tok.decode(codes_BTQ)
  assert whole_BL.shape == (3, 3200) and np.abs(whole_BL).max() > 1e-3
  padded_BL = np.pad(wave_BL, ((0, 0), (0, 50)))
  state, codes, waves = tok.init_state(3), [], []
  for t in range(20):
    state, codes_BQ = tok.encode_step(state, padded_BL[:, t * 160 : (t + 1) * 160])
    state, heard_BL = tok.decode_step(state, codes_BQ)
    codes.append(np.asarray(codes_BQ))
    waves.append(np.asarray(heard_BL))
  np.testing.assert_array_equal(np.stack(codes, 1), codes_BTQ)
  streamed_BL = np.concatenate(waves, 1)
  np.testing.assert_allclose(streamed_BL[:, tok.delay :], whole_BL[:, : -tok.delay], atol=1e-4)


@pytest.mark.parametrize("part, width, per", [("encoder", 33, 10), ("semantic", 8, 10),
                                              ("decoder", 16, 1)])
def test_network_in_odd_chunks_equals_whole(tok, part, width, per):
  net = getattr(tok.codec, part)
  x = jax.random.normal(jax.random.key(0), (2, 9 * per, width))
  whole, after = net(x, net.init_state(2))
  pieces, state, start = [], net.init_state(2), 0
  for frames in (1, 3, 5):
    y, state = net(x[:, start * per : (start + frames) * per], state)
    pieces.append(y)
    start += frames
  np.testing.assert_allclose(jnp.concatenate(pieces, 1), whole, atol=1e-4)
  # What each layer remembers is what it was given last.
  jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, atol=1e-4), state, after)
  assert min(np.abs(past).max() for past in jax.tree.leaves(after)) > 1e-2
  forgetful, _ = net(x[:, per:], net.init_state(2))
  assert np.abs(forgetful[:, 0] - whole[:, forgetful.shape[1] // 8]).max() > 1e-3


def test_later_samples_do_not_change_earlier_codes(tok):
  wave_BL = noise(1, 160 * 12)
  codes = tok.encode(wave_BL)
  changed_BL = wave_BL.copy()
  changed_BL[:, 160 * 6 :] *= -3.0
  changed_BL[:, 160 * 6 :] += noise(1, 160 * 6, seed=1)
  changed = tok.encode(changed_BL)
  np.testing.assert_array_equal(changed[:, :6], codes[:, :6])
  assert (changed[:, 6:] != codes[:, 6:]).any()
  z = lambda x: tok.codec.encoder(
    spectral.log_magnitude(x, TINY.stft), tok.codec.encoder.init_state(1)
  )[0]
  early_BL = wave_BL.copy()
  early_BL[:, 160:200] = 0.0
  a, b = (np.asarray(z(np.pad(x, ((0, 0), (48, 0))))) for x in (wave_BL, early_BL))
  np.testing.assert_array_equal(a[:, 0], b[:, 0])
  assert np.abs(a[:, 2] - b[:, 2]).max() > 1e-4, "the past must matter"


def test_later_codes_do_not_change_earlier_sound(tok):
  codes = np.random.default_rng(0).integers(0, 16, (1, 10, 3))
  changed = codes.copy()
  changed[:, 5:] = (codes[:, 5:] + 7) % 16
  a, b = tok.decode(codes), tok.decode(changed)
  final = 5 * 160 - tok.delay
  np.testing.assert_array_equal(a[:, :final], b[:, :final])
  assert np.abs(a[:, final:] - b[:, final:]).max() > 1e-3


def test_any_prefix_of_codebooks_decodes(tok):
  codes = tok.encode(noise(2, 160 * 8))
  waves = [tok.decode(codes[:, :, :q]) for q in (1, 2, 3)]
  assert {w.shape for w in waves} == {(2, 1280)}
  assert np.abs(waves[0] - waves[2]).max() > 1e-4


def test_reset_begins_only_the_masked_conversations_anew(tok):
  wave_BL = noise(2, 160)
  fresh, first = tok.encode_step(tok.init_state(2), wave_BL)
  fresh, heard = tok.decode_step(fresh, first)
  state = tok.init_state(2)
  for seed in range(4):
    state, codes = tok.encode_step(state, noise(2, 160, seed + 5))
    state, _ = tok.decode_step(state, codes)
  state = tok.reset(state, np.array([True, False]))
  state, codes = tok.encode_step(state, wave_BL)
  state, wave = tok.decode_step(state, np.asarray(first))
  np.testing.assert_array_equal(codes[0], first[0])
  np.testing.assert_allclose(wave[0], heard[0], atol=1e-5)
  assert np.abs(wave[1] - heard[1]).max() > 1e-4


def recovered(wave: np.ndarray, iterations: int) -> float:
  """Relative error of the magnitudes of sound that was made from magnitudes alone."""
  stft = dataclasses.replace(TINY, window=512, hop=128, frame_size=1280).stft
  padded = jnp.pad(wave[None], ((0, 0), (stft.overlap, 0)))
  target = spectral.magnitude(padded, stft)
  blocks = target.reshape(1, -1, 10, stft.bins).transpose(1, 0, 2, 3)
  step = lambda s, m: spectral.invert_block(s, m, stft, iterations, 0.9)
  state, out = jax.lax.scan(step, spectral.init_phase(1, stft), blocks)
  sound = out.transpose(1, 0, 2).reshape(1, -1)[:, stft.overlap :]
  heard = spectral.magnitude(jnp.pad(sound, ((0, 0), (stft.overlap, 0))), stft)
  error = heard - target[:, : heard.shape[1]]
  return float(jnp.sqrt(jnp.sum(error**2) / jnp.sum(target**2)))


def test_sound_from_magnitudes_has_those_magnitudes():
  wave = vowel(1.6)
  errors = [recovered(wave, n) for n in (0, 16)]
  assert errors[1] < 0.06 and errors[1] < 0.8 * errors[0], errors


def test_save_and_load(tok, tmp_path):
  audio.save(tmp_path, tok.codec)
  loaded = audio.load(tmp_path)
  assert loaded.config == TINY and (loaded.sample_rate, loaded.frame_size) == (16000, 160)
  assert (loaded.frame_rate, loaded.codebooks, loaded.codes, loaded.delay) == (100.0, 3, 16, 48)
  # parameters become float16: saving what was loaded changes nothing
  audio.save(tmp_path / "again", loaded.codec)
  assert audio.load(tmp_path / "again").fingerprint == loaded.fingerprint
  config = json.loads((tmp_path / "config.json").read_text())
  config["fingerprint"] = "0" * 16
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=f"{loaded.fingerprint}.*0000"):
    audio.load(tmp_path)
  (tmp_path / "params.npz").unlink()
  with pytest.raises(ValueError, match=r"no params\.npz in"):
    audio.load(tmp_path)


@pytest.mark.parametrize(
  ("wave", "rate", "message"),
  [
    (np.zeros((800, 2), "f4"), None, r"\(800, 2\).*stereo"),
    (np.zeros(800, "f4"), None, r"\(800,\).*batch"),
    (np.zeros((1, 0), "f4"), None, "at least one"),
    (np.zeros((1, 800), "i2"), None, "int16.*32768"),
    (np.full((1, 800), np.nan, "f4"), None, "NaN"),
    (np.zeros((1, 800), "f4"), 44100, "44100.*16000"),
  ],
)
def test_bad_sound_is_named(tok, wave, rate, message):
  with pytest.raises(ValueError, match=message):
    tok.encode(wave, rate)


def test_bad_codes_and_settings_are_named(tok):
  with pytest.raises(ValueError, match=r"\(1, 2, 4\).*1\.\.3 codebooks"):
    tok.decode(np.zeros((1, 2, 4), int))
  with pytest.raises(ValueError, match=r"0\.\.16; want 0\.\.15"):
    tok.decode(np.full((1, 2, 3), 16) * np.array([0, 1, 0]))
  with pytest.raises(ValueError, match=r"\(1, 100\).*160"):
    tok.encode_step(tok.init_state(1), noise(1, 100))
  with pytest.raises(ValueError, match="frame_size=100"):
    codec.AudioConfig(frame_size=100)
  with pytest.raises(ValueError, match="window=100"):
    codec.AudioConfig(window=100)
  with pytest.raises(ValueError, match="batch_frames=8"):
    train_audio.AudioTrainConfig(batch_frames=8)


def test_letters():
  assert clips.letters("\u00c9chec: l\u2019agent, n'est") == "echec l'agent n'est"
  assert clips.letters("\u0441\u043b\u043e\u0432\u043e \u0451\u0436\u0438\u043a") == "slovo ezhik"
  assert clips.letters("room 12") == clips.letters("\u03bb\u03cc\u03b3\u03bf\u03c2") == ""


TRAIN = train_audio.AudioTrainConfig(
  codec=TINY, semantic=train_semantic.SemanticTrainConfig(
    steps=16, warmup=2, batch_frames=64, buckets=(32,), peak_lr=5e-3,
    recurring=3, average=0.8),
  steps=60, warmup=4, batch_frames=64, buckets=(32,), peak_lr=5e-3,
  adversarial_weight=0.01, save_every_s=0.0,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  base = tmp_path_factory.mktemp("corpus")
  lines = []
  for i in range(6):
    soundfile.write(base / f"{i}.wav", vowel(0.25, 100 + 20 * i), 16000)
    lines.append(json.dumps({"audio": str(base / f"{i}.wav"), "transcript": "a e"}))
  lines.append(json.dumps({"audio": str(base / "missing.wav")}))
  (base / "clips.jsonl").write_text("\n".join(lines))
  return base / "clips.jsonl"


def ends(path):
  """The first and the last line of a file of metrics."""
  lines = path.read_text().splitlines()
  return json.loads(lines[0]), json.loads(lines[-1])


def test_training_learns_and_resumes_bitwise(corpus, tmp_path, monkeypatch):
  train_audio.train(TRAIN, corpus, tmp_path / "whole")
  first, last = ends(tmp_path / "whole/acoustic.jsonl")
  assert last["mel"] < 0.9 * first["mel"], (first, last)
  assert {"adversarial", "critic", "bits"} <= set(last)

  # One stop in each part; the first part saves once more at its end, and when it is met again.
  calls, stops = [], (5, 25)
  real = train_audio.save_state
  def save_and_die(path, state):
    real(path, state)
    calls.append(int(state.step))
    if len(calls) in stops:
      raise KeyboardInterrupt
  monkeypatch.setattr(train_audio, "save_state", save_and_die)
  for _ in stops:
    with pytest.raises(KeyboardInterrupt):
      train_audio.train(TRAIN, corpus, tmp_path / "cut")
  train_audio.train(TRAIN, corpus, tmp_path / "cut")
  assert calls[5] == 6 and calls[26] == 9, "it went on, not from the start"
  whole, cut = (audio.load(tmp_path / name) for name in ("whole", "cut"))
  assert whole.fingerprint == cut.fingerprint
  other = dataclasses.replace(TRAIN, codec=dataclasses.replace(TINY, dim=8))
  with pytest.raises(ValueError, match="another config"):
    train_audio.train(other, corpus, tmp_path / "cut")


def test_the_first_codebook_learns_words_and_then_stays(tmp_path):
  lines = []
  for i in range(12):  # two words, many voices
    wave = vowel(0.2, 100 + 10 * i) if i % 2 else noise(1, 3200, i)[0]
    soundfile.write(tmp_path / f"{i}.wav", wave, 16000)
    lines.append({"audio": f"{i}.wav", "transcript": "ah" if i % 2 else "sh"})
  (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, lines)))
  few = dataclasses.replace(TRAIN, adversarial_weight=0.0, steps=5, semantic=dataclasses.replace(
    TRAIN.semantic, steps=150, free_share=0.5))
  train_audio.train(few, tmp_path / "clips.jsonl", tmp_path / "few")
  states = [json.loads(x) for x in (tmp_path / "few/semantic.jsonl").read_text().splitlines()]
  assert states[-1]["semantic"] < 0.3 * states[1]["semantic"], states
  codes = []
  more = dataclasses.replace(few, steps=20, start=str(tmp_path / "few"),
                             semantic=dataclasses.replace(few.semantic, steps=0))
  train_audio.train(more, tmp_path / "clips.jsonl", tmp_path / "more")
  for name in ("few", "more"):
    codes.append(audio.load(tmp_path / name).encode(vowel(0.5)[None]))
  np.testing.assert_array_equal(codes[0][..., 0], codes[1][..., 0])
  assert (codes[0][..., 1:] != codes[1][..., 1:]).any()


def test_disguises_keep_the_length_of_what_is_said():
  mel_BFM = jnp.broadcast_to(jnp.arange(40.0)[None, :, None], (64, 40, 80))
  length_B = jnp.full(64, 30.0)
  out_BFM, new_B = train_semantic.disguised(mel_BFM, length_B, jax.random.key(0))
  assert out_BFM.shape == mel_BFM.shape and float(new_B.max()) <= 40 and float(new_B.std()) > 3
  # The last frame of what is said is found at the new length, unless it is hidden by a gap.
  last = np.asarray(out_BFM[np.arange(64), np.floor(np.asarray(new_B)).astype(int) - 1])
  seen = last > 0
  assert seen.mean() > 0.5 and np.abs(last[seen] - 29).max() < 2


def test_a_corpus_without_transcripts_is_named(tmp_path):
  soundfile.write(tmp_path / "a.wav", vowel(0.3), 16000)
  (tmp_path / "clips.jsonl").write_text(json.dumps({"audio": "a.wav"}))
  with pytest.raises(ValueError, match="no clip of at most .* has a transcript"):
    train_audio.train(TRAIN, tmp_path / "clips.jsonl", tmp_path / "out")


def test_transcripts_that_recur_have_names_and_the_heavy_come_more_often():
  clip = {"start": 0, "length": 900, "chars": "a", "semantic_weight": 1.0}
  index = [clip] * 3 + [clip | {"chars": "b", "semantic_weight": 9.0}] * 3 + [clip | {"chars": "c"}]
  batches, names = train_semantic.batches(np.full(900, 99, np.int16), index, 160, TRAIN.semantic, 0)
  assert names == 2
  found = np.concatenate([batches[i]["word"] for i in range(200)])
  letters = np.concatenate([batches[i]["chars"][:, 0] for i in range(200)])
  assert {(0, "a"), (1, "b"), (-1, "c")} == {(w, clips.ALPHABET[c]) for w, c in
                                             zip(found.tolist(), letters, strict=True)}
  assert 5 < np.mean(found == 1) / np.mean(found == 0) < 15


def test_a_codec_of_another_version_is_refused_by_name(tok, tmp_path):
  audio.save(tmp_path, tok.codec)
  text = json.loads((tmp_path / "config.json").read_text())
  text["config"]["semantic_narrow_dim"] = text["config"].pop("semantic_channels")[0]
  with np.load(tmp_path / "params.npz") as file:
    text["fingerprint"] = audio._fingerprint(text["config"], dict(file))
  (tmp_path / "config.json").write_text(json.dumps(text))
  with pytest.raises(ValueError, match=r"another version.*'semantic_channels', 'semantic_narrow_"):
    audio.load(tmp_path)


def test_names_are_learned():
  config = dataclasses.replace(TRAIN.semantic, steps=120, batch_frames=256, spelling_weight=0.0)
  clip = {"chars": "a", "semantic_weight": 1.0, "length": 3200}
  index = [clip | {"start": 0}] * 3 + [clip | {"start": 3200, "chars": "b"}] * 3
  sound = np.concatenate([vowel(0.2), noise(1, 3200)[0]])
  batches, names = train_semantic.batches((sound * 32767).astype(np.int16), index, 160, config, 0)
  state, losses = train_semantic.init(config, TINY, names, 0), []
  for step in range(120):
    state, metrics = train_semantic.train_step(state, batches[step % 8], config, 0)
    losses.append(float(metrics["naming"]))
  assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:5]), losses


def test_batches_are_a_function_of_seed_and_step(corpus, tmp_path):
  data, index = clips.pack(corpus, tmp_path, 16000, Console(quiet=True))
  assert len(index) == 6 and index[0]["chars"] == "a e"
  make = lambda seed: clips.Batches(
    data, index, frame_size=160, buckets=(8, 40), batch_frames=80, seed=seed
  )
  a, b, c = make(0)[3], make(0)[3], make(1)[3]
  np.testing.assert_array_equal(a["wave"], b["wave"])
  assert a["wave"].shape != c["wave"].shape or (a["wave"] != c["wave"]).any()


def test_evaluation(tok, corpus, tmp_path):
  items = corpus.read_text().splitlines()[:3]
  (tmp_path / "some.jsonl").write_text("\n".join(items))
  hears = lambda wave, lang: "a b"
  report = codec_evals.evaluate(
    tok, tmp_path / "some.jsonl", hears, codebooks=(1, 3), min_words=2
  )
  documents = [json.dumps({"parts": [{"text": "said"}, json.loads(line)]}) for line in items]
  (tmp_path / "documents.jsonl").write_text("\n".join(documents))
  again = codec_evals.evaluate(
    tok, tmp_path / "documents.jsonl", hears, codebooks=(1, 3), min_words=2
  )
  assert again == report
  assert report["clips"] == 3 and report["wer"] == 0.5 and len(report["usage"]) == 3
  assert report["codebooks"]["3"]["bits_per_s"] == 1200.0
  assert report["codebooks"]["1"]["mel_db"] > 1.0
  same = vowel(0.5)
  assert codec_evals.mel_distance(same, same, TINY.stft) == 0.0
  assert codec_evals.si_sdr(same, 0.5 * same) > 60
  assert codec_evals.edits("a b c".split(), "a c d".split()) == 2
  assert codec_evals.words("It's a T\u00e9st-case!") == ["its", "a", "t\u00e9st", "case"]


@pytest.mark.skipif(not (audio.DEFAULT / "params.npz").exists(), reason="no codec is packaged")
def test_packaged_codec_keeps_the_spectrum():
  shipped = audio.load(audio.DEFAULT)
  assert (shipped.sample_rate, shipped.frame_rate, shipped.delay) == (16000, 12.5, 384)
  assert shipped.codebooks * np.log2(shipped.codes) * shipped.frame_rate <= 1500
  wave = vowel(0.8)
  codes = shipped.encode(wave[None])
  distance = [
    codec_evals.mel_distance(wave, x[: len(wave)], shipped.config.stft)
    for x in (shipped.decode(codes)[0], shipped.decode((codes + 511) % 1024)[0])
  ]
  assert distance[0] < 9.0 and distance[0] < 0.7 * distance[1], distance
