"""From parts to parts: prompts as in a manifest, the three kinds of output, files, bad input."""

import dataclasses
import types

import jax
import numpy as np
import PIL.Image
import pytest
import soundfile
import tiny
from flax import nnx

from omnijax import config, sharding
from omnijax import vocab as vl
from omnijax.data import documents
from omnijax.data.encode import Tokenizers
from omnijax.generate import command, decode, parse
from omnijax.generate.sample import GREEDY
from omnijax.model.transformer import Omni

VOCAB = vl.Vocab(text=256, image=256, audio=64, codebooks=2)
RATE, FRAME = 16_000, 1280


class Text:
  size, fingerprint = 256, "text"

  def encode(self, text):
    return list(text.encode())

  def decode(self, ids):
    return bytes(ids).decode("latin-1")


class Image:
  """The code of a patch of 4 x 4 is its grey."""

  codes, downsample, channels, fingerprint = 256, 4, 1, "image"

  def encode(self, pixels):
    return np.round(pixels[:, ::4, ::4, 0] * 255).astype(np.int32)

  def decode(self, codes):
    return codes.repeat(4, 1).repeat(4, 2)[..., None] / np.float32(255)


class Audio:
  """The first code of a frame is its first sample in steps of 1/64; it has more than the model."""

  sample_rate, frame_size, codebooks, codes, fingerprint = RATE, FRAME, 3, 64, "audio"

  def encode(self, wave):
    first = np.round(wave.reshape(len(wave), -1, FRAME)[..., 0] * 64).astype(np.int32)
    return np.stack([first, first + 1, first + 2], -1)

  def decode(self, codes):
    return (codes[..., 0] / np.float32(64)).repeat(FRAME, 1)


@pytest.fixture(scope="module")
def generator() -> decode.Generator:
  with jax.set_mesh(sharding.make_mesh(config.Mesh(data=1, fsdp=1))):
    model = jax.jit(lambda key: Omni(tiny.MODEL, VOCAB, sharding.RULES, rngs=nnx.Rngs(key)))(
      jax.random.key(0))
  return decode.Generator(model, VOCAB, tiny.DATA, Tokenizers(Text(), Image(), Audio()),
                          max_positions=64, max_batch=2)


@pytest.fixture
def echo(generator, monkeypatch):
  """The generator, with a model that answers each prompt with the same parts."""
  asked = types.SimpleNamespace(answer=[], calls=[])

  def write(prompts, goals, **settings):
    asked.calls.append(dict(prompts=prompts, goals=goals, **settings))
    s = documents.render(asked.answer, documents.PLAIN, False, tiny.DATA, VOCAB)
    cut = slice(1, len(s.main) - 1)
    s = dataclasses.replace(s, main=s.main[cut], modality=s.modality[cut], frame_at=s.frame_at - 1)
    return [s] * len(prompts)

  monkeypatch.setattr(generator.engine, "write", write)
  generator.asked = asked
  return generator


def prompt_of(echo, parts, **settings) -> documents.Streams:
  echo.asked.answer = [documents.Part(vl.TEXT, documents.NONE, np.array([72, 105]))]
  assert echo.generate([parts], to="text", **settings)[0].text == "Hi"
  return echo.asked.calls[-1]["prompts"][0]


def rendered(*parts) -> documents.Streams:
  parts = [documents.Part(kind, role, np.array(codes), None) for kind, role, codes in parts]
  return documents.render(parts, documents.PLAIN, False, tiny.DATA, VOCAB)


def equal(a, b) -> bool:
  return all(np.array_equal(x, y) for x, y in zip(dataclasses.astuple(a), dataclasses.astuple(b),
                                                  strict=True))


def test_each_output_comes_out_whole(generator):
  prompts = [[{"text": "a"}], [{"image": np.zeros((8, 4), np.uint8)}, {"text": "what?"}]]
  for one in generator.generate(prompts, to="text", max_new=5, sampling=GREEDY):
    assert one.text is not None and one.image is one.audio is one.monologue is None
  for one in generator.generate(prompts, to="image", image_size=(8, 12), guidance=2.0):
    assert one.image.shape == (8, 12, 1) and one.image.dtype == np.uint8
    assert one.audio is one.monologue is None
    assert (one.image[::4, ::4, 0] == one.codes[-1].codes).all()
  for one in generator.generate(prompts, to="audio", max_new=12):
    (speech,) = one.codes
    assert one.audio.shape == (len(speech.codes) * FRAME,) and one.audio.dtype == np.float32
    assert one.monologue is not None and speech.codes.shape[1] == VOCAB.codebooks
    assert speech.codes.min() >= 0 and speech.codes.max() < VOCAB.audio


def test_a_prompt_is_laid_out_as_in_training(echo, tmp_path):
  path = tmp_path / "x.png"
  PIL.Image.fromarray(np.full((8, 8), 9, np.uint8)).save(path)
  sound = np.repeat(np.float32([1, 2, 3]) / 64, FRAME)
  soundfile.write(tmp_path / "x.wav", sound, RATE, "FLOAT")
  want = rendered((vl.TEXT, documents.USER, [97]), (vl.IMAGE, documents.USER, np.full((2, 2), 9)),
                  (vl.AUDIO, documents.USER, [[1, 2, 3], [2, 3, 4], [3, 4, 5], [0, 1, 2]]),
                  (vl.TEXT, documents.ASSISTANT, []))
  for image, audio in ((path, str(tmp_path / "x.wav")), (np.full((8, 8, 1), 9, np.uint8), sound)):
    assert equal(prompt_of(echo, [{"text": "a"}, {"image": image}, {"audio": audio}]), want)
  # A turn of the assistant goes on, and a document without turns has none.
  mine = prompt_of(echo, [{"text": "a", "role": "assistant"}])
  assert equal(mine, rendered((vl.TEXT, documents.ASSISTANT, [97])))
  assert equal(prompt_of(echo, [{"text": "a", "role": None}]),
               rendered((vl.TEXT, documents.NONE, [97])))


def test_guidance_leaves_out_what_the_user_wrote(echo):
  parts = [{"text": "a"}, {"image": np.full((4, 4), 9, np.uint8)}]
  echo.asked.answer = [documents.Part(vl.IMAGE, documents.NONE, np.array([[5]]))]
  echo.generate([parts], to="image", guidance=2.0)
  call = echo.asked.calls[-1]
  want = rendered((vl.TEXT, documents.USER, []), (vl.IMAGE, documents.USER, [[9]]),
                  (vl.TEXT, documents.ASSISTANT, []))
  assert equal(call["without"][0], want) and not equal(call["prompts"][0], want)
  echo.generate([parts], to="image")
  assert echo.asked.calls[-1]["without"] is None


def test_several_outputs_of_different_shapes_find_their_places(generator):
  speech = lambda T: documents.Part(vl.AUDIO, documents.ASSISTANT, np.full((T, 2), T),
                                    np.array([T]))
  image = lambda h: documents.Part(vl.IMAGE, documents.ASSISTANT, np.full((h, 1), h))
  turns = [[speech(3)], [image(2), speech(1)], [image(1), image(2)], [speech(3), image(1)]]
  out = generator.decode(turns)
  assert [None if o.image is None else o.image.shape[0] // 4 for o in out] == [None, 2, 1, 1]
  assert [None if o.audio is None else len(o.audio) // FRAME for o in out] == [3, 1, None, 3]
  assert [o.monologue for o in out] == ["\3", "\1", None, "\3"]


@pytest.mark.parametrize(("parts", "settings", "message"), [
  ([], {}, "prompt 0 is empty; give at least one part"),
  ([{"text": ""}], {}, "text is ''; wanted a string that isn't empty"),
  ([{"video": "x"}], {}, r"has the keys \['video'\]; wanted one of"),
  ([{"text": "a", "role": "system"}], {}, "has the role 'system'; wanted one of"),
  ([{"image": "none.png"}], {}, "missing file: none.png.*give another file"),
  ([{"audio": "none.wav"}], {}, "missing file: none.wav"),
  ([{"image": np.zeros((6, 8), np.uint8)}], {}, "6 high and 8 wide.*multiples of 4.*resize"),
  ([{"image": np.zeros((8, 8), np.float32)}], {}, r"float32\[8, 8\]; wanted uint8"),
  ([{"audio": np.zeros((9, 2), np.float32)}], {}, r"float32\[9, 2\]; wanted float \[L\].*16000"),
  ([{"audio": np.array([np.nan])}], {}, "NaN"),
  ([{"text": "a"}], {"to": "video"}, "output 'video' is unknown; use one of"),
  ([{"text": "a"}], {"to": "image", "image_size": (8, 10)}, r"\(8, 10\).*multiples of 4.*\(8, 8\)"),
  ([{"text": "a"}], {"to": "image", "image_size": (400, 8)}, "100 codes on a side; wanted 1 to 96"),
  ([{"text": "a" * 90}], {}, "raise max_positions or shorten the prompt")])
def test_bad_input_says_what_was_got_and_wanted(generator, parts, settings, message):
  with pytest.raises(ValueError, match=message):
    generator.generate([parts], **{"to": "text"} | settings)


def test_a_missing_tokenizer_is_named(generator):
  bare = decode.Generator(generator.engine.model, VOCAB, tiny.DATA, Tokenizers(Text()))
  with pytest.raises(ValueError, match="no image tokenizer"):
    bare.generate([[{"image": np.zeros((4, 4), np.uint8)}]], to="text")
  with pytest.raises(ValueError, match="not the model's"):
    decode.Generator(generator.engine.model, tiny.VOCAB, tiny.DATA, Tokenizers(Text()))


@pytest.fixture
def run_dir(echo, monkeypatch, tmp_path):
  monkeypatch.setattr(decode.Generator, "load", classmethod(lambda cls, path, **_: echo))
  monkeypatch.setattr(command, "_step", lambda path: 77)
  return tmp_path / "first"


def test_pictures_and_sounds_are_written_with_what_they_are(echo, run_dir, tmp_path):
  echo.asked.answer = [documents.Part(vl.IMAGE, documents.NONE, np.array([[5, 200]]))]
  about = {"prompt": "text: a \u2603", "run": "first", "step": "77", "seed": "3"}
  command.run(run_dir, [("text", "a \u2603")], to="image", out=tmp_path / "o.png", seed=3)
  with PIL.Image.open(tmp_path / "o.png") as file:
    assert file.size == (8, 4) and file.mode == "L" and file.text == about
    assert np.asarray(file)[0].tolist() == [5] * 4 + [200] * 4
  (tmp_path / "w.wav").unlink(missing_ok=True)
  command.write_wav(tmp_path / "w.wav", np.float32([0, 0.5, -2]), RATE, about)
  wave, rate = soundfile.read(tmp_path / "w.wav")
  assert rate == RATE and np.allclose(wave, [0, 0.5, -1], atol=1e-4)
  with soundfile.SoundFile(tmp_path / "w.wav") as file:
    assert file.subtype == "PCM_16" and file.format == "WAV"
    assert "step: 77; seed: 3" in file.comment
  assert sorted(p.name for p in tmp_path.iterdir()) == ["o.png", "w.wav"]


def test_text_is_printed_or_written(echo, run_dir, tmp_path, capsys):
  echo.asked.answer = [documents.Part(vl.TEXT, documents.NONE, np.array([72, 105]))]
  command.run(run_dir, [("text", "a")], to="text")
  assert capsys.readouterr().out == "Hi\n"
  command.run(run_dir, [("text", "a")], to="text", out=tmp_path / "o.txt")
  assert (tmp_path / "o.txt").read_text() == "Hi\n"


@pytest.mark.parametrize(("inputs", "to", "out", "message"), [
  ([], "text", None, "no input; give at least one of --text"),
  ([("text", "a")], "image", "x.wav", "image is written as PNG; give a file name that ends in"),
  ([("text", "a")], "audio", "no/x.wav", "can't be written; give a file in an existing directory"),
  ([("text", "a")], "text", ".", "can't be written")])
def test_a_bad_command_harms_nothing(run_dir, tmp_path, inputs, to, out, message):
  with pytest.raises(ValueError, match=message):
    command.run(run_dir, inputs, to=to, out=None if out is None else tmp_path / out)
  assert not list(tmp_path.iterdir())


def test_parts_are_found_in_what_was_written(generator):
  s = rendered((vl.TEXT, documents.NONE, [1, 2]), (vl.IMAGE, documents.NONE, [[3, 4], [5, 6]]),
               (vl.TEXT, documents.NONE, [7]))
  cut = dataclasses.replace(s, main=s.main[1:-1], modality=s.modality[1:-1])
  found = parse.parts(cut, generator.engine.layout)
  assert [(p.kind, p.codes.tolist()) for p in found] == [
    (vl.TEXT, [1, 2]), (vl.IMAGE, [[3, 4], [5, 6]]), (vl.TEXT, [7])]
