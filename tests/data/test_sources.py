"""What people have on their disks, read as documents: every form, and what is wrong with it."""

import io
import json
import sys
import tarfile

import fakes
import numpy as np
import pytest
import soundfile

from omnijax import vocab as v
from omnijax.data import documents as d
from omnijax.data import media, sources
from omnijax.data.sources import Bad, RawPart, Store, lines, rows, store

text = lambda value, role=d.NONE: RawPart(v.TEXT, role, value)
image = lambda value, role=d.NONE: RawPart(v.IMAGE, role, value)


def parts(row):
  item = rows.item(1, "x", row)
  if isinstance(item.parts, Bad):
    raise item.parts
  return list(item.parts)


@pytest.mark.parametrize(("row", "wanted"), [
  ({"text": "a"}, [text("a")]),
  ({"caption": "a", "image": "a.png"}, [image("a.png"), text("a")]),
  ({"images": ["a.png", "b.png"], "text": "ab"}, [image("a.png"), image("b.png"), text("ab")]),
  ({"audio_filepath": "a.wav", "text": "hi", "duration": 1.0},
   [RawPart(v.AUDIO, 0, "a.wav", "hi")]),
  ({"file_name": "a.PNG", "text": "a"}, [image("a.PNG"), text("a")]),
  ({"texts": ["a", None, "b"], "images": [None, "x.png", None]},
   [text("a"), image("x.png"), text("b")]),
  ({"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": [
    {"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": "a.png"}}]},
    {"role": "assistant", "content": "a"}]},
   [text("be kind"), text("what?", d.USER), image("a.png", d.USER), text("a", d.ASSISTANT)]),
  ({"messages": [{"role": "user", "content": [{"type": "audio", "audio": "q.wav"}]},
                 {"role": "assistant", "content": "8"}]},
   [RawPart(v.AUDIO, d.USER, "q.wav"), text("8", d.ASSISTANT)]),
  ({"conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a"}],
    "image": "a.png"},
   [image("a.png", d.USER), text("what?", d.USER), text("a", d.ASSISTANT)]),
  ({"parts": [{"audio": "c.wav", "channel": 1, "listen": "c.wav#0",
               "words": [[0.1, "hi"], {"start": 0.5, "word": " there"}]}]},
   [RawPart(v.AUDIO, 0, "c.wav#1", "hi there", ((0.1, "hi"), (0.5, "there")), "c.wav#0")]),
])
def test_rows(row, wanted):
  assert parts(row) == wanted


@pytest.mark.parametrize(("row", "kind", "says"), [
  ({"label": 3}, "bad document", "the columns"),
  ({"texts": ["a"], "images": []}, "bad document", "1 texts and 0 images"),
  ({"messages": [{"role": "wizard", "content": "a"}]}, "bad document", "'wizard'"),
  ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "unknown modality", "video"),
  ({"messages": []}, "empty document", "no parts"),
  ({"conversations": [{"from": "human", "value": "<image>"}]}, "bad document", "more <image>"),
  ({"conversations": [{"from": "human", "value": "a"}], "image": "a.png"}, "bad document",
   "no turn mentions"),
  ({"audio": "a.wav", "words": [[0.5, "a"], [0.1, "b"]]}, "bad document", "follow each other"),
  ({"audio": "a.wav", "words": [[-1, "a"]]}, "bad document", "wanted \\[seconds, word\\]"),
  ({"audio": "a.wav", "words": "a"}, "bad document", "words is 'a'"),
  ({"audio": "a.wav", "channel": -1}, "bad document", "channel is -1"),
  ({"parts": [{"audio": "a.wav", "role": "user", "listen": "b.wav"}]}, "bad document",
   "another side"),
  ({"image": 5}, "bad document", "image is 5"),
])
def test_bad_rows(row, kind, says):
  with pytest.raises(Bad, match=says) as bad:
    parts(row)
  assert bad.value.kind == kind


def make_folder(root):
  (root / "sub").mkdir(parents=True)
  fakes.image(root / "cat.png", 8, 8, 10)
  (root / "cat.txt").write_text("a cat\n")
  fakes.audio(root / "sub" / "clip.wav", 3000, 0.1)
  (root / "sub" / "clip.txt").write_text("hello")
  (root / "note.txt").write_text("only text")
  (root / "sub" / "talk.json").write_text(json.dumps({"words": [[0.0, "hi"]], "id": 7}))
  fakes.audio(root / "sub" / "talk.wav", 3000, 0.2)
  (root / "what.xyz").write_text("?")
  (root / "latin.txt").write_bytes(b"caf\xe9")
  (root / ".hidden.txt").write_text("no")


def by_id(source):
  items = list(source.items())
  assert [i.line for i in items] == list(range(1, len(items) + 1))
  return {i.id: i.parts if isinstance(i.parts, Bad) else list(i.parts) for i in items}


def test_a_folder(tmp_path):
  make_folder(tmp_path / "f")
  source = sources.find(tmp_path / "f")
  assert source.kind == "folder"
  found = by_id(source)
  assert found.pop("what").kind == "unknown modality" and found.pop("latin").kind == "invalid UTF-8"
  assert found == {
    "cat": [image("cat.png"), text("a cat")], "note": [text("only text")],
    "sub/clip": [RawPart(v.AUDIO, 0, "sub/clip.wav", "hello")],
    "7": [RawPart(v.AUDIO, 0, "sub/talk.wav", "hi", ((0.0, "hi"),))]}
  before = source.fingerprint()
  (tmp_path / "f" / "cat.txt").write_text("another cat")
  assert sources.find(tmp_path / "f").fingerprint() != before


def make_tar(path, files):
  with tarfile.open(path, "w") as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))


def media_files(root):
  fakes.image(root / "x.png", 8, 8, 10)
  fakes.audio(root / "x.wav", 3000, 0.1)
  return (root / "x.png").read_bytes(), (root / "x.wav").read_bytes()


def test_webdataset_shards(tmp_path):
  png, wav = media_files(tmp_path)
  shards = tmp_path / "shards"
  shards.mkdir()
  make_tar(shards / "0.tar", {"a/1.png": png, "a/1.txt": b"one", "a/2.cls": b"3",
                              "a/3.input.png": png, "a/3.txt": b"three"})
  make_tar(shards / "1.tar", {"4.wav": wav, "4.json": b'{"text": "four", "image": "/old/a.png"}',
                              "5.txt": b"five"})
  source = sources.find(shards)
  found = by_id(source)
  assert source.kind == "tars"
  assert found["0.tar/a/2"].kind == "unknown modality"
  assert found["1.tar/5"] == [text("five")]
  (picture, words), (sound,) = found["0.tar/a/3"], found["1.tar/4"]
  assert words == text("three") and sound.transcript == "four"
  assert picture.value.startswith("0.tar@") and picture.value.endswith("/a/3.input.png")
  assert source.store.read(picture.value, 1 << 20) == png
  assert source.store.read(sound.value, 1 << 20) == wav
  assert by_id(sources.find(shards / "1.tar"))["1.tar/5"] == [text("five")]


def test_a_truncated_shard_gives_what_lies_before_the_break(tmp_path):
  png, _ = media_files(tmp_path)
  path = tmp_path / "0.tar"
  make_tar(path, {f"{i}.{kind}": png if kind == "png" else b"x"
                  for i in range(3) for kind in ("png", "txt")})
  whole = path.read_bytes()
  ends = []
  for size in range(0, len(whole), 97):
    path.write_bytes(whole[:size])
    found = by_id(sources.find(path))
    good = [k for k, p in found.items() if not isinstance(p, Bad)]
    bad = [p.kind for p in found.values() if isinstance(p, Bad)]
    assert good == [f"0.tar/{i}" for i in range(len(good))]
    assert bad or len(good) == 3, "what is lost is told"
    for key in good:
      assert sources.find(path).store.read(found[key][0].value, 1 << 20) == png
    ends.append(len(good))
  assert ends == sorted(ends) and set(ends) == {0, 1, 2, 3}


def test_parquet_as_hugging_face_has_it(tmp_path):
  import pyarrow as pa
  import pyarrow.parquet as pq
  png, wav = media_files(tmp_path)
  cell = lambda b, p=None: {"bytes": b, "path": p}
  folder = tmp_path / "t"
  folder.mkdir()
  pq.write_table(pa.table({
    "image": [cell(png, "a.png"), cell(png), cell(None, "beside.png")],
    "text": ["a", "b", "c"], "label": [1, 2, 3]}), folder / "0.parquet", row_group_size=2)
  pq.write_table(pa.table({"audio": [cell(wav, "q.wav")] * 2, "sentence": ["hi", "there"]}),
                 folder / "1.parquet")
  pq.write_table(pa.table({"jpg": pa.array([png, png], pa.binary()), "caption": ["x", "y"]}),
                 folder / "2.parquet")
  pq.write_table(pa.table({"images": [[cell(png), cell(png)], []], "text": ["two", "none"]}),
                 folder / "3.parquet")
  pq.write_table(pa.table({"messages": [[{"role": "user", "content": "2?"},
                                         {"role": "assistant", "content": "4"}]], "id": [12]}),
                 folder / "4.parquet")
  pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "5.parquet")
  (folder / "6.parquet").write_bytes((folder / "1.parquet").read_bytes()[:-20])
  source = sources.find(folder)
  found = by_id(source)
  print(found)
  assert found["0.parquet@0:1"] == [image("0.parquet@0:1/image.bytes"), text("b")]
  assert found["0.parquet@1:0"] == [image("beside.png"), text("c")]
  assert found["1.parquet@0:1"] == [RawPart(v.AUDIO, 0, "1.parquet@0:1/audio.bytes", "there")]
  assert found["2.parquet@0:0"] == [image("2.parquet@0:0/jpg"), text("x")]
  assert found["3.parquet@0:0"] == [image("3.parquet@0:0/images.0.bytes"),
                                    image("3.parquet@0:0/images.1.bytes"), text("two")]
  assert found["3.parquet@0:1"] == [text("none")]
  assert found["12"] == [text("2?", d.USER), text("4", d.ASSISTANT)]
  assert found["5.parquet"].kind == "empty table" and found["6.parquet"].kind == "unreadable table"
  for ps in found.values():
    for p in [] if isinstance(ps, Bad) else ps:
      if p.kind and p.value != "beside.png":
        assert source.store.read(p.value, 1 << 20) == (png if p.kind == v.IMAGE else wav)
  with pytest.raises(Bad, match="no bytes"):
    source.store.open("0.parquet@1:0/image.bytes")


def test_long_texts_are_cut_at_the_ends_of_paragraphs(tmp_path, monkeypatch):
  monkeypatch.setattr(lines, "TEXT_BLOCK", 50)
  whole = "".join(f"paragraph {i} with ünïcode.\n\n" for i in range(20))
  (tmp_path / "a.txt").write_text(whole, "utf-8")
  (tmp_path / "b.txt").write_text("short")
  (tmp_path / "c.txt").write_text("x" * 120)
  found = by_id(sources.find(tmp_path))
  pieces = [p[0].value for k, p in found.items() if k.startswith("a.txt")]
  assert len(pieces) > 5 and "\n\n".join(pieces) == whole.strip()
  assert found["b.txt"] == [text("short")]
  assert "".join(p[0].value for k, p in found.items() if k.startswith("c.txt")) == "x" * 120


def test_gzipped_lines_and_texts(tmp_path):
  import gzip
  whole = "".join(json.dumps({"text": f"{i} {'x' * 50}"}) + "\n" for i in range(50)).encode()
  for name in ("c4.json.gz", "a.jsonl.gz"):
    (tmp_path / name).write_bytes(gzip.compress(whole))
    assert len(by_id(sources.find(tmp_path / name))) == 50
  assert sources.find(tmp_path).kind == "lines" and len(list(sources.find(tmp_path).items())) == 100
  rng = np.random.default_rng(0)
  noise = "".join(json.dumps({"text": str(rng.random(9).tolist())}) + "\n" for _ in range(300))
  packed = gzip.compress(noise.encode())
  (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
  found = list(sources.find(tmp_path / "a.jsonl.gz").items())
  assert 50 < len(found) < 300 and found[-1].parts.kind == "truncated file"
  assert not any(isinstance(i.parts, Bad) for i in found[:-1])
  (tmp_path / "book.txt.gz").write_bytes(gzip.compress(b"a long story"))
  assert by_id(sources.find(tmp_path / "book.txt.gz")) == {"book.txt.gz": [text("a long story")]}
  (tmp_path / "book.txt.gz").write_bytes(gzip.compress(b"a long story")[:-9])
  (bad,) = by_id(sources.find(tmp_path / "book.txt.gz")).values()
  assert bad.kind == "truncated file"


def test_lines_of_several_files_are_counted_on(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}\n')
  (tmp_path / "b.jsonl").write_text('nonsense\n{"text": "c", "id": "mine"}\n')
  items = list(sources.find(tmp_path).items())
  assert [(i.line, i.id) for i in items] == [
    (1, "a.jsonl line 1"), (3, "a.jsonl line 3"), (4, "b.jsonl line 1"), (5, "mine")]


def test_urls(tmp_path):
  import fsspec
  png, _ = media_files(tmp_path)
  memory = fsspec.filesystem("memory")
  memory.pipe("/bucket/a/cat.png", png)
  memory.pipe("/bucket/a/cat.txt", b"a cat")
  memory.pipe("/bucket/m.jsonl", b'{"image": "a/cat.png", "text": "a cat"}\n')
  source = sources.find("memory://bucket/a")
  assert by_id(source) == {"cat": [image("cat.png"), text("a cat")]}
  assert source.store.read("cat.png", 1 << 20) == png
  source = sources.find("memory://bucket/m.jsonl")
  assert source.store.read(next(source.items()).parts[0].value, 1 << 20) == png
  with pytest.raises(Bad, match="missing file"):
    source.store.open("gone.png")


def test_what_is_no_source(tmp_path):
  with pytest.raises(ValueError, match="is not a file or a folder"):
    sources.find(tmp_path / "gone")
  with pytest.raises(ValueError, match="is empty"):
    sources.find(tmp_path)
  (tmp_path / "a.tar.gz").write_bytes(b"x")
  with pytest.raises(ValueError, match="compressed.*unpack it"):
    sources.find(tmp_path / "a.tar.gz")
  (tmp_path / "a.doc").write_bytes(b"x")
  with pytest.raises(ValueError, match="unknown form; wanted .jsonl"):
    sources.find(tmp_path / "a.doc")


@pytest.mark.parametrize(("name", "extra", "library"), [
  ("a.parquet", "parquet", "pyarrow.parquet"), ("memory://a.txt", "cloud", "fsspec")])
def test_libraries_that_are_not_installed_are_named(monkeypatch, name, extra, library):
  monkeypatch.setitem(sys.modules, library, None)
  with pytest.raises(ValueError, match=f"install the extra `{extra}`"):
    (store.parquet if extra == "parquet" else store.fsspec)(name)


@pytest.mark.parametrize(("url", "says"), [
  ("gs://bucket/a.jsonl", "install the extra `cloud`"),
  ("nothing://a.jsonl", "can't be opened: Protocol not known: nothing.*such as gs://")])
def test_urls_that_cannot_be_opened(url, says, monkeypatch):
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  with pytest.raises(ValueError, match=says):
    sources.find(url)


def test_a_missing_library_is_told_before_anything_is_written(tmp_path, monkeypatch):
  (tmp_path / "a.parquet").write_bytes(b"x")
  monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
  with pytest.raises(ValueError, match="install the extra `parquet`"):
    sources.find(tmp_path / "a.parquet")


def test_channels_silence_and_length(tmp_path):
  wave = np.stack([np.full(4000, 0.25), np.zeros(4000)], 1)
  soundfile.write(tmp_path / "two.wav", wave, 16_000)
  opened = Store(str(tmp_path))
  np.testing.assert_allclose(media.decode_audio(opened, "two.wav", 16_000), 0.125, atol=1e-4)
  np.testing.assert_allclose(media.decode_audio(opened, "two.wav#0", 16_000), 0.25, atol=1e-4)
  assert not media.decode_audio(opened, "two.wav#1", 16_000).any()
  assert media.decode_audio(opened, "two.wav#1", 16_000, quiet=False).kind == "silent audio"
  assert media.decode_audio(opened, "two.wav#2", 16_000).kind == "no such channel"
  soundfile.write(tmp_path / "long.flac", np.zeros(8000 * 3600 * 4 + 9000, np.int16), 8000)
  assert media.decode_audio(opened, "long.flac", 16_000).kind == "audio too long"


def test_a_long_recording_is_resampled_in_blocks_without_seams(tmp_path, monkeypatch):
  rng = np.random.default_rng(0)
  wave = 0.1 * np.sin(np.arange(8000 * 3) * 0.3) + 0.01 * rng.standard_normal(8000 * 3)
  soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="FLOAT")
  opened = Store(str(tmp_path))
  whole = media.decode_audio(opened, "a.wav", 16_000)
  monkeypatch.setattr(media, "_BLOCK_S", 0.7)
  parts_of = media.decode_audio(opened, "a.wav", 16_000)
  assert abs(len(parts_of) - len(whole)) <= 1
  n = min(len(whole), len(parts_of))
  np.testing.assert_allclose(parts_of[:n], whole[:n], atol=1e-3)


def test_what_libsndfile_cannot_read_is_read_by_av(tmp_path):
  import av
  rate, wave = 16_000, (3000 * np.sin(np.arange(16_000) * 0.2)).astype(np.int16)
  for name, codec, form in (("a.g722", "g722", "g722"), ("a.m4a", "aac", "ipod"),
                            ("b.wav", "aac", "mp4")):
    with av.open(str(tmp_path / name), "w", format=form) as container:
      stream = container.add_stream(codec, rate=rate, layout="mono")
      frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
      frame.rate = rate
      for packet in [*stream.encode(frame), *stream.encode(None)]:
        container.mux(packet)
    found = media.decode_audio(Store(str(tmp_path)), name, rate)
    assert not isinstance(found, Bad), found
    assert abs(len(found) - len(wave)) <= 2048
    np.testing.assert_allclose(np.abs(found[4000:12000]).max(), 3000 / 32768, rtol=0.1)
  (tmp_path / "bad.m4a").write_bytes((tmp_path / "a.m4a").read_bytes()[:300])
  assert media.decode_audio(Store(str(tmp_path)), "bad.m4a", rate).kind == "unreadable audio"


def test_pictures_are_scaled_down_to_a_size(tmp_path):
  import PIL.Image
  opened = Store(str(tmp_path))
  PIL.Image.new("RGB", (100, 51), (200, 0, 0)).save(tmp_path / "a.png")
  assert media.decode_image(opened, "a.png", 3, 4).kind == "image size"
  pixels = media.decode_image(opened, "a.png", 3, 4, 32)
  assert pixels.shape == (16, 32, 3) and (pixels == [200, 0, 0]).all()
  assert media.decode_image(opened, "a.png", 3, 4, 200).shape == (52, 100, 3)
  palette = PIL.Image.new("P", (40, 40))
  palette.putpalette([0, 0, 0, 10, 20, 30])
  palette.paste(1, (0, 0, 40, 40))
  palette.save(tmp_path / "p.gif")
  assert (media.decode_image(opened, "p.gif", 3, 4, 16) == [10, 20, 30]).all()


def test_a_picture_that_would_fill_memory_is_refused_unread(tmp_path):
  import resource
  import zlib
  # 60,000 x 60,000 pixels of one colour: some kB of file, 10 GB in memory.
  side = 60_000
  chunk = lambda kind, data: (len(data).to_bytes(4, "big") + kind + data
                              + zlib.crc32(kind + data).to_bytes(4, "big"))
  head = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
  (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(
    b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b""))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  bad = media.decode_image(Store(str(tmp_path)), "bomb.png", 3, 8, 64)
  assert bad.kind == "image too large" and "bomb.png" in bad.detail
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_a_wrong_extension_changes_nothing_where_the_content_is_known(tmp_path):
  png, wav = media_files(tmp_path)
  (tmp_path / "a.jpg").write_bytes(png)
  (tmp_path / "a.mp3").write_bytes(wav)
  (tmp_path / "b.png").write_bytes(wav)
  (tmp_path / "b.wav").write_bytes(png)
  opened = Store(str(tmp_path))
  assert media.decode_image(opened, "a.jpg", 3, 4).shape == (8, 8, 3)
  assert len(media.decode_audio(opened, "a.mp3", 16_000)) == 3000
  assert media.decode_image(opened, "b.png", 3, 4).kind == "unreadable image"
  assert media.decode_audio(opened, "b.wav", 16_000).kind == "unreadable audio"
