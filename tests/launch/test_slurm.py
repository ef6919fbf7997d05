"""Jobs of a real SLURM of two nodes, which `slurm.sh` starts here: `pytest -m slurm`, as root."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import local
from omnijax import checkpoint, config
from omnijax.job import sbatch
from omnijax.train import metrics

pytestmark = pytest.mark.slurm
HERE = Path(__file__).parent
STEPS = 120


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
  """SLURM, and an environment in which each of its nodes finds the others on this machine."""
  where = tmp_path_factory.mktemp("slurm")
  run = lambda what: subprocess.run([HERE / "slurm.sh", what, where], check=True, text=True,
                                    stdout=subprocess.PIPE)
  env = {"SLURM_CONF": run("start").stdout.strip().partition("=")[2],
         "PYTHONPATH": str(HERE.parents[1]), "JAX_NUM_CPU_DEVICES": "1",
         "JAX_COORDINATOR_ADDRESS": "127.0.0.1:29345"}  # n1 and n2 are no names to be looked up
  try:
    with pytest.MonkeyPatch.context() as patch:
      for name, value in env.items():
        patch.setenv(name, value)
      until(lambda: "idle" in said("sinfo"))
      yield
  finally:
    run("stop")


def said(*command):
  return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def until(true, seconds=180):
  deadline = time.monotonic() + seconds
  while not true():
    assert time.monotonic() < deadline, said("squeue")
    time.sleep(0.1)


def job(number):
  """What SLURM knows of it."""
  return dict(re.findall(r"(\w+)=(\S*)", said("scontrol", "show", "job", number)))


def ended(number):
  """What SLURM knows of it once it has ended."""
  until(lambda: job(number)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"))
  return job(number)


def output(where, number):
  return (where / f"slurm-{number}.out").read_text()


def pid(number, task):
  """Of the process that trains, of one of the job's tasks."""
  for path in Path("/proc").glob("[0-9]*"):
    try:
      env, line = (path / "environ").read_bytes(), (path / "cmdline").read_bytes()
    except OSError:
      continue
    of = {f"SLURM_JOB_ID={number}".encode(), f"SLURM_PROCID={task}".encode()}
    if of <= set(env.split(b"\0")) and line.split(b"\0")[1:3] == [b"-m", b"omnijax.cli"]:
      return int(path.name)
  raise AssertionError(f"task {task} of job {number} isn't running")


@pytest.fixture
def experiment(records, tmp_path, monkeypatch):
  from test_loop import make_run

  monkeypatch.chdir(tmp_path)
  run = make_run(records, mesh=config.Mesh(), eval=config.Eval(every=0),
                 train=config.Train(steps=STEPS, save_every=10))
  (tmp_path / "run.json").write_text(config.to_json(run))
  path = tmp_path / "exp.py"
  path.write_text("from pathlib import Path\nfrom omnijax import config\n"
                  f"run = lambda: config.from_json(Path({str(tmp_path / 'run.json')!r})"
                  ".read_text())\n")
  return path


def lines(run_dir):
  path = run_dir / "metrics.jsonl"
  return path.read_text().count("\n") if path.exists() else 0


def test_killed_stopped_and_requeued_it_is_still_the_same_run(slurm, experiment, tmp_path):
  run_dir, whole = tmp_path / "run", tmp_path / "whole"
  train = [sys.executable, "-m", "omnijax.cli", "train", str(experiment), "--run-dir"]
  assert local.Gang([*train, str(whole)], 2, devices=1, echo=False).wait() == [0, 0]

  number = said(sys.executable, "-m", "launch", "slurm", "--nodes", "2", "--restarts", "1",
                "--submit", "--", str(experiment), "--run-dir", str(run_dir)).strip()
  for i, end in enumerate([lambda: os.kill(pid(number, 1), signal.SIGKILL),
                           lambda: said("scancel", "--signal=TERM", number),
                           lambda: said("scontrol", "requeue", number),
                           lambda: os.kill(pid(number, 0), signal.SIGKILL)]):
    until(lambda want=25 + 25 * i: lines(run_dir) >= want)
    assert job(number)["JobState"] == "RUNNING" and job(number)["Restarts"] == str(i)
    end()
    until(lambda: job(number)["JobState"] in ("PENDING", "REQUEUED"))
  done = ended(number)
  text = output(tmp_path, number)
  assert (done["JobState"], done["Restarts"]) == ("COMPLETED", "4"), text
  assert [line["loss"] for line in metrics.read(run_dir)] == \
      [line["loss"] for line in metrics.read(whole)]
  assert checkpoint.steps(run_dir / "checkpoints")[-1] == STEPS
  begun = [int(x) for x in re.findall(r"starting at step (\d+)", text)]
  assert len(begun) == 5 and [b > 0 for b in begun] == [False, True, True, True, True], text
  # SIGTERM loses no step, whoever sends it.
  stopped = [int(x) for x in re.findall(r"stopped on request after step (\d+) of 120", text)]
  assert stopped == begun[2:4]
  told = re.findall(r"start (\d) of job \d+ ended with (\d+)", text)
  assert told == [("0", "137"), ("1", "75"), ("3", "137"), ("4", "0")], text
  assert not list(run_dir.glob("starts.*"))


def test_what_has_ended_for_good_is_not_requeued(slurm, experiment, tmp_path):
  run_dir = tmp_path / "run"
  number = said(sys.executable, "-m", "launch", "slurm", "--nodes", "2", "--submit", "--",
                "nowhere.py", "--run-dir", str(run_dir)).strip()
  done = ended(number)
  assert (done["JobState"], done["ExitCode"], done["Restarts"]) == ("FAILED", "2:0", "0")
  assert "nowhere.py" in output(tmp_path, number) and not run_dir.exists()

  number = said(sys.executable, "-m", "launch", "slurm", "--nodes", "2", "--submit", "--",
                str(experiment), "--run-dir", str(run_dir)).strip()
  until(lambda: lines(run_dir) >= 5)
  said("scancel", number)
  assert ended(number)["JobState"] == "CANCELLED"
  until(lambda: "stopped on request after step" in output(tmp_path, number))
  time.sleep(10)  # would it come back, it would by now
  assert job(number)["JobState"] == "CANCELLED" and job(number)["Restarts"] == "0"


@pytest.mark.parametrize(("codes", "code", "restarts"), [
  ((42, 75), 42, 0), ((75, 2), 2, 0), ((0, 130), 130, 0), ((0, 1), 1, 2), ((76, 75), 76, 2)])
def test_the_code_of_all_tasks_decides(slurm, codes, code, restarts, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  command = ["bash", "-c", f"[ $SLURM_PROCID = 0 ] && exit {codes[0]}; sleep 1; exit {codes[1]}",
             "pretends", f"--run-dir={tmp_path / 'run'}"]
  number = sbatch.submit(sbatch.script(name="codes", command=command, nodes=2, restarts=2))
  done = ended(number)
  assert (done["ExitCode"], done["Restarts"]) == (f"{code}:0", str(restarts)), done
  assert not list(tmp_path.glob("run/starts.*"))


def test_before_the_time_is_up_it_saves_and_comes_back(slurm, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  stops = "trap 'touch saved; exit 75' TERM; [ -e saved ] && exit 0; while :; do sleep 0.1; done"
  command = ["bash", "-c", stops, "pretends", "--run-dir", str(tmp_path / "run")]
  number = sbatch.submit(sbatch.script(name="time", command=command, nodes=2, time="1", grace=30))
  done = ended(number)
  assert (done["JobState"], done["Restarts"]) == ("COMPLETED", "1"), output(tmp_path, number)


def test_an_array_runs_a_line_each_and_no_more_at_once_than_it_may(slurm, experiment, tmp_path):
  commands = tmp_path / "commands"
  train = f"{sys.executable} -m omnijax.cli train {experiment} --train.steps 10"
  commands.write_text("".join(f"{train} --run-dir 'run {i}' --train.seed {i}\n" for i in range(4)))
  number = sbatch.submit(sbatch.script(name="sweep", command=commands, array=(4, 2)))
  until(lambda: number not in said("squeue", "-h", "-o", "%F"), 600)
  spans = []
  for i in range(4):
    run_dir = tmp_path / f"run {i}"
    assert json.loads((run_dir / "config.json").read_text())["train"]["seed"] == i
    assert checkpoint.steps(run_dir / "checkpoints")[-1] == 10
    told = [json.loads(x) for x in (run_dir / "goodput.jsonl").read_text().splitlines()]
    spans.append((told[0]["from"], told[-1]["to"]))
  at_once = [sum(a <= begun < b for a, b in spans) for begun, _ in spans]
  assert max(at_once) == 2, spans


def test_a_task_of_an_array_comes_back_as_itself(slurm, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "commands").write_text("".join(
    f"bash -c 'echo {i} >> told; mkdir done{i} || exit 0; exit {code}' x --run-dir run{i}\n"
    for i, code in enumerate((0, 75))))
  number = sbatch.submit(sbatch.script(name="array", command=tmp_path / "commands", array=(2, 2)))
  until(lambda: number not in said("squeue", "-h", "-o", "%F"))
  assert sorted((tmp_path / "told").read_text().split()) == ["0", "1", "1"]
