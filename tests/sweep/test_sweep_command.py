"""`omnijax sweep` as people call it: real trials, killed and gone on with, and what it refuses."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from omnijax import cli, config
from omnijax import experiment as experiment_lib
from omnijax.sweep import command, space

ROOT = Path(__file__).parents[2]
EXPERIMENT = """
from pathlib import Path
from omnijax import config
from omnijax.sweep import space
run = lambda: config.from_json(Path({!r}).read_text())
sweep = lambda: space.grid(run(), {{"train.seed": (0, 1)}})
"""
ENV = {"PYTHONPATH": str(ROOT)}


def start(experiment, root, *arguments):
  words = [sys.executable, "-m", "omnijax.cli", "sweep", str(experiment), "--dir", str(root)]
  return subprocess.Popen([*words, *arguments], env=os.environ | ENV, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_killed_trial_is_made_good_and_nothing_is_run_twice(records, tmp_path):
  sys.path.insert(0, str(ROOT / "tests" / "train"))
  from test_loop import make_run

  run = make_run(records, mesh=config.Mesh(), eval=config.Eval(every=3, batches=1),
                 train=config.Train(steps=400, save_every=2))
  (tmp_path / "run.json").write_text(config.to_json(run))
  (tmp_path / "exp.py").write_text(EXPERIMENT.format(str(tmp_path / "run.json")))
  given = ("--jobs", "1", "--devices", "1", "--train.steps", "8")
  sweep = start(tmp_path / "exp.py", tmp_path / "s", *given)
  victim, deadline = None, time.monotonic() + 180
  while victim is None:
    assert sweep.poll() is None and time.monotonic() < deadline
    found = (tmp_path / "s").glob("trials/*seed-1*/metrics.jsonl")
    victim = next((p.parent for p in found if p.read_text().count("\n") >= 3), None)
    time.sleep(0.02)
  os.kill(json.loads((victim / "lock").read_text())["pid"], signal.SIGKILL)
  out, err = sweep.communicate(timeout=180)
  assert sweep.returncode == 0, err
  assert "ended with -9 at step" in err and "eval/loss" in out
  table = list(csv.DictReader((tmp_path / "s" / "results.csv").read_text().splitlines()))
  assert {(row["train.seed"], row["state"], row["steps"], row["starts"]) for row in table} == {
    ("0", "done", "8", "1"), ("1", "done", "8", "2")}
  assert float(table[0]["eval/loss"]) == float(table[0]["objective"]) < float(table[1]["objective"])
  for row in table:
    lines = (tmp_path / "s" / "trials" / row["id"] / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(8))
  again = start(tmp_path / "exp.py", tmp_path / "s", *given)
  out, err = again.communicate(timeout=60)
  assert again.returncode == 0 and "2 trials, 2 of them done before" in err and "starts" not in err
  same = list(csv.DictReader((tmp_path / "s" / "results.csv").read_text().splitlines()))
  assert same == table


@pytest.fixture
def experiment(tmp_path):
  """Writes an experiment, with what its sweep() returns."""
  def write(returns):
    (tmp_path / "run.json").write_text(config.to_json(tiny.run()))
    text = EXPERIMENT.format(str(tmp_path / "run.json")).rpartition("sweep = ")[0]
    (tmp_path / "exp.py").write_text(f"import dataclasses\n{text}\n{returns}\n")
    return tmp_path / "exp.py"

  return write


GRID = 'sweep = lambda: space.grid(run(), {"train.seed": (0, 1), "data": (run().data,)})'


@pytest.mark.parametrize(("returns", "arguments", "message"), [
  ("", (), "has no function `sweep`; wanted `sweep()` that gives Runs"),
  ("sweep = lambda: [3]", (), "gave int; wanted Runs"),
  ("sweep = lambda: run", (), "gave function; wanted Runs"),
  ("sweep = lambda: []", (), "gave no run"),
  ("sweep = lambda: [run(), run()]", (), "the run 'tiny' is in the sweep twice"),
  (GRID, ("--train.steps", "0"), "Train.steps is 0"),
  (GRID, ("--train.stepps", "1"), "unknown field --train.stepps; did you mean --train.steps?"),
  (GRID, ("--train.seed", "1"), "--train.seed is what the runs of the sweep differ in"),
  (GRID, ("--data.rows", "4"), "--data.rows is what the runs of the sweep differ in"),
  (GRID, ("--name", "x"), "--name is what the runs of the sweep differ in"),
  (GRID, ("--jobs", "0"), "--jobs is 0; wanted 1 or more"),
  (GRID, ("--restarts", "-1"), "--restarts is -1; wanted 0 or more"),
  (GRID, ("--trials", "4"), "--trials is how many Optuna asks for"),
  (GRID, ("--seed", "4"), "--seed is of Optuna's choices"),
  (GRID, ("--cpus", "4"), "--cpus has no effect with --engine local"),
  (GRID, ("--optuna", "best"), "invalid choice: 'best'"),
  (GRID, ("--engine", "k8s"), "invalid choice: 'k8s'"),
  (GRID, ("--objective", "los"), "there is no figure 'los' to compare by; did you mean 'loss'?"),
  (GRID, ("--objective", "eval/loss"), "eval/loss is of held-out data, and"),
  ("sweep = lambda: iter([run()])", ("--optuna",), "which a list of Runs doesn't say"),
  (GRID, (), "the records none does not exist")])
def test_what_it_refuses(experiment, returns, arguments, message, tmp_path, capfd, monkeypatch):
  if "records" not in message:
    monkeypatch.setattr(command, "_check_data", lambda runs: None)
  monkeypatch.setattr(command.driver.Driver, "run", lambda self: pytest.fail("it began"))
  try:
    code = cli.main(["sweep", str(experiment(returns)), "--dir", str(tmp_path / "s"), *arguments])
  except SystemExit as stop:
    code = stop.code
  err = capfd.readouterr().err
  assert code == 2 and message in err and err.count("\n") == 1, err


def test_two_sweepers_of_a_directory_are_told_apart(experiment, tmp_path, capfd, monkeypatch):
  monkeypatch.setattr(command, "_check_data", lambda runs: None)
  (tmp_path / "s").mkdir()
  lock = command.lock.Lock(tmp_path / "s")
  assert cli.main(["sweep", str(experiment(GRID)), "--dir", str(tmp_path / "s")]) == 2
  lock.close()
  err = capfd.readouterr().err
  assert f"s is being swept by process {os.getpid()} on " in err and "another --dir" in err


@pytest.mark.parametrize("state", ["done", "failed"])
def test_how_it_ends(experiment, tmp_path, capfd, monkeypatch, state):
  def run(self):
    for entry in self._manifest.listed:
      entry.state = state

  monkeypatch.setattr(command, "_check_data", lambda runs: None)
  monkeypatch.setattr(command.driver.Driver, "run", run)
  monkeypatch.chdir(tmp_path)
  arguments = ["sweep", str(experiment(GRID)), "--train.steps", "7"]
  if state == "done":
    assert cli.main(arguments) == 0
  else:
    with pytest.raises(SystemExit, match="1"):
      cli.main(arguments)
    assert "2 trials failed; the same command tries them again" in capfd.readouterr().err
  # By default beside the others, by the name of the experiment's file.
  entries = json.loads((tmp_path / "sweeps" / "exp" / "manifest.json").read_text())["trials"]
  for entry in entries:
    folder = tmp_path / "sweeps" / "exp" / "trials" / entry["id"]
    made = config.from_json((folder / "experiment.json").read_text())
    assert made.train.steps == 7 and made.train.seed == entry["settings"]["train.seed"]
  assert (tmp_path / "sweeps" / "exp" / "report.html").exists()


def test_the_quickstarts_sweep_is_of_the_quickstarts_model():
  runs = list(command.load(ROOT / "experiments" / "quickstart.py"))
  one = experiment_lib.load(ROOT / "experiments" / "quickstart.py")
  assert len(runs) == len({r.name for r in runs}) == 12
  assert {dataclasses.replace(r.model, rope_theta=10.0) for r in runs} == {one.model}
  assert all(r.eval.every and r.data.heldout and r.data.sources == one.data.sources for r in runs)


def test_fields_are_changed_for_all():
  over = space.random(tiny.run(), {"optim.peak_lr": space.LogUniform(1e-4, 1e-2)}, trials=3, seed=5)
  new = command.changed(over, ["--train.steps", "5", "--data.sources=a"], "omnijax sweep x")
  assert [r.train.steps for r in new] == [5] * 3 and new.run.data.sources == ("a",)
  assert [r.optim for r in new] == [r.optim for r in over]
  listed = [tiny.run(train={"seed": i, "steps": 3 + i}) for i in range(2)]
  assert [r.train.seed for r in command.changed(listed, ["--optim.b1", "0.5"], "p")] == [0, 1]
  with pytest.raises(ValueError, match="--train.steps is what the runs of the sweep differ in"):
    command.changed(listed, ["--train.steps", "5"], "p")
