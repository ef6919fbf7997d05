"""The report of records: its figures by hand, nothing left out, and the records as they were."""

import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
import soundfile
from PIL import Image

from omnijax import cli
from omnijax.data import documents, encode, prepare, records
from omnijax.evals import charts, source_report
from tests.data import fakes
from tests.evals.test_report import Page

FRAME_H = fakes.FRAME / fakes.RATE / 3600


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Records of eight good documents and nine bad ones, with their report."""
  root = tmp_path_factory.mktemp("source")
  fakes.image(root / "a.png", 8, 12, 200)
  fakes.image(root / "b.png", 16, 16, 40)
  fakes.audio(root / "a.wav", 9 * fakes.FRAME, 0.5)  # 10 frames, one of silence after it
  fakes.audio(root / "b.wav", 19 * fakes.FRAME, 0.3)
  fakes.audio(root / "c.wav", 9 * fakes.FRAME, 0.2)
  fakes.audio(root / "long.wav", 385 * fakes.FRAME, 0.7)
  lines = [
    {"parts": [{"image": "a.png"}, {"text": "a <b>"}]},  # 5 ids
    {"parts": [{"image": "a.png"}, {"text": "again"}]},
    {"parts": [{"text": "plain"}]},
    {"parts": [{"audio": "a.wav", "transcript": "seven"}]},
    {"parts": [{"audio": "b.wav", "words": [[0.1, "to"], [0.8, "do"]]}]},
    {"parts": [{"audio": "long.wav"}]},
    {"parts": [{"text": "who?", "role": "user"}, {"image": "b.png", "role": "assistant"}]},
    {"parts": [{"audio": "a.wav", "listen": "c.wav", "transcript": "me"}]},
    *({"id": f"gone{i}", "parts": [{"image": f"gone{i}.png"}]} for i in range(7)),
    {"id": "none", "parts": []}]
  manifest = fakes.manifest(root, lines)
  with manifest.open("a") as file:
    file.write("no JSON <i>\n")
  prepare.prepare(manifest, root / "out", tokenizers=fakes.tokenizers(), progress=False)
  before = digest(root / "out")
  values = source_report.write(root / "out", fakes.tokenizers(), "the <source>")
  return root, values, before


def digest(out):
  return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
          for p in sorted(out.rglob("*")) if p.is_file()}


def test_figures_are_those_of_the_documents(made):
  root, values, _ = made
  assert values == json.loads((root / "out" / "report.json").read_text("utf-8"))
  assert values["items"] == 17 and values["documents"] == 8 and values["rejected"] == 9
  assert values["heldout"] == 0 and values["source"] == "the <source>"
  assert values["parts"] == {"text": 4, "image": 3, "audio": 4}
  frames = 10 + 20 + 386 + 10
  assert values["tokens"] == {"text": 5 + 5 + 5 + 4, "transcripts": 5 + 5 + 2,
                              "image": 6 + 6 + 16, "audio": (frames + 10) * 4}
  assert values["audio"] == pytest.approx({
    "frames": frames, "hours": frames * FRAME_H, "other_side_hours": 10 * FRAME_H,
    "stored_hours": (10 + 20 + 386 + 10) * FRAME_H})
  assert values["images"] == pytest.approx({
    "codes": 28, "megapixels": (96 * 2 + 256) / 1e6, "stored_megapixels": (96 + 256) / 1e6})
  assert values["tasks"] == {"plain": 8, "caption": 2, "draw": 2, "transcribe": 2, "speak": 2,
                             "follow": 1}
  assert set(values["tokenizers"]) == {"text", "image", "audio"}
  # BOS, EOS, parts with what opens and closes them, turns.
  lengths = [2 + 2 + 6 + 5, 15, 7, 2 + 2 + 10, 24, 390, 2 + 1 + 4 + 1 + 2 + 16, 14]
  x = values["positions"]
  assert (x["total"], x["least"], x["most"]) == (sum(lengths), 7, 390)
  assert x["median"] == np.median(lengths) and x["mean"] == pytest.approx(np.mean(lengths))
  edges, counts = x["edges"], x["counts"]
  assert sum(counts) == 8 and edges[:6] == [0, 1, 2, 3, 4, 6] and edges[-1] == 512
  for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True):
    assert n == sum(low <= length < high for length in lengths)
  assert values["frames"]["total"] == frames and values["frames"]["counts"][0] == 4


def test_rejects_are_counted_by_reason_with_a_few_of_each(made):
  root, values, _ = made
  assert [(r["reason"], r["count"], len(r["examples"])) for r in values["rejects"]] == [
    ("missing file", 7, 5), ("empty document", 1, 1), ("invalid JSON", 1, 1)]
  assert values["rejects"][0]["examples"][1] == {
    "id": "gone1", "line": 10, "reason": "missing file: gone1.png: No such file or directory"}
  text = (root / "out" / "report.html").read_text("utf-8")
  assert "17 items = 8 documents + 0 held out + 9 rejected" in text
  assert text.count("<code>gone") == 5 and "missing file: 7" in text


def test_the_page_shows_what_the_codes_keep_and_stands_alone(made):
  root, values, _ = made
  text = (root / "out" / "report.html").read_text("utf-8")
  page = Page(text)
  assert not {t for t, _ in page.seen} & {"script", "link", "iframe"} and "url(" not in text
  assert all(a["src"].startswith("data:") for _, a in page.seen if "src" in a)
  assert all(a.get("aria-label") for t, a in page.seen if t in ("audio", "svg"))
  assert all(h[0] == "#" and h[1:] in page.ids for t, a in page.seen if t == "a"
             for h in [a["href"]])
  assert "Records of the &lt;source&gt;" in text and "<q>a &lt;b&gt;</q>" in text
  assert values["examples"] == list(range(8)) and text.count("<article") == 8
  content = lambda kind: [io.BytesIO(base64.b64decode(x)) for x in re.findall(
    rf'src="data:{kind};base64,([^"]*)"', text)]
  reds = {(x.shape[:2], int(x[0, 0, 0])) for x in map(np.asarray, map(
    Image.open, content("image/png"))) if x.ndim == 3 and x.shape[0] in (8, 16)}
  assert reds == {((8, 12), 200), ((16, 16), 40)}
  waves = [soundfile.read(x)[0] for x in content("audio/flac")]
  assert [len(w) / fakes.FRAME for w in waves] == [10, 20, 375, 10, 10]  # 30 s of the long one
  assert [round(w[0], 1) for w in waves] == [0.5, 0.3, 0.7, 0.5, 0.2]
  assert "the first 30 s played" in text and "heard meanwhile" in text
  assert "0.08 s</time> <q>t</q>" in text and "0.88 s</time> <q>d</q>" in text
  assert "<q>seven</q>" in text and "no transcript" in text
  svgs = [a["aria-label"] for t, a in page.seen if t == "svg"]
  assert any("Documents by positions: 6 to 7: 1; 12 to 15: 4" in name for name in svgs), svgs


def test_records_stay_as_they_were_and_so_does_the_report(made):
  root, values, before = made
  out, now = root / "out", digest(root / "out")
  assert {k: x for k, x in now.items() if not k.startswith("report.")} == before
  assert set(now) - set(before) == {"report.html", "report.json"}
  prepare.prepare(root / "manifest.jsonl", out, tokenizers=fakes.tokenizers(), progress=False)
  assert source_report.write(out, fakes.tokenizers(), "the <source>") == values
  assert digest(out) == now


def test_what_is_held_out_has_a_report_of_its_own(tmp_path, monkeypatch):
  manifest = fakes.mixed(tmp_path, 120)
  with manifest.open("a") as file:
    file.write("{}\n")
  monkeypatch.setattr("omnijax.tokenizers.load.load_all", lambda cfg: encode_all())
  out = tmp_path / "out"
  assert cli.main(["prepare", str(manifest), "--out", str(out), "--heldout", "0.25"]) == 0
  values = json.loads((out / "report.json").read_text())
  held = json.loads((out / "heldout" / "report.json").read_text())
  assert values["heldout"] == held["documents"] == len(records.Records(out / "heldout")) > 10
  assert values["items"] == 121 == values["documents"] + held["documents"] + 1
  assert "rejects" not in held and "Rejected" not in (out / "heldout" / "report.html").read_text()
  page = Page((out / "report.html").read_text())
  assert any(a.get("href") == "heldout/report.html" for t, a in page.seen if t == "a")
  now = digest(out)
  assert cli.main(["prepare", str(manifest), "--out", str(out), "--heldout", "0.25"]) == 0
  assert digest(out) == now


def encode_all():
  tokenizers = fakes.tokenizers()

  class All(tuple):
    text, image, audio = tokenizers.text, tokenizers.image, tokenizers.audio

  return All((tokenizers.text, tokenizers.image, tokenizers.audio))


def test_examples_are_of_every_kind_and_spread():
  counts = np.zeros(1000, documents.COUNTS)
  counts["allows"] = 1
  counts["audio"][500:] = 1
  counts["allows"][[3, 900]] = 7
  found = source_report.chosen(counts)
  assert len(found) == 12 and {3, 900} <= set(found) and found == sorted(found)
  silent = [i for i in found if i < 500 and i != 3]
  assert len(silent) == 5 and silent[0] < 5 and silent[-1] == 499 and max(np.diff(silent)) < 130
  assert source_report.chosen(counts[:4]) == [0, 1, 2, 3]
  counts["allows"] = np.arange(1000) % 50
  assert len(set(source_report.chosen(counts))) == 12


def test_bars_are_as_high_as_their_counts():
  svg = charts.bars([0, 1, 2, 4, 8], [0, 0, 3, 6], colour="--text", title="T", x_label="x",
                    y_label="y")
  heights = [float(x) for x in re.findall(r'<rect [^>]*height="([\d.]+)"', svg)]
  assert len(heights) == 2 and heights[1] == pytest.approx(2 * heights[0], rel=0.01)
  assert 'aria-label="T: 2 to 3: 3; 4 to 7: 6"' in svg and "<title>4 to 7: 6</title>" in svg


def test_without_a_tokenizer_of_sound_there_are_no_hours(tmp_path):
  manifest = fakes.manifest(tmp_path, [{"text": "a"}, {"text": "bc"}])
  only = encode.Tokenizers(fakes.Text())
  prepare.prepare(manifest, tmp_path / "out", tokenizers=only, progress=False)
  values = source_report.write(tmp_path / "out", only, "m")
  assert "audio" not in values and "images" not in values and values["documents"] == 2
  assert "Nothing was rejected: 2 items" in (tmp_path / "out" / "report.html").read_text()
