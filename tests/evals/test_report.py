import html.parser
import json
import re

import numpy as np
import pytest

from omnijax import vocab as vocab_lib
from omnijax.evals import charts, directions, packing, report, report_html
from tests.evals import specimen

_VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
  """Checks that elements nest, and counts them."""

  def __init__(self, text):
    super().__init__()
    self.open, self.seen, self.ids = [], [], []
    self.feed(text)
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.seen.append((tag, dict(attrs)))
    if "id" in dict(attrs):
      self.ids.append(dict(attrs)["id"])
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.seen.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, (tag, self.open[-3:])

  def count(self, tag, name):
    return sum(t == tag and name in a.get("class", "").split() for t, a in self.seen)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp("report")
  material = specimen.material(folder)
  return material, report.write(material, folder), folder


def test_page_is_whole_and_stands_alone(made):
  _, _, folder = made
  text = (folder / "report.html").read_text("utf-8")
  page = Page(text)
  assert page.count("table", "confusion") == 6
  labels = [a["aria-label"] for t, a in page.seen if t == "svg"]
  for kind in vocab_lib.MODALITIES:
    assert any(label.startswith(f"Loss of {kind}") for label in labels), kind
  assert page.count("svg", "packed") == 1 and page.count("table", "document") == 1
  sources = [a["src"] for _, a in page.seen if "src" in a]
  assert len(sources) > 100 and all(s.startswith("data:") for s in sources)
  assert not [t for t, _ in page.seen if t in ("link", "iframe", "object", "embed")]
  assert "@import" not in text and "url(" not in text
  links = [a["href"] for t, a in page.seen if t == "a"]
  assert links and all(h[0] == "#" and h[1:] in page.ids for h in links)
  assert len(set(page.ids)) == len(page.ids)
  assert len(text) < 5_000_000


def test_page_can_be_used_without_eyes_or_mouse(made):
  page = Page((made[2] / "report.html").read_text("utf-8"))
  assert ("html", {"lang": "en"}) in page.seen
  assert all("alt" in a for t, a in page.seen if t == "img")
  named = [a for t, a in page.seen if t in ("button", "audio", "svg")]
  assert named and all(a.get("aria-label") for a in named)
  assert all("controls" in a for t, a in page.seen if t == "audio")


def test_marks_follow_the_answers(made):
  material, _, folder = made
  page = Page((folder / "report.html").read_text("utf-8"))
  shown = [a for some in material.answers.values() for a in some[:9]]
  late = [a for some in material.answers.values() for a in some[9:] if not a.right]
  assert page.count("figure", "right") == sum(a.right for a in shown)
  assert page.count("figure", "wrong") == sum(not a.right for a in shown) + len(late) > 0


def test_json_has_the_promised_fields(made):
  _, values, folder = made
  read = json.loads((folder / "report.json").read_text("utf-8"))
  assert read == values
  assert set(read) >= {"directions", "judges", "tokenizers", "train"}
  assert tuple(read["directions"]) == directions.DIRECTIONS
  for score in read["directions"].values():
    assert score["accuracy"] == 0.9 and score["n"] == 20
    assert score["by_language"]["en"]["accuracy"] == 0.9
  assert read["judges"]["image"]["accuracy"] == read["judges"]["speech"]["accuracy"] == 1
  assert read["train"]["seconds"] == 400 and read["train"]["steps"] == 300
  assert read["train"]["data_wait"] == pytest.approx(0.001 / 0.525, rel=0.1)


def test_text_of_others_is_escaped(made):
  material, values, _ = made
  case = material.answers["image->text"][0].case
  bad = directions.Answer(case=case, text="<script>x</script>", digit=None, language=None)
  answers = {**material.answers, "image->text": [bad]}
  text = report_html.page(
    type(material)(**vars(material) | {"answers": answers, "title": "<b>&"}), values)
  Page(text)
  assert "<script>x" not in text and "&lt;script&gt;x" in text and "<title>&lt;b&gt;&amp;" in text


def test_kinds_of_positions():
  batch = specimen.batch()
  kinds = np.array(packing.kinds(batch, 0, specimen.VOCAB))
  assert set(kinds) == {*packing.KINDS, ""}
  np.testing.assert_array_equal(kinds == "", batch["segment"][0] == 0)
  frames = {}  # by segment
  for at in batch["frame_at"][0]:
    if at < len(kinds):
      segment = int(batch["segment"][0, at])
      frames[segment] = [*frames.get(segment, []), kinds[at]]
  # Of the frames, those that a delay leaves without first or last codes included.
  assert {k: set(v) for k, v in frames.items()} == {1: {"speech heard"}, 2: {"speech spoken"}}
  assert len(frames[1]) == len(frames[2]) == 9
  assert sum(np.char.startswith(kinds, "speech")) == 18
  first, second = (kinds[batch["segment"][0] == s].tolist() for s in (1, 2))
  assert first[:3] == ["control"] * 3 and first[-4:] == ["text"] * 3 + ["control"]
  assert second.count("image") == 16 and second.count("text") == 2


def test_chart_ignores_what_is_missing_and_scales_to_the_rest():
  curve = lambda y: charts.Curve("a", "--text", range(len(y)), y)
  draw = lambda *curves: charts.lines(curves, title="T", x_label="x", y_label="y")
  assert "nothing was recorded" in draw(curve([None, float("nan")]))
  with_gap = draw(curve([1.0, None, 3.0]))
  assert with_gap.count("<path") == 1 and "ends at 3" in with_gap
  assert draw(curve([1.0] * 3000)).count("L") < 2 * 360


def labels(svg):
  """The texts of ticks and axes."""
  return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_curves_that_are_compared_fill_the_chart():
  curves = [charts.Curve(f"<{i}>", "--text", range(20), [3.5 + 0.01 * i] * 20) for i in range(3)]
  one = charts.lines(curves, title="T", x_label="x", y_label="y")
  many = charts.lines(curves, title="T", x_label="x", y_label="y", many=True)
  assert labels(one)[:2] == ["0", "1"] and one.count("<li>") == 3 and one.count('"raw"') == 3
  low, *_, high = [float(t) for t in labels(many)[:-2] if t[0] == "3"]
  assert 3.49 < low <= 3.5 and 3.52 <= high < 3.53 and "<li>" not in many and '"raw"' not in many
  curves.append(charts.Curve("late", "--text", range(200), [9.0] * 10 + [3.6] * 190))
  many = charts.lines(curves, title="T", x_label="x", y_label="y", many=True)
  assert max(float(t) for t in labels(many)[:-2] if "." in t) < 3.7
  assert many.count('data-of="&lt;1&gt;"') == 1
  close = charts.lines([charts.Curve("a", "--text", range(9), [5.0 + 1e-4 * i for i in range(9)])],
                       title="T", x_label="x", y_label="y", many=True)
  assert len(set(labels(close))) == len(labels(close))


def test_points_lie_where_their_values_are():
  def draw(*xs):
    found = [charts.Point("p", "--text", x, float(i)) for i, x in enumerate(xs)]
    svg = charts.points(found, title="T", x_label="x", y_label="y")
    return labels(svg), [float(c) for c in re.findall(r'cx="([\d.]+)"', svg)]

  texts, at = draw(1e-4, 1e-3, 1e-2)
  assert at[1] - at[0] == pytest.approx(at[2] - at[1]) and "0.001" in texts  # decades
  texts, at = draw(1, 2, 4)
  assert at[2] - at[1] == pytest.approx(2 * (at[1] - at[0]))
  texts, at = draw("adamw", "muon", "adamw")
  assert at[0] == at[2] < at[1] and {"adamw", "muon"} <= set(texts)
  assert len(draw(*range(1, 9))[1]) == 8 and len(draw(7.0)[1]) == 1


def test_media_round_trip():
  import base64
  import io

  import soundfile
  from PIL import Image

  content = lambda address: io.BytesIO(base64.b64decode(address.split(",")[1]))
  pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
  np.testing.assert_array_equal(np.asarray(Image.open(content(charts.png(pixels)))), pixels)
  wave = specimen.speak(3, "fr")
  read, rate = soundfile.read(content(charts.flac(wave, 16000)), dtype="float32")
  assert rate == 16000 and content(charts.flac(wave, 16000)).read(4) == b"fLaC"
  np.testing.assert_allclose(read, wave, atol=1e-4)
  low, high = (np.asarray(Image.open(content(charts.spectrogram(specimen.speak(d, "en"), 16000))))
               for d in (0, 9))
  # Higher sounds are brighter further up.
  assert high.sum((1, 2)).argmax() < low.sum((1, 2)).argmax()
