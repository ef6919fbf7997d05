"""The corpora of experiments/stamps: what belongs together, on small trees like the packages'."""

import gzip
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
import soundfile
from PIL import Image

from experiments.stamps_data import asterisk, build, counts, packages, stamps
from omnijax.data import merge, sources, tokenise

CROW = "A crow.\nfr.utf8=Un corbeau.\nca@valencia.utf8=Un corb.\nlt.utf8=\n"
STAMPS = {
  "animals/crow.png": "png", "animals/crow.svg": "", "animals/crow.txt": CROW,
  "animals/crow.dat": "noflip", "animals/crow.ogg": "sound", "animals/crow_desc.ogg": "sound",
  "animals/crow_desc_fr.ogg": "sound", "animals/crow_desc_fr.ogg.ogg": "sound",
  "animals/crow_desc_ca@valencia.wav": "sound",
  "animals/crow_desc_ru.ogg": "sound",  # said, but not written
  "animals/crow_mirror.png": "png",  # without a caption
  "animals/cow.svg": "", "animals/cow.txt": "A cow.\npt_BR.utf8=Uma vaca.\n",
  "animals/cow_desc_pt_BR.wav": "sound", "animals/cow.wav": "sound",
  "symbols/1.png": "png", "symbols/1.txt": "One.\nfr.utf8=Un.\n", "symbols/1.ogg": "sound",
  "symbols/1_zh_tw.ogg": "sound", "symbols/1_fr.ogg": "sound",
}


def sound(path: pathlib.Path) -> None:
  soundfile.write(path, np.sin(np.arange(4000) / 9).astype(np.float32), 16000,
                  format="WAV" if path.suffix == ".wav" else "OGG")


@pytest.fixture
def tree(tmp_path):
  root = tmp_path / "root"
  for name, content in STAMPS.items():
    path = root / stamps.FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if content == "png":
      Image.new("RGBA", (30, 50), (200, 0, 0, 128)).save(path)
    elif content == "sound":
      sound(path)
    else:
      path.write_text(content, "utf-8")
  return root


HELLO = "\u041f\u0440\u0438\u0432\u0435\u0442? \u041d\u0435\u0442"  # Privet? Net
TEXTS = {
  "en": "; hello: Core\n\nhello: Hello.  World\nbeep: [a beep]\nat: at [@]\nno-file: gone\n",
  "es": "hello: hola\ndigits/1f: una\nat: arroba\nat: otra\n",
  "fr": "hello: ...bonjour\"\nempty:\n",
  "it": "\ufeffhello: ciao\nbeep: un suono beep\nbusy: La linea ? occupata\n",
  "ru": f"hello: hello: {HELLO}\n",
}
KEYS = {"en": "hello beep at", "es": "hello digits/1F at", "fr": "hello empty",
        "it": "hello beep busy", "ru": "hello silence/1"}


@pytest.fixture
def prompts(tmp_path):
  root = tmp_path / "root"
  for language, text in TEXTS.items():
    path = root / f"usr/share/doc/asterisk-core-sounds-{language}/core-sounds-{language}.txt.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(text.encode()))
    for key in KEYS[language].split():
      path = root / asterisk.SOUNDS / f"{language}_XX_f_Name" / f"{key}.g722"
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(b"\0" * 800)
  return root


def members(root):
  """As of a package of all that is in a tree."""
  for path in root.rglob("*"):
    if path.is_file():
      yield path.relative_to(root).as_posix(), path.read_bytes


def test_what_belongs_to_a_stamp(tree):
  cow, crow, mirror, one, *more = stamps.read(tree)
  assert more[0].name == "symbols/1_fr" and more[1].name == "symbols/1_zh_tw"
  assert (cow.picture, cow.vector) == ("", "animals/cow.svg")
  assert crow.picture == "animals/crow.png" and crow.noises == ["animals/crow.ogg"]
  assert crow.captions == {"en": "A crow.", "fr": "Un corbeau.", "ca@valencia": "Un corb."}
  assert sorted(language for language, _ in crow.voices) == ["ca@valencia", "en", "fr", "fr", "ru"]
  assert mirror.picture and not mirror.captions and one.captions["fr"] == "Un."


def test_each_caption_is_a_document_with_its_language(tree):
  lines = list(stamps.caption_documents(stamps.read(tree)))
  assert [line["id"] for line in lines] == [
    "animals/crow:caption:en", "animals/crow:caption:fr", "animals/crow:caption:ca@valencia",
    "symbols/1:caption:en", "symbols/1:caption:fr"]
  assert lines[1]["group"] == "animals/crow"
  assert lines[1]["parts"] == [{"image": f"root/{stamps.FOLDER}/animals/crow.png"},
                               {"text": "fr: Un corbeau."}]


def test_a_voice_says_the_caption_of_its_own_language(tree):
  lines = {line["id"]: line for line in stamps.speech_documents(stamps.read(tree))}
  alone = {name: line["parts"][0] for name, line in lines.items() if ":voice:" in name}
  assert {name: (pathlib.Path(part["audio"]).name, part["transcript"])
          for name, part in alone.items()} == {
    "animals/crow:voice:en": ("crow_desc.ogg", "A crow."),
    "animals/crow:voice:fr": ("crow_desc_fr.ogg", "Un corbeau."),
    "animals/crow:voice:fr:1": ("crow_desc_fr.ogg.ogg", "Un corbeau."),
    "animals/crow:voice:ca@valencia": ("crow_desc_ca@valencia.wav", "Un corb."),
    "animals/cow:voice:pt_BR": ("cow_desc_pt_BR.wav", "Uma vaca."),
  }
  tag, image, audio = lines["animals/crow:picture to voice:fr"]["parts"]
  assert tag == {"text": "fr:", "role": "user"} and image["role"] == "user"
  assert audio["role"] == "assistant" and audio["transcript"] == "Un corbeau."
  heard, drawn = lines["animals/crow:voice to picture:fr"]["parts"]
  assert heard["role"] == "user" and drawn["image"].endswith("crow.png")
  assert "animals/cow:picture to voice:pt_BR" not in lines
  noises = [line for line in lines.values() if "noise" in line["about"]["kind"]]
  assert [line["group"] for line in noises] == ["animals/crow"] * 2
  assert not any("transcript" in part for line in noises for part in line["parts"])


def test_all_of_a_manifest_can_be_read(tree):
  found = stamps.read(tree)
  lines = [*stamps.caption_documents(found), *stamps.speech_documents(found)]
  counts.write(tree.parent / "all.jsonl", lines)
  items = list(sources.find(tree.parent / "all.jsonl").items())
  assert [item.id for item in items] == [line["id"] for line in lines]
  assert len({item.id for item in items}) == len(items) == 5 + 5 + 2 * 4 + 2
  for item in items:
    for part in item.parts:
      for name in part.media:
        assert (tree.parent / name).is_file()
    assert item.group in item.id


def test_counts_of_stamps_are_those_of_the_package(tree):
  found = stamps.read(tree)
  lines = [*stamps.caption_documents(found), *stamps.speech_documents(found)]
  want = stamps.in_package(members(tree))
  assert list(want.values()) == [2, 6, 1, 1, 5, 4, 1, 1, 1, 3]
  # A caption without words is no caption, and is told.
  with pytest.raises(ValueError, match=r"not all.*captions of these"):
    counts.compare(want, stamps.in_manifest(found, lines))
  text = tree / stamps.FOLDER / "animals/crow.txt"
  text.write_text(CROW.replace("lt.utf8=\n", ""), "utf-8")
  want = stamps.in_package(members(tree))
  table = counts.compare(want, stamps.in_manifest(found, lines))
  assert re.search(r"captions of these +5 +5\n", table)
  with pytest.raises(ValueError, match=r"voices with a caption.*voices of these"):
    counts.compare(want, stamps.in_manifest(found, [
      line for line in lines if line["about"]["language"] != "ca@valencia"]))


def test_lines_of_prompts():
  text = "\ufeff; a: comment\nA: b: c\n\n no key\na: again\n"
  assert asterisk.transcripts(text.encode()) == {"a": "b: c"}


def test_what_prompts_say(prompts):
  found = {(r.language, r.key): r for r in asterisk.read(prompts)}
  assert {key: r.text for key, r in found.items() if r.text} == {
    ("en", "hello"): "Hello. World", ("en", "at"): "at", ("es", "hello"): "hola",
    ("es", "at"): "arroba", ("es", "digits/1f"): "una", ("fr", "hello"): "bonjour",
    ("it", "hello"): "ciao", ("ru", "hello"): HELLO}
  assert {key: r.reason for key, r in found.items() if r.reason} == {
    ("en", "beep"): asterisk.NO_SPEECH, ("it", "beep"): asterisk.NO_SPEECH,
    ("it", "busy"): asterisk.DAMAGED, ("fr", "empty"): asterisk.NO_LINE,
    ("ru", "silence/1"): asterisk.NO_LINE}
  lines = list(asterisk.documents(found.values()))
  assert lines[2] == {
    "id": "es/at", "group": "at", "about": {"kind": "voice", "language": "es"},
    "parts": [{"audio": f"root/{asterisk.SOUNDS}/es_XX_f_Name/at.g722", "transcript": "arroba"}]}


def test_counts_of_prompts_are_those_of_the_packages(prompts):
  found = asterisk.read(prompts)
  lines = list(asterisk.documents(found))
  want = asterisk.in_package(members(prompts))
  assert want["fr recordings"] == 2 and want["fr recordings with a line"] == 1
  assert want["es recordings with a line"] == 3 and want["it recordings with a line"] == 3
  counts.compare(want, asterisk.in_manifest(found, lines))
  with pytest.raises(ValueError, match="en recordings"):
    counts.compare(want, asterisk.in_manifest(found, lines[1:]))


def test_what_is_missing_is_named(tmp_path, prompts):
  with pytest.raises(ValueError, match="no stamps; wanted tuxpaint-stamps-default"):
    stamps.read(tmp_path)
  shutil.rmtree(prompts / asterisk.SOUNDS / "fr_XX_f_Name")
  with pytest.raises(ValueError, match="wanted the package asterisk-core-sounds-fr-g722"):
    asterisk.read(prompts)
  shutil.rmtree(prompts / "usr/share/doc/asterisk-core-sounds-it")
  with pytest.raises(ValueError, match=r"no transcripts.*core-sounds-it"):
    asterisk.read(prompts)


def program(folder: pathlib.Path, name: str, script: str) -> None:
  folder.mkdir(exist_ok=True)
  (folder / name).write_text(f"#!/bin/sh\n{script}\n")
  (folder / name).chmod(0o755)


def test_packages_are_fetched_once_and_errors_told(tmp_path, monkeypatch):
  bin_, home = tmp_path / "bin", tmp_path / "home"
  bin_.mkdir()
  monkeypatch.setenv("PATH", str(bin_))
  with pytest.raises(ValueError, match=r"there is no apt-get here; wanted Debian"):
    packages.fetch(["one"], home)
  program(bin_, "apt-get", 'echo "E: Unable to locate package $4" >&2; exit 100')
  with pytest.raises(ValueError, match=r"Unable to locate package one; see that.*apt-get update"):
    packages.fetch(["one"], home)
  program(bin_, "apt-get", 'echo >> "$0.calls"; : > "$4_1.0_all.deb"')
  with pytest.raises(ValueError, match="no dpkg-deb"):
    packages.fetch(["one"], home)
  program(bin_, "dpkg-deb", 'echo "not a Debian archive" >&2; exit 2')
  with pytest.raises(ValueError, match=r"not a Debian archive; delete .*one.deb and try again"):
    packages.fetch(["one"], home)
  program(bin_, "dpkg-deb", 'echo >> "$0.calls"; : > "$3.made"')
  for _ in range(2):
    assert packages.fetch(["one", "two"], home) == home / "root"
  assert (home / "root.made").exists() and not list(home.glob("packages/*.part"))
  # Each once: the first was kept from the try that failed to unpack it.
  assert [(bin_ / f"{p}.calls").read_text().count("\n") for p in ("apt-get", "dpkg-deb")] == [2, 2]


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="makes a Debian package")
def test_members_of_a_package(tmp_path):
  made = tmp_path / "made"
  (made / "DEBIAN").mkdir(parents=True)
  (made / "DEBIAN/control").write_text("Package: one\nVersion: 1\nArchitecture: all\n"
                                       "Maintainer: x\nDescription: x\n")
  (made / "usr").mkdir()
  (made / "usr/a.txt").write_text("A")
  (made / "usr/b.txt").write_text("B")
  (tmp_path / "packages").mkdir()
  deb = tmp_path / "packages/one.deb"
  subprocess.run(["dpkg-deb", "-b", str(made), str(deb)], check=True, capture_output=True)
  assert [(name, read()) for name, read in packages.members(tmp_path, "one")] == [
    ("usr/a.txt", b"A"), ("usr/b.txt", b"B")]
  deb.write_bytes(deb.read_bytes()[:200])
  with pytest.raises(ValueError, match=r"one.deb can't be read.*delete it"):
    list(packages.members(tmp_path, "one"))


def test_the_text_tokenizer_sees_nothing_held_out(tree, prompts, tmp_path, monkeypatch):
  monkeypatch.setattr(build, "fetch_stamps", lambda _: stamps.read(tree))
  monkeypatch.setattr(build, "fetch_asterisk", lambda _: asterisk.read(prompts))
  monkeypatch.setattr(build, "HELDOUT", 0.5)
  trained = []

  def train(files, out, *, size):
    trained.append((files, size))
    (out / "config.json").touch()

  monkeypatch.setattr(build.text, "train", train)
  out = build.tokenizer(tmp_path / "home")
  one_of = {"animals/crow": "en: A crow.", "animals/cow": "en: A cow.", "symbols/1": "fr: Un.",
            "hello": "hola", "at": "arroba", "digits/1f": "una"}
  kept = {group for group in one_of if not merge.held_out(group, 0.5)}
  assert 0 < len(kept) < len(one_of)
  lines = (out / "lines.txt").read_text("utf-8").splitlines()
  assert {group for group, line in one_of.items() if line in lines} == kept
  assert build.tokenizer(tmp_path / "home") == out
  assert trained == [([out / "lines.txt"], build.PIECES)]


def test_held_out_is_what_records_hold_out():
  names = [f"group {i}" for i in range(300)]
  about = np.zeros(300, tokenise.ABOUT)
  about["group"] = [tokenise.digest_of(name) for name in names]
  merged = merge.Merged([], np.zeros(0), np.zeros(0), about, [], [])
  held = merged.held(0.2)
  assert 30 < held.sum() < 90
  assert [merge.held_out(name, 0.2) for name in names] == held.tolist()
