"""The quickstart's data set is whole, its documents are well formed, its judges judge."""

import collections
import json
import pathlib

import numpy as np
import pytest
import soundfile
from PIL import Image

from experiments.digits import manifest, unpack, voices
from omnijax.evals import judges

HERE = pathlib.Path(unpack.__file__).parent


@pytest.fixture(scope="module")
def entries():
  return unpack.index()


@pytest.fixture(scope="module")
def heldout():
  return unpack.speech("heldout")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("digits")
  return folder, *manifest.write(folder, seed=1, docs=3000, takes=1, person_takes=2)


def test_every_digit_in_every_language_in_both_splits(entries):
  count = collections.Counter((e["language"], e["digit"], e["split"]) for e in entries)
  for language in voices.LANGUAGES:
    for digit in range(10):
      assert count[language, digit, "train"] >= 40
      assert count[language, digit, "heldout"] >= 8


def test_no_voice_is_both_trained_on_and_tested(entries):
  splits = collections.defaultdict(set)
  for entry in entries:
    splits[entry["voice"]].add(entry["split"])
  assert all(len(found) == 1 for found in splits.values())
  # Built from one speaker, so one split.
  slt = {s for voice, found in splits.items() if "slt" in voice for s in found}
  assert slt == {"heldout"}
  trained = {entry["kind"] for entry in entries if entry["split"] == "train"}
  tested = {entry["kind"] for entry in entries if entry["split"] == "heldout"}
  assert trained - tested == {"blend"} and not tested - trained


@pytest.mark.parametrize("kind", ["blend", "pico", "espeak"])
def test_some_voices_are_heard_and_never_imitated(written, kind):
  roles = collections.Counter()
  for line in written[1].read_text(encoding="utf-8").splitlines():
    for part in json.loads(line)["parts"]:
      roles[part["role"], f"-{kind}-" in part.get("audio", "")] += 1
  assert roles["user", True] > 20 and roles["assistant", True] == 0


def test_few_voices_are_imitated_and_some_of_every_language(written):
  spoken = collections.defaultdict(set)
  for line in written[1].read_text(encoding="utf-8").splitlines():
    item = json.loads(line)
    if item["parts"][-1].get("role") == "assistant" and "audio" in item["parts"][-1]:
      spoken[item["digits"]["language"]].add(item["digits"]["voice"])
  people = {(language, name) for language, name, split, *_ in voices.PEOPLE if split == "train"}
  for language in voices.LANGUAGES:
    assert set(voices.KOKORO_SPOKEN[language]) < set(voices.KOKORO_TRAIN[language])
    want = {f"kokoro-{name}" for name in voices.KOKORO_SPOKEN[language]}
    assert spoken[language] == want | {name for la, name in people if la == language}


def test_every_source_is_named_with_its_licence(entries):
  text = (HERE / "SOURCES.md").read_text(encoding="utf-8")
  for source in {e["source"] for e in entries}:
    family = "festival-*" if source.startswith("festival-") else source
    assert f"`{family}`" in text, source
  for name in (HERE / "licences").iterdir():
    assert name.name in text or name.name.startswith("festvox-"), name


def test_sources_do_not_mix_in_a_file(entries):
  people = collections.defaultdict(set)
  for entry in entries:
    if entry["kind"] == "person":
      people[entry["file"]].add(entry["source"])
  assert people and all(len(sources) == 1 for sources in people.values())
  synthesised = {e["file"] for e in entries if e["kind"] != "person"}
  assert not synthesised & set(people)


def test_clips_are_speech_of_sane_length_and_loudness(heldout):
  for entry, wave_T in heldout:
    assert len(wave_T) == entry["samples"], entry["id"]
    assert 0.12 < len(wave_T) / unpack.RATE < 2.0, entry["id"]
    assert 0.02 < np.sqrt(np.square(wave_T).mean()) < 0.3, entry["id"]
    assert np.abs(wave_T[:20]).max() < 0.1, entry["id"]  # cut out of its sheet at the right place


def test_pictures_are_split_without_overlap():
  train, _ = unpack.images("train")
  test, digits = unpack.images("heldout")
  assert train.shape[1:] == test.shape[1:] == (32, 32) and len(train) > 8000
  assert np.bincount(digits).tolist() == [150] * 10
  assert not {p.tobytes() for p in train} & {p.tobytes() for p in test}


def _signature(document):
  return tuple((next(iter(part)), part["role"]) for part in document["parts"])


def test_manifests_are_well_formed(written):
  folder, train, heldout_path = written
  shapes = {
    "speech->text": [("audio", "user"), ("text", "assistant")],
    "image->text": [("text", "user"), ("image", "user"), ("text", "assistant")],
    "text->image": [("text", "user"), ("image", "assistant")],
    "text->speech": [("text", "user"), ("text", "user"), ("audio", "assistant")],
    "image->speech": [("text", "user"), ("image", "user"), ("audio", "assistant")],
    "speech->image": [("audio", "user"), ("text", "assistant"), ("image", "assistant")],
  }
  spoken = {e["voice"]: e["split"] for e in unpack.index()}
  for path, split in ((train, "train"), (heldout_path, "heldout")):
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({line["id"] for line in lines}) == len(lines)
    seen = collections.Counter()
    for line in lines:
      about = line["digits"]
      seen[about["direction"]] += 1
      if about["direction"] != "plain":
        assert _signature(line) == tuple(shapes[about["direction"]])
      for part in line["parts"]:
        if "image" in part:
          assert f"/{split}/{about['digit']}_" in part["image"]
          assert (folder / part["image"]).exists()
        if "audio" in part:
          assert (folder / part["audio"]).exists() and spoken[about["voice"]] == split
          assert part["transcript"] == voices.WORDS[about["language"]][about["digit"]]
    for direction in manifest.DIRECTIONS:
      assert seen[direction] > 0.07 * len(lines) or split == "heldout"
      assert seen[direction] >= 50
  image = Image.open(folder / lines[-1]["parts"][-1]["image"]) if "image" in part else None
  assert image is None or image.size == (32, 32)


def test_manifest_depends_on_the_seed_only(written, tmp_path):
  folder, train, _ = written
  (tmp_path / "images").symlink_to(folder / "images")
  (tmp_path / "speech").symlink_to(folder / "speech")
  again, _ = manifest.write(tmp_path, seed=1, docs=3000, takes=1, person_takes=2)
  assert again.read_bytes() == train.read_bytes()
  other, _ = manifest.write(tmp_path, seed=2, docs=3000, takes=1, person_takes=2)
  assert other.read_bytes() != train.read_bytes()


def test_takes_of_a_picture_differ_a_little_and_always_alike():
  pixels, digits = unpack.images("train")
  chosen = np.arange(0, len(pixels), 97)
  first, second = (np.stack([unpack.turned(pixels[i], take) for i in chosen]) for take in (1, 2))
  assert (unpack.turned(pixels[0], 0) == pixels[0]).all()
  assert (unpack.turned(pixels[0], 1) == first[0]).all() and (first != second).any((1, 2)).all()
  judge = judges.load_image(HERE / "judges" / "image.npz")
  got = judge.predict(first / np.float32(255))
  assert judges.accuracy(got, digits[chosen])["accuracy"] > 0.95


def test_takes_differ_in_length(written):
  folder = written[0]
  first = soundfile.info(folder / "speech/train/fr-5-june.0.flac")
  second = soundfile.info(folder / "speech/train/fr-5-june.1.flac")
  assert first.samplerate == second.samplerate == unpack.RATE
  assert second.frames != first.frames
  assert not (folder / "speech/train/fr-5-june.2.flac").exists()


def test_picture_judge():
  judge = judges.load_image(HERE / "judges" / "image.npz")
  pixels, digits = unpack.images("heldout")
  chosen = np.arange(0, len(digits), 3)
  got = judge.predict(pixels[chosen] / np.float32(255))
  assert judges.accuracy(got, digits[chosen])["accuracy"] >= 0.97
  assert judges.accuracy(got, (digits[chosen] + 1) % 10)["accuracy"] < 0.1
  turned = judge.predict(pixels[chosen, ::-1, ::-1] / np.float32(255))
  assert judges.accuracy(turned, digits[chosen])["accuracy"] < 0.6


def test_speech_judge(heldout):
  judge = judges.load_speech(HERE / "judges" / "speech.npz")
  languages, digits = judge.predict([wave_T for _, wave_T in heldout])
  want = np.array([entry["digit"] for entry, _ in heldout])
  tongues = np.array([entry["language"] for entry, _ in heldout])
  report = judges.accuracy((digits == want) & (languages == tongues), [True] * len(want), tongues)
  assert report["accuracy"] >= 0.95, report
  some = heldout[::4]
  _, backwards = judge.predict([wave_T[::-1] for _, wave_T in some])
  assert judges.accuracy(backwards, want[::4])["accuracy"] < 0.7
  # Louder, quieter, or with silence around: the same answer.
  moved = [np.pad(0.2 * wave_T, (1600, 4800)) for _, wave_T in some]
  assert np.mean(judge.predict(moved)[1] == digits[::4]) > 0.97


def test_judges_refuse_what_they_cannot_read():
  judge = judges.load_image(HERE / "judges" / "image.npz")
  with pytest.raises(ValueError, match=r"\(2, 28, 28\).*want \[B, 32, 32\]"):
    judge.predict(np.zeros((2, 28, 28)))
  with pytest.raises(ValueError, match="one channel"):
    judges.log_mel(np.zeros((2, 1600)))
