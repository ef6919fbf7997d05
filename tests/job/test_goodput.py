"""The account of a run's time adds up, over starts, and knows what was run twice."""

import json
import time

import pytest

from omnijax import cli
from omnijax.job import goodput


class Clock:
  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now


def steps(ledger, clock, first, last, seconds=1.0):
  for step in range(first, last):
    ledger.enter("data")
    clock.now += 0.25
    ledger.enter("step")
    clock.now += seconds
    ledger.at(step + 1)


def test_steps_that_no_checkpoint_had_are_wasted(tmp_path):
  clock, path = Clock(), tmp_path / "goodput.jsonl"
  ledger = goodput.Ledger(path, begun=990.0, clock=clock)
  ledger.enter("restore")
  clock.now += 4
  ledger.begin(0)
  steps(ledger, clock, 0, 20)
  ledger.close()  # as when it is killed just after a line
  clock.now += 60
  ledger = goodput.Ledger(path, clock=clock)
  clock.now += 5
  ledger.begin(12)
  steps(ledger, clock, 12, 30)
  ledger.enter("save")
  clock.now += 2
  ledger.close()
  r = goodput.report(tmp_path)
  assert r["starts"] == 2 and r["steps"] == 30
  assert r["wall_s"] == pytest.approx(sum(r["seconds"].values()))
  want = {"start": 15, "restore": 4, "data": 38 * 0.25, "down": 60, "save": 2, "step": 30,
          "wasted": 8}
  # Of steps within five seconds of a line's edge it isn't known which they were.
  assert {k: v for k, v in r["seconds"].items() if v} == pytest.approx(want, abs=1e-6)
  assert r["goodput"] == pytest.approx(30 / r["wall_s"])


def test_going_back_wastes_steps_too(tmp_path):
  clock = Clock()
  ledger = goodput.Ledger(tmp_path / "goodput.jsonl", clock=clock)
  ledger.begin(0)
  steps(ledger, clock, 0, 10)
  ledger.at(6)
  steps(ledger, clock, 6, 12)
  ledger.close()
  r = goodput.report(tmp_path)
  assert (r["seconds"]["step"], r["seconds"]["wasted"]) == pytest.approx((12, 4))


def test_a_last_line_that_was_cut_off_is_no_line(tmp_path):
  clock, path = Clock(), tmp_path / "goodput.jsonl"
  ledger = goodput.Ledger(path, clock=clock)
  steps(ledger, clock, 0, 3)
  ledger.close()
  with path.open("a") as file:
    file.write('{"attempt": 1, "fr')
  assert goodput.report(tmp_path)["steps"] == 3


def test_a_process_knows_when_it_began():
  assert 0 < time.time() - goodput.began() < 24 * 3600


def test_of_a_real_run(whole, tmp_path, capfd):
  html, values = tmp_path / "g.html", tmp_path / "g.json"
  assert cli.main(["goodput", str(whole), "--html", str(html), "--json", str(values)]) == 0
  r = json.loads(values.read_text())
  assert r["wall_s"] == pytest.approx(sum(r["seconds"].values()), rel=0.01)
  for bucket in ("restore", "compile", "data", "step", "save", "eval", "sample"):
    assert r["seconds"][bucket] > 0, bucket
  assert r["steps"] == 12 and 0 < r["goodput"] < 1
  assert "steps that count" in " ".join(capfd.readouterr().out.split())
  assert "<svg" in html.read_text()
  assert cli.main(["goodput", str(tmp_path)]) == 2
