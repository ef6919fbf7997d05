"""The page of a batch: what is in the arrays comes out of them again, and is told to everybody."""

import base64
import dataclasses
import html
import io
import itertools
import json
import re

import numpy as np
import pytest
import soundfile
from PIL import Image

from omnijax import cli, config
from omnijax import vocab as v
from omnijax.data import documents, loader, prepare
from omnijax.evals import media, packing, segments, show, show_html
from tests import tiny
from tests.data import fakes
from tests.evals.test_report import Page

NONE = fakes.VOCAB.no_code


def sound(r, T, words=None, *, timed=False, heard=False, role=documents.NONE):
  """A part of T frames with so many words."""
  codes = lambda: r.integers(0, 64, (T, fakes.Q + 1)).astype(np.int32)
  ids = None if words is None else r.integers(0, 256, words).astype(np.int32)
  if timed:
    at = np.full(T, -1, np.int32)
    at[np.sort(r.choice(T, words, replace=False))] = ids
    ids = at
  return documents.Part(v.AUDIO, role, codes(), ids, timed, codes() if heard else None)


def packed(parts_of, tasks, data):
  """One row of documents and its batch."""
  streams = [documents.render(parts, task, False, data, fakes.VOCAB)
             for parts, task in zip(parts_of, tasks, strict=True)]
  row = loader.assemble(streams, data, fakes.VOCAB, np.random.default_rng(0))
  return {name: x[None] for name, x in row.items()}


@pytest.mark.parametrize("acoustic, text, follow, depth", [
  (1, 0, 6, 0), (0, 0, 0, 0), (2, 3, 4, 20), (0, 2, 3, 9)])
def test_what_was_rendered_is_read_back(acoustic, text, follow, depth):
  r = np.random.default_rng(1)
  data = config.Data(sources=("x",), rows=1, positions=512, frames=256, acoustic_delay=acoustic,
                     text_delay=text, follow_delay=follow, depth_frames=depth, prompt_weight=0.3)
  words, user, answer = np.arange(5, dtype=np.int32), documents.USER, documents.ASSISTANT
  image = r.integers(0, 256, (2, 3)).astype(np.int32)
  docs = [
    [documents.Part(v.TEXT, user, words), documents.Part(v.IMAGE, answer, image),
     documents.Part(v.IMAGE, answer, image.T)],
    [sound(r, 9, 4, role=answer), sound(r, 5, role=user)],
    [sound(r, 8, 3)], [sound(r, 8, 3)], [sound(r, 10, 4, timed=True)],
    [sound(r, 7, 2, timed=True, heard=True)]]
  tasks = [documents.PLAIN, documents.PLAIN, documents.TRANSCRIBE, documents.SPEAK,
           documents.FOLLOW, documents.PLAIN]
  batch = packed(docs, tasks, data)
  learnt = 0
  for segment, (parts, task) in enumerate(zip(docs, tasks, strict=True), 1):
    found = segments.read(batch, 0, segment, data, fakes.VOCAB, documents.TASKS[task])
    at = np.flatnonzero(batch["segment"][0] == segment)
    edges = [(p.start, p.stop) for p in found]
    assert edges[0][0] == at[0] and edges[-1][1] == at[-1] + 1
    assert all(a[1] == b[0] for a, b in itertools.pairwise(edges))
    names = [packing.name(int(p.ids[0]), fakes.VOCAB, str) for p in found if p.kind == "control"]
    assert names[0] == "BOS" and names[-1] == "EOS"
    wanted = documents.arrange(parts, task, False)
    got = [p for p in found if p.kind != "control"]
    assert [p.kind for p in got] == [v.MODALITIES[p.kind] for p in wanted]
    for piece, part in zip(got, wanted, strict=True):
      weight = 0.3 if part.role == user else 1.0
      if piece.kind != "audio":
        np.testing.assert_array_equal(piece.ids, part.codes)
        assert piece.weight == pytest.approx((weight, weight))
        continue
      heard = part.codes if part.role == user else part.heard
      sides = [("speech heard", heard)] if part.role == user else [
        ("speech spoken", part.codes), *([("speech heard", heard)] if heard is not None else [])]
      assert [s.kind for s in piece.sounds] == [kind for kind, _ in sides]
      for s, (_, codes) in zip(piece.sounds, sides, strict=True):
        np.testing.assert_array_equal(s.codes, codes[:, : fakes.Q])
        assert s.hidden == 0
        assert s.learnt == 0 if s.kind == "speech heard" else s.learnt <= s.codes.size
        learnt += s.learnt
      follows = task == documents.FOLLOW
      if part.words is None or part.role == user and not follows:
        told = []
      elif part.timed:
        late = follow if follows else -text
        told = [(i + late, x) for i, x in enumerate(part.words.tolist()) if x >= 0]
      else:
        n = len(part.words)
        told = [(i * len(part.codes) // n - text, x) for i, x in enumerate(part.words.tolist())]
      assert [(t, x - fakes.VOCAB.text_start) for t, x in piece.words
              if x != v.AUDIO_END] == told
  assert learnt == (batch["frame_weight"] > 0).sum() > 0


def test_hidden_codes_are_counted_and_played_as_their_neighbours():
  r = np.random.default_rng(0)
  data = config.Data(sources=("x",), rows=1, positions=64, frames=32, listen_dropout=0.5)
  part = sound(r, 20, role=documents.USER)
  found = segments.read(packed([[part]], [documents.PLAIN], data), 0, 1, data, fakes.VOCAB, "plain")
  (heard,) = next(p for p in found if p.kind == "audio").sounds
  assert 10 < heard.hidden == (heard.codes == NONE).sum() < 50
  there = heard.codes != NONE
  np.testing.assert_array_equal(heard.codes[there], part.codes[:, : fakes.Q][there])
  played = segments.audible(heard, fakes.VOCAB)
  np.testing.assert_array_equal(played[there], heard.codes[there])
  assert played.max() < NONE
  some = np.array([[NONE, 5, NONE], [3, NONE, NONE], [NONE, 6, NONE]], np.int32)
  played = segments.audible(segments.Sound("speech heard", some, 6, 0), fakes.VOCAB)
  np.testing.assert_array_equal(played, [[3, 5], [3, 5], [3, 6]])
  nothing = segments.Sound("speech heard", np.full((4, 3), NONE), 12, 0)
  np.testing.assert_array_equal(segments.audible(nothing, fakes.VOCAB), [[0]] * 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run over two sources of every kind of document, one with text that is no HTML."""
  sources = []
  for name in ("first", "second"):
    root = tmp_path_factory.mktemp(name)
    manifest = fakes.mixed(root, 60)
    if name == "second":
      lines = [{"id": f"x{i}", "text": f"<script>&{i}"} for i in range(8)]
      manifest.write_text(manifest.read_text() + "".join(json.dumps(x) + "\n" for x in lines))
    prepare.prepare(manifest, root / "out", tokenizers=fakes.tokenizers(), progress=False)
    sources.append(str(root / "out"))
  return tiny.run(name="shown", data=config.Data(
    sources=tuple(sources), weights=(1.0, 3.0), rows=6, positions=160, frames=48, window=64,
    prompt_weight=0.3, workers=2, prefetch=3))


@pytest.fixture(scope="module")
def shown(run):
  return show.collect(run, 2, 4, fakes.tokenizers(), fakes.VOCAB)


def test_it_is_the_batch_that_training_gets(run, shown):
  whole = loader.Loader(run.data, fakes.VOCAB, seed=run.train.seed).batch_at(2)
  assert shown.first == 12 and len(shown.rows) == 4
  for name, x in shown.batch.items():
    np.testing.assert_array_equal(x, whole[name][:4])
  frames = whole["frame_at"] < run.data.positions
  assert sum(d.positions for d in shown.everything) == (whole["segment"] > 0).sum()
  assert sum(d.frames for d in shown.everything) == frames.sum() > 0
  assert len(shown.everything) == whole["segment"].max(1).sum()
  for row, some in enumerate(shown.rows):
    for segment, d in enumerate(some, 1):
      assert d.placed.positions == (whole["segment"][row] == segment).sum()
  # 64 documents of a window, three of four from the second source, which has 68.
  low, high = shown.epochs[run.data.sources[1]]
  assert high - low == pytest.approx(48 / 68) and low == pytest.approx(48 / 68 * round(
    low * 68 / 48))
  assert {d.source for d in shown.everything} == set(run.data.sources)


def test_pieces_instructions_and_the_end_of_the_data_are_told(run):
  data = dataclasses.replace(run.data, sources=run.data.sources[1:], weights=(), epochs=(2.0,),
                             rows=24, positions=36, frames=20,
                             prompts=("caption: What?", "draw: Paint:"))
  made = show.collect(dataclasses.replace(run, data=data), 0, 24, fakes.tokenizers(), fakes.VOCAB)
  used = (made.batch["segment"] > 0).sum()
  assert used == sum(d.positions for d in made.everything)
  found = [d for row in made.rows for d in row]
  text = show_html.page(made)
  assert sum(d.placed.piece for d in found) == text.count("a piece of one that is too long") > 0
  assert ("What?" in text) == any(d.placed.task == "caption" for d in found)
  assert ("Paint:" in text) == any(d.placed.task == "draw" and not d.placed.dropped for d in found)
  assert "What?" in text or "Paint:" in text
  with pytest.raises(ValueError, match="the data run out in step"):
    show.collect(dataclasses.replace(run, data=data), 999, 1, fakes.tokenizers(), fakes.VOCAB)


def addresses(text, kind):
  return [io.BytesIO(base64.b64decode(x)) for x in
          re.findall(rf'src="data:{kind};base64,([^"]*)"', text)]


def test_pictures_and_sounds_are_those_of_the_batch(shown):
  text = show_html.page(shown)
  pictures = [p.ids for row in shown.rows for d in row for p in d.pieces if p.kind == "image"]
  heard = [s for row in shown.rows for d in row for p in d.pieces for s in p.sounds]
  assert len(pictures) > 5 and len(heard) > 5
  seen = [x for x in map(np.asarray, map(Image.open, addresses(text, "image/png")))
          if x.shape[0] in (8, 12)]
  assert len(seen) == len(pictures)
  for pixels, codes in zip(seen, pictures, strict=True):
    red = pixels if pixels.ndim == 2 else pixels[..., 0]
    np.testing.assert_array_equal(red[::4, ::4], codes)
  waves = [soundfile.read(x)[0] for x in addresses(text, "audio/flac")]
  assert len(waves) == len(heard)
  for wave, s in zip(waves, heard, strict=True):
    loud = np.clip(s.codes[:, 0] / 10, 0, 1)
    np.testing.assert_allclose(wave[:: fakes.FRAME], loud, atol=1e-3)


def test_the_page_tells_everything_and_stands_alone(run, shown):
  text = show_html.page(shown)
  page = Page(text)
  tags = {t for t, _ in page.seen}
  assert not tags & {"script", "link", "iframe", "object", "embed"} and "url(" not in text
  assert all(a["src"].startswith("data:") for _, a in page.seen if "src" in a)
  links = [a["href"] for t, a in page.seen if t == "a"]
  assert all(h[0] == "#" and h[1:] in page.ids for h in links)
  assert len(set(page.ids)) == len(page.ids)
  documents_shown = sum(map(len, shown.rows))
  assert len([t for t, _ in page.seen if t == "article"]) == documents_shown
  # Of each document in the picture of the rows a link, with a name; of media too.
  for t, a in page.seen:
    if t in ("audio", "svg"):
      assert a["aria-label"]
    if t == "img":
      assert "alt" in a
  named = [a for t, a in page.seen if t == "a" and "aria-label" in a]
  assert len(named) == documents_shown
  assert named[0]["aria-label"].startswith(f"row 0, document 1: {shown.rows[0][0].placed.task}, ")
  assert all("controls" in a for t, a in page.seen if t == "audio")
  first = shown.rows[0][0].placed
  assert f"{first.source}</code> #{first.document}: {first.task}, positions 0 to " in text
  pad = (shown.batch["segment"] == 0).mean(1)
  for share in pad:
    assert f"<td>{share:.1%}</td>" in text
  assert "\u00d70.3</small>" in text and "\u00d70</small>" in text and "\u00d71</small>" in text
  for name in ("BOS", "EOS", "USER", "ASSIST", "LISTEN", "SPEAK", "2 rows"):
    assert f">{name} <small>" in text, name
  assert "0.00 s</time> <q>" in text and "END</li>" in text
  for source in run.data.sources:
    assert f"<code>{html.escape(source)}</code></th>" in text


def test_text_of_others_is_escaped(run):
  data = dataclasses.replace(run.data, sources=run.data.sources[1:], weights=())
  many = show.collect(dataclasses.replace(run, data=data), 0, 6, fakes.tokenizers(), fakes.VOCAB,
                      show.Past(notes=["<b>"]))
  text = show_html.page(many)
  Page(text)
  assert "<script" not in text and "&lt;script&gt;&amp;" in text and "<li>&lt;b&gt;</li>" in text


def test_where_the_loss_is_can_be_seen(shown):
  text = packing.packed(shown.batch, fakes.VOCAB, 4)
  S, left, wide = shown.run.data.positions, 34, 1000 - 34
  codes = np.zeros((4, S), bool)
  for row, frame in zip(*np.nonzero(shown.batch["frame_weight"].any(-1)), strict=True):
    codes[row, shown.batch["frame_at"][row, frame]] = True
  assert codes.any()
  for colour, learnt in (("--ink", shown.batch["weight"] > 0), ("--speak", codes)):
    drawn = np.zeros((4, S), bool)
    for x, y, w, h in re.findall(rf'var\({colour}\)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" '
                                 r'height="([\d.]+)"/>', text):
      start, stop = (round((float(x) + n - left) * S / wide) for n in (0, float(w)))
      drawn[int(float(y) // 38), start:stop] = True
      assert 0 < float(h) <= 3.2
    np.testing.assert_array_equal(drawn, learnt)
  weights = re.findall(r'<td class="weight">([\d.]+)</td>', packing.document(
    shown.batch, 0, 1, fakes.VOCAB, str))
  want = shown.batch["weight"][0][shown.batch["segment"][0] == 1]
  np.testing.assert_allclose([float(w) for w in weights], want, rtol=1e-2)


@pytest.fixture
def past(run, tmp_path, monkeypatch):
  """A run that went back from step 8 to 4, and at 6 got 8 rows and more drawings; saved at 9."""
  now = dataclasses.replace(run, data=dataclasses.replace(
    run.data, rows=8, tasks=config.Tasks(draw=3.0)), train=config.Train(steps=20))
  events = [{"kind": "went back", "step": 4, "from": 8, "row": 48},
            {"kind": "changed", "step": 6, "row": 60, "settings": {
              "data.rows": [6, 8], "data.tasks.draw": [1.0, 3.0]}}]
  (tmp_path / "config.json").write_text(config.to_json(now))
  (tmp_path / "checkpoints" / "9").mkdir(parents=True)
  found = {"format": show.identity_lib.FORMAT, "config": json.loads(config.to_json(now)),
           "vocab": dataclasses.asdict(fakes.VOCAB), "tokenizers": {}, "data": "", "events": events}
  monkeypatch.setattr(show.identity_lib, "read", lambda where: found)
  return tmp_path, found, now


@pytest.mark.parametrize("step, rows, draw, first", [
  (3, 6, 1.0, 18), (4, 6, 1.0, 48), (5, 6, 1.0, 54), (6, 8, 3.0, 60), (7, 8, 3.0, 68)])
def test_a_step_of_a_run_is_shown_as_it_was(past, step, rows, draw, first):
  then, known = show.of_run(past[0], step)
  assert (then.data.rows, then.data.tasks.draw) == (rows, draw)
  made = show.collect(then, step, 2, fakes.tokenizers(), fakes.VOCAB, known)
  assert made.first == first
  whole = loader.Loader(dataclasses.replace(then.data, workers=0), fakes.VOCAB, seed=0)
  np.testing.assert_array_equal(made.batch["main"], next(
    whole.iterate(step, step + 1, first))["main"][:2])
  assert sum("went back from step 8 to 4" in note for note in known.notes) == (step >= 4)
  assert sum("data.rows 6 \u2192 8" in note for note in known.notes) == (step >= 6)


def test_records_that_are_others_are_refused(past):
  folder, found, now = past
  found["events"][1]["settings"]["records"] = ["a", "b"]
  with pytest.raises(ValueError, match="read other records at step 5 than it does now"):
    show.of_run(folder, 5)
  found["data"] = "f00"
  then, known = show.of_run(folder, 7)
  with pytest.raises(ValueError, match="are not those that the run was trained on"):
    show.collect(then, 7, 1, fakes.tokenizers(), fakes.VOCAB, known)
  # A change that no checkpoint has seen yet.
  more = dataclasses.replace(now, data=dataclasses.replace(now.data, rows=2))
  (folder / "config.json").write_text(config.to_json(more))
  then, known = show.of_run(folder, 10)
  assert then.data.rows == 2 and known.events[-1]["row"] == 60 + 3 * 8 and not known.data
  assert show.of_run(folder, 8)[0].data.rows == 8
  assert any("This is what would come next" in n.replace("this", "This")
             for n in show.of_run(folder, 20)[1].notes)


def test_the_command_writes_a_page(run, tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(show.tokenizers_lib, "load_all", lambda cfg: fakes.tokenizers())
  monkeypatch.setattr(show.tokenizers_lib, "vocab_of", lambda made, cfg: fakes.VOCAB)
  monkeypatch.chdir(tmp_path)
  experiment = tmp_path / "shown_experiment.py"  # its folder stays on the path
  experiment.write_text("from omnijax import config\ndef run():\n"
                        f"  return config.from_json({config.to_json(run)!r})\n")
  assert cli.main(["data", "show", str(experiment), "--step", "1", "--data.rows", "2"]) == 0
  assert capfd.readouterr().out.startswith("shown_step_1.html: step 1 of shown, rows 0 to 1 of 2")
  Page((tmp_path / "shown_step_1.html").read_text("utf-8"))
  folder = tmp_path / "run"
  folder.mkdir()
  (folder / "config.json").write_text(config.to_json(run))
  assert cli.main(["data", "show", str(folder), "--step", "1", "--rows", "1",
                   "--out", "a.html"]) == 0
  assert "rows 0 to 0 of 6" in capfd.readouterr().out and (tmp_path / "a.html").exists()
  assert [p.name for p in folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize("argv, message", [
  (("none.py", "--step", "1"), "there is no experiment file none.py"),
  ((".", "--step", "1"), ". is no run: there is no config.json"),
  ((".",), "--step is missing"),
  ((), "EXPERIMENT is missing"),
  ((".", "--step", "1", "--data.rows", "2"), "--data.rows has no effect on .: a run is shown"),
  ((".", "--step", "-1"), "--step is -1 and --rows 4; wanted a step from 0 on"),
])
def test_bad_commands_of_show(argv, message, tmp_path, monkeypatch, capfd):
  monkeypatch.chdir(tmp_path)
  assert cli.main(["data", "show", *argv]) == 2
  out, err = capfd.readouterr()
  assert message in err and err.count("\n") == 1 and out == ""


def test_media_are_decoded_once_and_together():
  calls = []

  class Decoder:
    def decode(self, codes):
      calls.append(codes.shape)
      return codes / 255.0

  codes = [np.full((2, 2), i % 3) for i in range(9)] + [np.zeros((1, 2), int)]
  found = media.decoded(codes, [], type("T", (), {"image": Decoder()}))
  assert sorted(calls) == [(1, 1, 2), (3, 2, 2)] and len(found) == 4
  assert all(found[media.key(c)].tolist() == c.tolist() for c in codes)
