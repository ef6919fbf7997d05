"""From sources to records: timed words, dialogues, what is held out, what is there twice."""

import dataclasses
import json
import random
import shutil

import fakes
import numpy as np
import PIL.Image
import pytest
import soundfile
from test_prepare import SHARD, digest, rejects, run
from test_sources import make_folder, make_tar, media_files

from omnijax import vocab as v
from omnijax.data import documents as d
from omnijax.data import prepare, records, sources
from omnijax.data.prepare import Choices
from omnijax.data.sources import Bad


def test_a_folder_a_shard_and_a_table_of_the_same_are_the_same_documents(tmp_path):
  import pyarrow as pa
  import pyarrow.parquet as pq
  png, wav = media_files(tmp_path)
  files = {"1.png": png, "1.txt": b"one", "2.wav": wav, "2.txt": b"two", "3.txt": b"three"}
  for name, content in files.items():
    (tmp_path / "f").mkdir(exist_ok=True)
    (tmp_path / "f" / name).write_bytes(content)
  make_tar(tmp_path / "t.tar", files)
  cell = lambda b: b and {"bytes": b, "path": None}
  pq.write_table(pa.table({"image": [cell(png), None, None], "audio": [None, cell(wav), None],
                           "text": ["one", "two", "three"]}), tmp_path / "t.parquet")
  lines = [{"image": "x.png", "text": "one"}, {"audio": "x.wav", "text": "two"}, {"text": "three"}]
  fakes.manifest(tmp_path, lines)
  found = []
  for name in ("f", "t.tar", "t.parquet", "manifest.jsonl"):
    meta = run(tmp_path / name, tmp_path / f"{name}.out")
    assert not meta.rejects, name
    found.append([p.name for p in sorted((tmp_path / f"{name}.out").iterdir())])
    found[-1] = {k: x for k, x in digest(tmp_path / f"{name}.out").items()
                 if k not in ("meta.json", "started.json")}
  assert found[0] == found[1] == found[2] == found[3]


def test_timed_words_and_dialogues(tmp_path):
  left, right = np.full(8000, 0.1, np.float32), np.full(8000, 0.4, np.float32)
  soundfile.write(tmp_path / "call.wav", np.stack([left, right], 1), fakes.RATE)
  fakes.audio(tmp_path / "short.wav", 1000, 0.1)
  words = [[0.0, "hi"], [0.1, "x"], [0.33, "yz"]]
  lines = [
    {"parts": [{"audio": "call.wav", "channel": 0, "words": [*words[:1], [0.33, "y"]]}]},
    {"parts": [{"audio": "call.wav", "channel": 1, "listen": "call.wav#0", "transcript": "ok"}]},
    {"id": "late", "parts": [{"audio": "call.wav", "words": words}]},
    {"id": "odd", "parts": [{"audio": "call.wav", "channel": 1, "listen": "short.wav"}]}]
  out = tmp_path / "out"
  run(fakes.manifest(tmp_path, lines), out)
  said = {r["id"]: r["reason"] for r in rejects(out)}
  assert "'yz' at 0.33 s would end at frame" not in said.get("late", "")
  assert said.pop("odd").startswith("sides of unequal length: call.wav#1 has 8 frames, short.wav "
                                    "has 2")
  assert said == {}
  read = records.Records(out)
  (first,), (second,), (late,) = (read.read(i) for i in range(3))
  assert first.timed and first.words.tolist() == [104, 105, -1, -1, 32, 121, -1, -1]
  assert first.transcript.tolist() == list(b"hi y")
  assert late.words.tolist() == [104, 105, 32, 120, 32, 121, 122, -1]  # pushed on where it must be
  assert not second.timed and second.words.tolist() == list(b"ok")
  assert second.codes[0, 0] == 4 and second.heard[0, 0] == 1 and len(second.heard) == 8
  assert {d.TASKS[i] for i in np.flatnonzero(d.allowed(read.lengths)[0])} == {
    "plain", "transcribe", "speak", "follow"}


def test_words_that_do_not_fit_are_refused(tmp_path):
  fakes.audio(tmp_path / "a.wav", 3000, 0.1)
  lines = [{"id": "x", "parts": [{"audio": "a.wav", "words": [[0.2, "abcde"]]}]}, {"text": "ok"}]
  run(fakes.manifest(tmp_path, lines), tmp_path / "out")
  assert "a.wav has 4 frames; 'abcde' at 0.20 s would end at frame 7" in rejects(
    tmp_path / "out")[0]["reason"]


def test_silence_is_refused_but_as_what_is_heard(tmp_path):
  fakes.audio(tmp_path / "silent.wav", 8000, 0.0)
  fakes.audio(tmp_path / "loud.wav", 8000, 0.3)
  lines = [{"id": "s", "parts": [{"audio": "silent.wav"}]},
           {"id": "d", "parts": [{"audio": "loud.wav", "listen": "silent.wav"}]}]
  run(fakes.manifest(tmp_path, lines[1:]), tmp_path / "a")
  assert rejects(tmp_path / "a") == []
  run(fakes.manifest(tmp_path, [*lines, {"text": "x"}]), tmp_path / "b")
  assert [r["id"] for r in rejects(tmp_path / "b")] == ["s", "d"]


def test_what_is_held_out_is_so_by_its_group_alone(tmp_path):
  lines = [{"id": f"{g}-{i}", "group": f"g{g}", "parts": [{"text": f"{g} {i}"}]}
           for g in range(100) for i in range(3)]
  out = tmp_path / "out"
  meta = run(fakes.manifest(tmp_path, lines), out, choices=Choices(heldout=0.2), shard=SHARD)
  held, kept = records.Records(out / prepare.HELDOUT), records.Records(out)
  texts = lambda r: [bytes(r.read(i)[0].codes.astype(np.uint8)).decode() for i in range(len(r))]
  groups = [{t.split()[0] for t in texts(r)} for r in (held, kept)]
  assert not groups[0] & groups[1] and len(held) == 3 * len(groups[0])
  assert len(held) + len(kept) == 300 and 10 <= len(groups[0]) <= 30
  assert meta.counts["documents"] == len(kept)
  half = fakes.manifest(tmp_path, lines[:150][::-1])
  run(half, tmp_path / "half", choices=Choices(heldout=0.2))
  again = {t.split()[0] for t in texts(records.Records(tmp_path / "half" / prepare.HELDOUT))}
  assert again == {g for g in groups[0] if int(g) < 50}
  with pytest.raises(ValueError, match="leaves no document for"):
    run(fakes.manifest(tmp_path, lines[:1]), tmp_path / "one", choices=Choices(heldout=0.5))
  with pytest.raises(ValueError, match="--heldout is 1.0"):
    Choices(heldout=1.0)


def test_what_is_there_twice(tmp_path):
  _, wav = media_files(tmp_path)
  (tmp_path / "copy.wav").write_bytes(wav)
  lines = [{"id": "a", "audio": "x.wav", "text": "hi"}, {"id": "b", "text": "b"},
           {"id": "a", "text": "other"}, {"id": "c", "audio": "copy.wav", "text": "hi"},
           {"id": "d", "text": "b"}, {"id": "e", "audio": "x.wav", "text": "ho"}]
  manifest = fakes.manifest(tmp_path, lines)
  shard = SHARD | {v.TEXT: 2}
  meta = run(manifest, tmp_path / "a", shard=shard)
  assert meta.rejects == {"duplicate id": 1} and meta.counts["documents"] == 5
  assert rejects(tmp_path / "a") == [
    {"id": "a", "line": 3, "reason": "duplicate id: has the id of line 1"}]
  meta = run(manifest, tmp_path / "b", shard=shard, choices=Choices(dedup=True))
  assert [(r["id"], r["reason"]) for r in rejects(tmp_path / "b")] == [
    ("a", "duplicate id: has the id of line 1"), ("c", "duplicate: says all of line 1"),
    ("d", "duplicate: says all of line 2")]
  read = records.Records(tmp_path / "b")
  assert [len(read.read(i)) for i in range(3)] == [1, 1, 1] and len(read) == 3
  assert bytes(read.read(2)[0].words.astype(np.uint8)) == b"ho"


def corrupted(content, rng):
  """Content with a few bytes changed, a stretch zeroed, its end lost, or something put in."""
  content = bytearray(content)
  at = rng.randrange(len(content))
  kind = rng.randrange(4)
  if kind == 0:
    for _ in range(rng.randrange(1, 9)):
      content[rng.randrange(len(content))] = rng.randrange(256)
  elif kind == 1:
    content[at : at + rng.randrange(1, 200)] = bytes(min(len(content) - at, 50))
  elif kind == 2:
    del content[at:]
  else:
    content[at:at] = rng.randbytes(rng.randrange(1, 200))
  return bytes(content)


def good_files(root):
  """A picture and a sound in every format."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 255, (16, 16, 3), np.uint8)
  for kind in ("png", "jpg", "webp", "gif", "bmp"):
    PIL.Image.fromarray(pixels).save(root / f"good.{kind}")
  wave = (0.3 * np.sin(np.arange(6000) * 0.1)).astype(np.float32)
  for kind in ("wav", "flac", "ogg", "mp3"):
    soundfile.write(root / f"good.{kind}", wave, fakes.RATE)
  soundfile.write(root / "good.opus", wave, fakes.RATE, format="OGG", subtype="OPUS")
  return sorted(root.glob("good.*"))


def test_a_thousand_corrupted_files_lose_no_good_one(tmp_path):
  rng, lines = random.Random(0), []
  good = good_files(tmp_path)
  kind = lambda p: "image" if p.suffix[1:] in ("png", "jpg", "webp", "gif", "bmp") else "audio"
  for i in range(1000):
    path = good[i % len(good)]
    bad = path.with_name(f"bad{i}{path.suffix}")
    bad.write_bytes(corrupted(path.read_bytes(), rng))
    lines.append({"id": f"bad{i}", "parts": [{kind(path): bad.name}]})
    if i % 10 == 0:
      path = good[i // 10 % len(good)]
      copy = shutil.copy(path, path.with_name(f"fine{i}{path.suffix}"))
      lines.append({"id": f"fine{i}", "parts": [{kind(path): copy.name}]})
  out = tmp_path / "out"
  meta = run(fakes.manifest(tmp_path, lines), out)
  said = rejects(out)
  assert all(r["id"].startswith("bad") and r["reason"].count(":") >= 1 for r in said)
  assert meta.counts["documents"] + len(said) == 1100
  assert 200 < len(said) < 1000  # a changed byte of a picture's pixels is a picture
  assert str(tmp_path) not in json.dumps(said)
  read = records.Records(out)
  assert all(len(read.read(i)) == 1 for i in range(len(read)))


def test_corrupted_lists_and_archives_never_end_a_source(tmp_path):
  import pyarrow as pa
  import pyarrow.parquet as pq
  png, wav = media_files(tmp_path)
  make_folder(tmp_path / "f")
  make_tar(tmp_path / "good.tar", {f"{i}.{k}": c for i in range(4) for k, c in (
    ("png", png), ("txt", b"text"), ("json", b'{"x": 1}'))})
  pq.write_table(pa.table({"audio": [{"bytes": wav, "path": "a"}] * 6, "text": list("abcdef")}),
                 tmp_path / "good.parquet", row_group_size=2)
  fakes.manifest(tmp_path, [{"id": str(i), "parts": [{"text": "x" * i}]} for i in range(1, 9)])
  rng, bad = random.Random(0), 0
  for name in ("good.tar", "good.parquet", "manifest.jsonl"):
    whole = (tmp_path / name).read_bytes()
    path = tmp_path / f"x-{name}"
    for _ in range(150):
      path.write_bytes(corrupted(whole, rng))
      source = sources.find(path)
      for item in source.items():
        bad += isinstance(item.parts, Bad)
        for part in [] if isinstance(item.parts, Bad) else item.parts:
          for medium in part.media:
            try:
              source.store.read(medium, 1 << 20)
            except Bad:
              bad += 1
  assert bad > 150


def test_records_are_not_written_into_their_own_source(tmp_path):
  make_folder(tmp_path / "f")
  before = sorted((tmp_path / "f").rglob("*"))
  with pytest.raises(ValueError, match="lies within the source .*name a directory outside"):
    run(tmp_path / "f", tmp_path / "f" / "sub" / "out")
  assert sorted((tmp_path / "f").rglob("*")) == before
  run(fakes.manifest(tmp_path, [{"text": "a"}]), tmp_path / "beside")


def test_choices_are_part_of_what_records_are_of(tmp_path):
  manifest = fakes.manifest(tmp_path, [{"text": "a"}, {"text": "b"}])
  run(manifest, tmp_path / "out")
  with pytest.raises(ValueError, match="choices.dedup was False, is now True"):
    run(manifest, tmp_path / "out", choices=dataclasses.replace(Choices(), dedup=True))
