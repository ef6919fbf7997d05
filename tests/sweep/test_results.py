"""What a sweep tells when it has ended: figures, ranks, a table, and a page."""

import csv
import json
import re
from html import parser

import pretend
import pytest

from omnijax import config
from omnijax.sweep import figures, page, results, space
from omnijax.sweep import manifest as manifest_lib

STEPS = 20


def write(entry, losses, heldout=()):
  """What training leaves behind."""
  entry.trial.dir.mkdir(parents=True, exist_ok=True)
  with (entry.trial.dir / "metrics.jsonl").open("w") as file:
    for step, loss in enumerate(losses):
      line = {"step": step, "loss": loss, "loss/text": loss / 2, "loss/image": None,
              "bits_per_byte": loss / 4, "tokens_per_s": 100.0 + step, "step_s": 0.5}
      file.write(json.dumps(line) + "\n")
    file.write('{"step": 999, "lo')  # being written
  with (entry.trial.dir / "eval.jsonl").open("w") as file:
    for step, loss in heldout:
      file.write(json.dumps({"step": step, "eval/loss": loss, "eval/loss/text": loss * 2}) + "\n")
  entry.value, entry.state = losses[-1], "done"


@pytest.fixture
def book(tmp_path):
  """Four trials: the second is the best, the third was stopped before its end, the last failed."""
  made = manifest_lib.Manifest(tmp_path)
  base = pretend.run(train={"steps": STEPS})
  for run in space.grid(base, {"optim.peak_lr": (1e-3, 1e-2), "optim.kind": ("adamw", "muon")}):
    made.add(run)
  for entry, low in zip(made.listed, (3.0, 2.0, 1.0, 9.0), strict=True):
    write(entry, [low + 1 - i / STEPS for i in range(STEPS)], [(10, low + 0.5), (20, low + 0.25)])
  made.listed[2].state = "pruned"
  made.listed[3].state, made.listed[3].why = "failed", "no <room> & no time"
  (made.listed[3].trial.dir / "metrics.jsonl").unlink()
  (made.listed[3].trial.dir / "eval.jsonl").unlink()
  return made


def test_figures_are_means_at_the_end(book):
  trial = book.listed[0].trial
  assert figures.final(trial, "loss") == pytest.approx((3.1 + 3.05) / 2)  # of the last tenth
  assert figures.final(trial, "loss/image") is None
  assert figures.final(trial, "eval/loss") == 3.25
  assert figures.final(trial, "tokens_per_s") == 109.5
  # What came after the steps that it was to have, as of a run that somebody went on with, is none.
  with (trial.dir / "eval.jsonl").open("a") as file:
    file.write(json.dumps({"step": 30, "eval/loss": 0.1}) + "\n")
  assert figures.final(trial, "eval/loss") == 3.25


def test_the_objective_is_the_one_that_all_have(book):
  runs = [e.trial.run for e in book.listed]
  assert figures.Objective(None, runs).name == "loss"
  seen = [pretend.run(eval=config.Eval(every=5), data={"heldout": ("h",)})]
  assert figures.Objective(None, seen).name == "eval/loss"
  assert figures.Objective(None, [*seen, *runs]).name == "loss"
  assert figures.Objective("tokens_per_s", runs).higher
  with pytest.raises(ValueError, match="no figure 'eval/los' to compare by; did you mean 'eval/lo"):
    figures.Objective("eval/los", seen)
  with pytest.raises(ValueError, match="eval/loss/text is of held-out data, and 'tiny,peak"):
    figures.Objective("eval/loss/text", runs)
  curve = figures.Objective("loss", runs).curve(book.listed[0].trial)
  assert [step for step, _ in curve] == list(range(1, 21)) and curve[-1][1] == pytest.approx(3.05)
  long = [pretend.run(train={"steps": 200})]
  (book.root / "long").mkdir()
  entry = manifest_lib.Manifest(book.root / "long").add(long[0])
  write(entry, list(range(95)))
  curve = figures.Objective("loss", long).curve(entry.trial)
  assert curve == [(10 * i, 10 * i - 5.5) for i in range(1, 10)]


def test_the_best_come_first(book):
  objective = figures.Objective("loss", [e.trial.run for e in book.listed])
  a, b, c, d = book.listed
  assert figures.ranked(book.listed, objective) == [b, a, c, d]
  fastest = figures.Objective("tokens_per_s", [a.trial.run])
  write(c, [1.0] * 15)
  assert figures.ranked([a, b, c], fastest)[-1] is c


def test_what_can_not_be_compared_is_told(book):
  objective = figures.Objective("loss", [e.trial.run for e in book.listed])
  assert figures.incomparable(book.listed, objective) == ""
  heavy = manifest_lib.Entry(book.listed[0].trial.__class__(
    pretend.run(loss=config.Loss(text=2.0), train={"steps": STEPS}), book.root))
  told = figures.incomparable([*book.listed, heavy], objective)
  assert "weighted by loss.*, which differs" in told and "--objective loss/text" in told
  text = figures.Objective("loss/text", [heavy.trial.run])
  assert figures.incomparable([*book.listed, heavy], text) == ""
  long = manifest_lib.Entry(book.listed[0].trial.__class__(pretend.run(), book.root))
  assert figures.incomparable([*book.listed, long], text).endswith("lengths: [10, 20] steps")


class Page(parser.HTMLParser):
  """The tags that are open, and cells by row."""

  def __init__(self, text):
    super().__init__()
    self.open, self.rows, self.bad = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    if tag == "tr":
      self.rows.append([])
    if tag in ("td", "th") and self.rows:
      self.rows[-1].append("")
    if tag not in ("meta", "line", "circle", "path", "rect", "br") or "svg" in self.open:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    pass

  def handle_endtag(self, tag):
    if not self.open or self.open.pop() != tag:
      self.bad.append(tag)

  def handle_data(self, data):
    if "td" in self.open or "th" in self.open:
      self.rows[-1][-1] += data


def test_table_and_page_have_every_trial(book, capsys):
  objective = figures.Objective("loss", [e.trial.run for e in book.listed])
  results.write(book, objective, "sweep of <tiny>")
  table = list(csv.DictReader((book.root / "results.csv").read_text().splitlines()))
  assert [row["optim.peak_lr"] + row["optim.kind"] for row in table] == [
    "0.001muon", "0.001adamw", "0.01adamw", "0.01muon"]
  assert [row["state"] for row in table] == ["done", "done", "pruned", "failed"]
  assert float(table[0]["objective"]) == float(table[0]["loss"]) == pytest.approx(2.075)
  assert float(table[0]["eval/loss/text"]) == 4.5 and table[0]["loss/image"] == ""
  assert table[3]["why"] == "no <room> & no time" and table[3]["objective"] == ""
  text = (book.root / "report.html").read_text()
  got = Page(text)
  assert got.bad == [] and "<room>" not in text and "<tiny>" not in text
  assert [row[0] for row in got.rows[2:]] == [row["name"] for row in table]
  assert got.rows[2][:5] == ["tiny,peak_lr=0.001,kind=muon", "muon", "0.001", "done", "2.075"]
  # Each curve of every trial that has one, and each setting of those that are done.
  assert text.count('class="line"') == 3 * 4 and text.count("<circle") == 2 * 2
  assert re.findall(r"<h3>(.*?)</h3>", text) == [
    "Loss, training", "Loss, held out", "Loss of text, training", "Loss of text, held out",
    "optim.kind", "optim.peak_lr"]
  out = capsys.readouterr().out
  assert "no <room> & no time" in out and "Best: tiny,peak_lr=0.001,kind=muon" in out
  assert f"omnijax train {book.listed[1].trial.dir}/experiment.json" in out
  assert "--train.steps 200" in out and str(book.root / "report.html") in out


def test_those_that_left_come_last(book, capsys):
  objective = figures.Objective("loss", [e.trial.run for e in book.listed])
  book.listed[1].listed = False
  results.write(book, objective, "t")
  table = list(csv.DictReader((book.root / "results.csv").read_text().splitlines()))
  assert [row["in_sweep"] for row in table] == ["True"] * 3 + ["False"]
  assert table[3]["optim.kind"] == "muon" and float(table[3]["objective"]) < 2.1
  assert "no longer in the sweep" in (book.root / "report.html").read_text()
  assert "1 more trials are no longer in the sweep" in capsys.readouterr().out


def test_a_sweep_of_which_nothing_is_known_yet_has_a_page(tmp_path):
  made = manifest_lib.Manifest(tmp_path)
  made.add(pretend.run())
  objective = figures.Objective(None, [pretend.run()])
  text = page.html("t", made.listed, objective)
  assert Page(text).bad == [] and "No trial is done" in text
