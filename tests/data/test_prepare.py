"""From a manifest to records: what is bad, what a crash leaves, and what must not be mixed."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time

import fakes
import numpy as np
import PIL.Image
import pytest
import soundfile

import omnijax
from omnijax import vocab as v
from omnijax.data import encode, media, prepare, records
from omnijax.data.sources import Bad, Store

SHARD = {v.TEXT: 16, v.IMAGE: 2, v.AUDIO: 2}


def run(manifest, out, **options):
  options = {"tokenizers": fakes.tokenizers(), "progress": False, **options}
  return prepare.prepare(manifest, out, **options)


def rejects(out):
  return [json.loads(x) for x in (out / "rejects.jsonl").read_text("utf-8").splitlines()]


def digest(out: pathlib.Path):
  return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
          for p in sorted(out.rglob("*")) if p.is_file()}


def test_every_bad_item_is_named_counted_and_skipped(tmp_path):
  fakes.image(tmp_path / "good.png", 8, 8, 1)
  fakes.image(tmp_path / "odd.png", 8, 10, 1)
  whole = (tmp_path / "good.png").read_bytes()
  (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
  (tmp_path / "zero.png").write_bytes(b"")
  (tmp_path / "text.wav").write_bytes(b"this is no sound at all")
  (tmp_path / "zero.wav").write_bytes(b"")
  fakes.audio(tmp_path / "good.wav", 3000, 0.1)
  fakes.audio(tmp_path / "empty.wav", 0, 0)
  soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan], np.float32), fakes.RATE,
                  subtype="FLOAT")
  soundfile.write(tmp_path / "loud.wav", np.array([0.1, 32767], np.float32), fakes.RATE,
                  subtype="FLOAT")
  good = {"text": "ok"}
  bad = [
    ("bad document", {"id": "no-parts"}), ("empty document", {"parts": []}),
    ("empty document", {"parts": [{"text": ""}]}), ("bad document", [1, 2]),
    ("unknown modality", {"parts": [good, {"video": "x.mp4"}]}),
    ("bad document", {"parts": [{"text": "a", "image": "good.png"}]}),
    ("bad document", {"parts": [{"text": 5}]}), ("bad document", {"id": 7, "parts": [good]}),
    ("bad document", {"parts": [{"text": "a", "role": "system"}]}),
    ("bad document", {"parts": [{"text": "a", "role": []}]}),
    ("bad document", {"parts": [{"text": "a", "transcript": "a"}]}),
    ("bad document", {"parts": ["a"]}), ("invalid UTF-8", {"parts": [{"text": "\ud800"}]}),
    ("bad document", {"parts": [{"image": "a\0.png"}]}),
    ("missing file", {"id": "gone", "parts": [{"image": "gone.png"}]}),
    ("missing file", {"parts": [{"audio": "."}]}),
    ("unreadable image", {"parts": [good, {"image": "cut.png"}]}),
    ("unreadable image", {"parts": [{"image": "good.wav"}]}),
    ("empty file", {"parts": [{"image": "zero.png"}]}),
    ("image size", {"id": "odd", "parts": [{"image": "odd.png"}]}),
    ("unreadable audio", {"parts": [{"audio": "text.wav"}]}),
    ("empty file", {"parts": [{"audio": "zero.wav"}]}),
    ("empty audio", {"parts": [{"audio": "empty.wav"}]}),
    ("audio not finite", {"parts": [{"audio": "nan.wav"}]}),
    ("audio out of range", {"parts": [{"audio": "loud.wav"}]}),
    ("transcript does not fit", {"id": "long", "parts": [
      {"audio": "good.wav", "transcript": "fives"}]}),
  ]
  lines = [x for _, line in bad for x in (json.dumps({"parts": [good]}), json.dumps(line))]
  manifest = tmp_path / "m.jsonl"
  extra = [b'{"parts": [{"text": "\xff"}]}', b'{"parts": [', b"[" * 100_000, b"",
           json.dumps({"parts": [{"audio": "good.wav", "transcript": "four", "role": "user"}]})
           .encode(), json.dumps({"parts": [{"image": "good.png"}]}).encode()]
  manifest.write_bytes(b"\n".join([x.encode() for x in lines] + extra))
  meta = run(manifest, tmp_path / "out")

  n = len(bad)
  found = rejects(tmp_path / "out")
  kinds = [kind for kind, _ in bad] + ["invalid UTF-8", "invalid JSON", "invalid JSON"]
  assert [r["reason"].split(":")[0] for r in found] == kinds
  assert [r["line"] for r in found] == [*range(2, 2 * n + 1, 2), *range(2 * n + 1, 2 * n + 4)]
  assert meta.rejects == {k: kinds.count(k) for k in sorted(set(kinds))}
  assert meta.counts["documents"] == n + 2 and meta.counts["items"] == 2 * n + 5
  by_id = {r["id"]: r["reason"] for r in found}
  assert "gone.png" in by_id["gone"]
  assert "odd.png is 10 x 8 pixels; the tokenizer wants multiples of 4" in by_id["odd"]
  assert "4 frames for the 5 pieces of 'fives'" in by_id["long"]
  assert by_id["line 6"].startswith("empty document")
  assert str(tmp_path) not in json.dumps(found)

  with pytest.raises(ValueError, match=r"prepared without 29 bad items, the first at line 2"):
    run(manifest, tmp_path / "out", strict=True)
  with pytest.raises(ValueError, match=r"m.jsonl line 2 \(no-parts\): bad document"):
    run(manifest, tmp_path / "strict", strict=True)


def test_strict_names_a_bad_file_by_its_first_mention(tmp_path):
  lines = [{"parts": [{"text": "a"}]}, {"id": "x", "parts": [{"image": "gone.png"}]}]
  with pytest.raises(ValueError, match=r"line 2 \(x\): missing file: gone.png"):
    run(fakes.manifest(tmp_path, lines), tmp_path / "out", strict=True)


def test_nothing_usable(tmp_path):
  manifest = fakes.manifest(tmp_path, [{"id": "x", "parts": [{"image": "gone.png"}]}])
  with pytest.raises(ValueError, match=r"no usable document: 1 items, 1 of them bad.*\n.*\(x\): "
                     "missing file"):
    run(manifest, tmp_path / "out")
  manifest.write_text("")
  with pytest.raises(ValueError, match="no usable document: 0 items"):
    run(manifest, tmp_path / "empty")


def test_a_file_of_many_documents_is_tokenised_once_in_few_shapes(tmp_path):
  tokenizers = fakes.tokenizers()
  meta = run(fakes.mixed(tmp_path, 120), tmp_path / "out", tokenizers=tokenizers)
  assert meta.counts["audio parts"] == 80 and meta.shards["audio"] == [4 + 39]
  assert meta.counts["image parts"] == 60 and meta.shards["image"] == [4 + 6 + 6 + 9]
  assert sorted(tokenizers.image.shapes) == [(1, h, w, 3) for h in (8, 12) for w in (8, 12)]
  assert tokenizers.audio.shapes == [(32, 12 * fakes.FRAME)]


@pytest.mark.parametrize("n", [1, 63, 64, 65])
def test_batches_keep_order_and_pass_on_what_is_bad(n):
  rng = np.random.default_rng(n)
  shapes = [(4, 4, 3), (8, 4, 3)]
  stream = [Bad("x", str(i)) if i % 7 == 3 else
            np.full(shapes[int(rng.integers(2))], i, np.uint8) for i in range(n)]
  for item, codes in zip(stream, encode.images(fakes.Image(), stream), strict=True):
    if isinstance(item, Bad):
      assert codes is item
    else:
      assert codes.shape == (item.shape[0] // 4, item.shape[1] // 4)
      assert (codes == item[0, 0, 0]).all()
  lengths = rng.integers(1, 60 * fakes.FRAME, n)
  waves = [np.full(length, 0.1 * (1 + i % 9), np.float32) for i, length in enumerate(lengths)]
  for i, (wave, codes) in enumerate(zip(waves, encode.audio(fakes.Audio(), waves), strict=True)):
    assert codes.shape == (-(-len(wave) // fakes.FRAME) + 1, fakes.Q + 1)
    assert (codes[:-1, 0] == 1 + i % 9).all() and codes[-1, 0] == 0, "silence follows"


def test_processes_and_shards_change_no_document(tmp_path):
  manifest = fakes.mixed(tmp_path, 60)
  run(manifest, tmp_path / "a", processes=0)
  run(manifest, tmp_path / "b", processes=2)
  assert digest(tmp_path / "a") == digest(tmp_path / "b")
  meta = run(manifest, tmp_path / "c", shard=SHARD)
  assert [len(meta.shards[k]) for k in ("text", "image", "audio")] == [4, 2, 2]
  assert sorted(digest(tmp_path / "a")) == [
    "audio-00000.bin", "audio-00000.json", "forms.npy", "image-00000.bin", "image-00000.json",
    "lengths.npy", "meta.json", "parts.npy", "rejects.jsonl", "started.json", "starts.npy",
    "text-00000.bin"]
  a, c = records.Records(tmp_path / "a"), records.Records(tmp_path / "c")
  for i in range(60):
    for x, y in zip(a.read(i), c.read(i), strict=True):
      np.testing.assert_array_equal(x.codes, y.codes)
      np.testing.assert_array_equal(x.words, y.words)


def _die(name):
  os._exit(1)


def test_a_decoder_that_dies_is_named():
  with media.pool(1) as pool, pytest.raises(ValueError, match="killed.*one of a.png, b.png"):
    list(pool(["a.png", "b.png"], _die))


def test_codes_outside_of_a_tokenizer_are_refused(tmp_path):
  manifest, tokenizers = fakes.mixed(tmp_path, 30), fakes.tokenizers()
  tokenizers.text.size = 100
  with pytest.raises(ValueError, match="text tokenizer gave ids 101 to 121; it says it has 100"):
    run(manifest, tmp_path / "a", tokenizers=tokenizers)
  tokenizers = fakes.tokenizers()
  tokenizers.audio.codes = 7
  with pytest.raises(ValueError, match="the audio tokenizer gave codes 0 to 7; it says it has 7"):
    run(manifest, tmp_path / "b", tokenizers=tokenizers)


def test_done_is_done_and_other_inputs_are_refused(tmp_path):
  manifest, out = fakes.mixed(tmp_path, 30), tmp_path / "out"
  meta = run(manifest, out)
  before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
  tokenizers = fakes.tokenizers()
  tokenizers.text.encode = None  # not called again
  assert run(manifest, out, tokenizers=tokenizers) == meta
  assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == before

  tokenizers = fakes.tokenizers()
  tokenizers.audio.fingerprint = "audio-b"
  with pytest.raises(ValueError, match="tokenizers.audio.fingerprint was audio-a, is now audio-b"):
    run(manifest, out, tokenizers=tokenizers)
  old = json.loads((out / "started.json").read_text())["source"]
  manifest.write_text(manifest.read_text() + '{"parts": [{"text": "new"}]}\n')
  new = hashlib.sha256(manifest.read_bytes()).hexdigest()[:16]
  with pytest.raises(ValueError, match=f"source was {old}, is now {new}"):
    run(manifest, out)
  assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == before


def test_messages(tmp_path):
  manifest = fakes.mixed(tmp_path, 30)
  with pytest.raises(ValueError, match="none.jsonl is not a file or a folder"):
    run(tmp_path / "none.jsonl", tmp_path / "out")
  with pytest.raises(ValueError, match="is not empty and not a directory of records"):
    run(manifest, tmp_path)
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="can't write records into .*file"):
    run(manifest, tmp_path / "file")
  with pytest.raises(ValueError, match="line 3 has audio, but there is no audio tokenizer"):
    run(manifest, tmp_path / "x", tokenizers=encode.Tokenizers(fakes.Text(), fakes.Image()))


def test_a_crash_between_any_two_writes_is_repaired_to_the_same_bytes(tmp_path, monkeypatch):
  manifest = fakes.mixed(tmp_path, 60)
  run(manifest, tmp_path / "whole", shard=SHARD)
  want, replace, calls = digest(tmp_path / "whole"), os.replace, []

  def failing(source, target):
    calls.append(target)
    if len(calls) == stop_at:
      raise KeyboardInterrupt
    replace(source, target)

  monkeypatch.setattr(os, "replace", failing)
  monkeypatch.setattr(os, "fsync", lambda _: None)
  crashes = 0
  for stop_at in range(1, 100):
    out, calls = tmp_path / f"crash{stop_at}", []
    try:
      run(manifest, out, shard=SHARD, processes=0)
      break
    except KeyboardInterrupt:
      crashes += 1
      assert records.Meta.read(out) is None
    stopped_at, stop_at = stop_at, 0
    run(manifest, out, shard=SHARD)
    assert digest(out) == want, f"stopped at write {stopped_at}"
  assert crashes > 15


_SLOW = """
import pathlib, sys
sys.path[:0] = {path!r}
import fakes
from omnijax.data import prepare
if __name__ == "__main__":
  t = fakes.encode.Tokenizers(fakes.Text(), fakes.Image(), fakes.SlowAudio())
  prepare.prepare(pathlib.Path({manifest!r}), pathlib.Path({out!r}), tokenizers=t,
                  shard={shard!r}, processes={processes}, progress=False)
"""


def test_texts_are_tokenised_by_processes_with_the_same_bytes(tmp_path):
  manifest = fakes.manifest(tmp_path, [{"text": "x" * (i % 50 + 1)} for i in range(200)])
  for name, processes in (("a", 0), ("b", 2), ("c", None)):
    run(manifest, tmp_path / name, processes=processes, shard=SHARD)
  assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "c")


class Dies(fakes.Text):
  def encode(self, text):
    os._exit(1)


def test_a_process_that_dies_over_a_text_is_told(tmp_path):
  manifest = fakes.manifest(tmp_path, [{"text": "x"}] * 40)
  with pytest.raises(ValueError, match="tokenises texts was killed.*soon after line 1"):
    run(manifest, tmp_path / "out", processes=1, shard=SHARD,
        tokenizers=encode.Tokenizers(Dies()))


@pytest.mark.parametrize("processes", [0, 1])
def test_kill_9_and_run_again_gives_the_same_bytes(tmp_path, processes):
  manifest, out = fakes.mixed(tmp_path, 60), tmp_path / "out"
  script = tmp_path / "run.py"
  shard = {**SHARD, v.AUDIO: 1}
  path = [str(pathlib.Path(__file__).parent), str(pathlib.Path(omnijax.__file__).parents[1])]
  script.write_text(_SLOW.format(path=path, manifest=str(manifest), out=str(out), shard=shard,
                                 processes=processes))
  process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
  try:
    deadline = time.monotonic() + 60
    while not (out / "audio-00001.json").exists() and time.monotonic() < deadline:
      assert process.poll() is None, "it ended before it could be killed"
      time.sleep(0.01)
  finally:
    process.kill()
    process.wait()
  assert (out / "audio-00001.json").exists() and records.Meta.read(out) is None
  while True:  # its decoding processes notice and end
    try:
      os.killpg(process.pid, 0)
    except ProcessLookupError:
      break
    assert time.monotonic() < deadline, "a decoding process outlived its parent"
    time.sleep(0.05)
  run(manifest, out, shard=shard)
  run(manifest, tmp_path / "whole", shard=shard)
  assert digest(out) == digest(tmp_path / "whole")


def test_images_of_every_mode_become_what_they_look_like(tmp_path):
  path = tmp_path / "x.png"

  def pixels(image, channels=3):
    image.save(path)
    return media.decode_image(Store(str(tmp_path)), "x.png", channels, 4)[0, 0]

  new = PIL.Image.new
  assert pixels(new("RGB", (4, 4), (1, 2, 3))).tolist() == [1, 2, 3]
  assert pixels(new("RGBA", (4, 4), (1, 2, 3, 0))).tolist() == [255] * 3
  assert pixels(new("L", (4, 4), 9)).tolist() == [9] * 3
  assert pixels(new("LA", (4, 4), (9, 255))).tolist() == [9] * 3
  assert pixels(new("1", (4, 4), 1)).tolist() == [255] * 3
  assert pixels(new("I;16", (4, 4), 65535)).tolist() == [255] * 3
  assert pixels(new("I;16", (4, 4), 257 * 7), channels=1).tolist() == [7]
  assert pixels(new("RGB", (4, 4), (9, 9, 9)), channels=1).tolist() == [9]


def test_audio_is_mixed_down_and_resampled(tmp_path):
  time_s = np.arange(44_100) / 44_100
  left = 0.5 * np.sin(2 * np.pi * 440 * time_s)
  soundfile.write(tmp_path / "x.wav", np.stack([left, 0 * left], 1), 44_100, subtype="FLOAT")
  wave = media.decode_audio(Store(str(tmp_path)), "x.wav", 16_000)
  assert wave.dtype == np.float32 and len(wave) == 16_000
  want = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
  np.testing.assert_allclose(wave[500:-500], want[500:-500], atol=2e-3)
