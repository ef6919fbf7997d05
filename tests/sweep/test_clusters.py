"""Sweeps on Ray and on SLURM: a trial is killed, then the sweeper, and everything is run once."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "launch"))

import test_slurm
from test_slurm import slurm  # noqa: F401

from omnijax import config

ROOT = Path(__file__).parents[2]
EXPERIMENT = """
from pathlib import Path
from omnijax import config
from omnijax.sweep import space
run = lambda: config.from_json(Path({!r}).read_text())
sweep = lambda: space.grid(run(), {{"train.seed": (0, 1, 2)}})
"""
STEPS = 60


@pytest.fixture
def sweep(records, tmp_path):
  """Starts a sweep of three trials, two at once."""
  from test_loop import make_run

  run = make_run(records, mesh=config.Mesh(), eval=config.Eval(every=20, batches=1),
                 train=config.Train(steps=STEPS, save_every=5))
  (tmp_path / "run.json").write_text(config.to_json(run))
  (tmp_path / "exp.py").write_text(EXPERIMENT.format(str(tmp_path / "run.json")))
  env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1",
                      "RAY_ADDRESS": "local"}

  def start(engine, *given):
    words = [sys.executable, "-m", "omnijax.cli", "sweep", str(tmp_path / "exp.py"), "--dir",
             str(tmp_path / "s"), "--engine", engine, "--jobs", "2", *given]
    with (tmp_path / "said.txt").open("w") as said:
      return subprocess.Popen(words, env=env, stdout=said, stderr=subprocess.STDOUT)

  return start


def until(true, seconds=300):
  deadline = time.monotonic() + seconds
  while not (found := true()):
    assert time.monotonic() < deadline
    time.sleep(0.02)
  return found


def lines(trial):
  path = trial / "metrics.jsonl"
  return path.read_text().count("\n") if path.exists() else 0


def pid(trial):
  """Of the process that trains it."""
  return json.loads((trial / "lock").read_text())["pid"]


def alive(process):
  return Path(f"/proc/{process}").exists()


def all_is_well_that_ends_well(sweep, engine, root):
  """A trial is killed, then the sweeper; then all three are done."""
  first = sweep(engine)
  victim = until(lambda: next((t for t in root.glob("trials/*seed-1*") if lines(t) > 10), None))
  os.kill(pid(victim), signal.SIGKILL)
  other = until(lambda: next((t for t in root.glob("trials/*seed-[02]*") if lines(t) > 20), None))
  process = pid(other)
  first.kill()
  first.wait()
  if engine == "ray":
    until(lambda: not alive(process), 20)
  second = sweep(engine)
  assert second.wait() == 0, (root.parent / "said.txt").read_text()
  assert (root.parent / "said.txt").read_text().count(": done") <= 3
  table = list(csv.DictReader((root / "results.csv").read_text().splitlines()))
  assert [(row["state"], row["steps"]) for row in table] == [("done", str(STEPS))] * 3
  starts = {row["train.seed"]: int(row["starts"]) for row in table}
  assert starts["1"] >= 2 and sum(starts.values()) <= 6
  for row in table:
    text = (root / "trials" / row["id"] / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in text.splitlines()] == list(range(STEPS))
  third = sweep(engine)
  assert third.wait() == 0
  assert "3 trials, 3 of them done before" in (root.parent / "said.txt").read_text()
  assert ": starts" not in (root.parent / "said.txt").read_text()
  return starts


@pytest.mark.ray
def test_on_ray(sweep, tmp_path):
  all_is_well_that_ends_well(sweep, "ray", tmp_path / "s")
  longer = sweep("ray", "--train.steps", "100000")
  begun = until(lambda: [t for t in (tmp_path / "s").glob("trials/*") if lines(t) > STEPS])
  longer.send_signal(signal.SIGTERM)
  assert longer.wait() == 75
  for trial in begun:
    done = lines(trial)
    assert (trial / "checkpoints" / str(done)).is_dir()
    assert "stopped on request" in (trial / "output.txt").read_text()


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
def test_on_slurm(sweep, tmp_path):
  starts = all_is_well_that_ends_well(sweep, "slurm", tmp_path / "s")
  assert starts == {"0": 1, "1": 2, "2": 1}  # the sweeper's end is no end of a job
  longer = sweep("slurm", "--train.steps", "100000")
  begun = until(lambda: [t for t in (tmp_path / "s").glob("trials/*") if lines(t) > STEPS])
  longer.send_signal(signal.SIGTERM)
  assert longer.wait() == 75
  assert test_slurm.said("squeue", "--noheader") == ""
  for trial in begun:
    assert (trial / "checkpoints" / str(lines(trial))).is_dir()
  waiting = [e for e in json.loads((tmp_path / "s" / "manifest.json").read_text())["trials"]
             if e["state"] == "waiting"]
  assert sorted(e["starts"] for e in waiting) in ([0, 1, 1], [1, 1, 1])
