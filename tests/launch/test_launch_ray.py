"""Jobs on Ray: what is told without one, and real jobs on a Ray of this machine."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import ray as launch_ray
from omnijax import checkpoint, config
from omnijax.job import exits
from omnijax.train import metrics

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "train"))

from test_loop import make_run, records, whole  # noqa: E402, F401

EXPERIMENT = """
from pathlib import Path
from omnijax import config
run = lambda: config.from_json(Path({!r}).read_text())
"""


def test_the_desk_passes_on_signals_and_counts_who_ended():
  desk = launch_ray.Desk(0.2)
  assert not desk.send(signal.SIGTERM)  # nobody to tell
  assert desk.runs(0) == desk.runs(1) == signal.SIGTERM and desk.send(signal.SIGTERM)
  desk.ended(0, exits.AGAIN)
  assert desk.runs(1) == signal.SIGTERM
  time.sleep(0.3)
  assert desk.runs(1) == signal.SIGKILL  # does not follow
  desk.ended(1, -signal.SIGKILL)
  assert desk.report() == ({0: exits.AGAIN, 1: -signal.SIGKILL}, False)


def test_the_desk_of_a_drained_node():
  desk = launch_ray.Desk(30)
  assert desk.runs(0) == 0
  desk.drain()
  assert desk.runs(0) == signal.SIGTERM and desk.report() == ({}, True)


@pytest.mark.parametrize(("argv", "message"), [
  (["--workers", "0"], "--workers must be 1 or more"), (["--restarts", "-1"], "--restarts must be"),
  (["--devices", "0"], "--devices must be"),
  (["--slices", "2"], "--slices has no effect without --topology"),
  (["--topology", "v6e:4x4", "--gpus", "1"], "exclude each other")])
def test_bad_arguments_are_told(argv, message, capsys):
  with pytest.raises(SystemExit) as stop:
    launch_ray.main([*argv, "--", "x.py", "--run-dir", "r"])
  assert stop.value.code == exits.BAD_INPUT and message in capsys.readouterr().err


def test_without_ray_it_says_what_to_install(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "ray", None)
  with pytest.raises(SystemExit) as stop:
    launch_ray.main(["--", "x.py", "--run-dir", "r"])
  assert stop.value.code == exits.BAD_INPUT
  assert 'pip install "omnijax[ray]"' in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["ray", "--help"]])
def test_help_does_not_import_ray(argv):
  code = ("import runpy, sys; sys.argv[1:] = sys.argv[2:]\n"
          "try: runpy.run_module('launch', run_name='__main__')\n"
          "except SystemExit: pass\nassert 'ray' not in sys.modules")
  ended = subprocess.run([sys.executable, "-c", code, "-", *argv], cwd=ROOT, text=True,
                         capture_output=True)
  assert ended.returncode == 0 and "Ray" in ended.stdout + ended.stderr, ended.stderr


def asked(**changes):
  none = {"workers": None, "gpus": None, "topology": None, "slices": 1}
  return argparse.Namespace(**none | changes)


@pytest.mark.ray
@pytest.mark.filterwarnings("default")
def test_what_ray_is_asked_for():
  cpu = launch_ray.scale(asked(workers=3))
  assert (cpu.num_workers, cpu.total_resources) == (3, {"CPU": 3})
  gpu = launch_ray.scale(asked(workers=2, gpus=4))
  assert gpu.use_gpu and gpu.total_resources == {"CPU": 2, "GPU": 8}
  pod = launch_ray.scale(asked(topology="v5e:4x4", slices=2))
  assert pod.use_tpu and (pod.num_workers, pod.topology) == (8, "4x4")
  assert pod.accelerator_type == "TPU-V5LITEPOD" and pod.total_resources["TPU"] == 32
  assert launch_ray.scale(asked(topology="tpu7x:2x2x2")).accelerator_type == "TPU-V7X"
  with pytest.raises(ValueError, match="--workers is 3; 1 of v6e:4x4 have 4 hosts"):
    launch_ray.scale(asked(topology="v6e:4x4", workers=3))
  with pytest.raises(ValueError, match="--topology is 'h100:8'; wanted TPUs"):
    launch_ray.scale(asked(topology="h100:8"))


class Job:
  """`launch ray` with two workers, its lines in a file."""

  def __init__(self, folder, experiment, *fields, devices=2):
    self.run_dir, self.said = folder / "run", folder / "said.txt"
    env = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    with self.said.open("w") as out:
      self.launcher = subprocess.Popen(
        [sys.executable, "-m", "launch", "ray", "--workers", "2", "--devices", str(devices), "--",
         experiment, "--run-dir", self.run_dir, *fields], cwd=ROOT, env=env, stdout=out,
        stderr=subprocess.STDOUT)

  def processes(self):
    """Index of each process of the job -> its id, and its Ray worker's."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
      try:
        argv = (path / "cmdline").read_text().split("\0")
        variables = (path / "environ").read_text().split("\0")
        parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
      except OSError:
        continue
      if str(self.run_dir) in argv and "omnijax.cli" in argv:
        index, = (v for v in variables if v.startswith("JAX_PROCESS_ID="))
        found[int(index[-1])] = int(path.name), int(parent)
    return found

  def until(self, true, seconds=240):
    deadline = time.monotonic() + seconds
    while not true():
      assert self.launcher.poll() is None, self.said.read_text()[-3000:]
      assert time.monotonic() < deadline, self.said.read_text()[-3000:]
      time.sleep(0.02)

  def steps(self):
    path = self.run_dir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture
def job(tmp_path):
  jobs = []

  def start(*args, **options):
    jobs.append(Job(tmp_path, *args, **options))
    return jobs[-1]

  yield start
  for one in jobs:
    one.launcher.kill()
    one.launcher.wait()


@pytest.fixture
def experiment(records, tmp_path):  # noqa: F811
  run = make_run(records, mesh=config.Mesh(), eval=config.Eval(every=0))
  (tmp_path / "run.json").write_text(config.to_json(run))
  (tmp_path / "exp.py").write_text(EXPERIMENT.format(str(tmp_path / "run.json")))
  return tmp_path / "exp.py"


@pytest.mark.ray
def test_a_job_that_loses_a_process_and_then_a_worker_is_still_the_same_run(
    job, experiment, whole):  # noqa: F811
  one = job(experiment)
  one.until(lambda: one.steps() >= 3)
  os.kill(one.processes()[1][0], signal.SIGKILL)
  one.until(lambda: "processes ended with 0: 75, 1: -9; again in 1 s" in one.said.read_text())
  one.until(lambda: one.steps() >= 6)
  os.kill(one.processes()[0][1], signal.SIGKILL)
  assert one.launcher.wait(240) == exits.DONE, one.said.read_text()[-3000:]
  assert "Ray lost the workers of processes [0]" in one.said.read_text()
  assert "processes ended with 0: -9, 1: " in one.said.read_text()
  starts = {json.loads(line)["attempt"]
            for line in (one.run_dir / "goodput.jsonl").read_text().splitlines()}
  assert starts == {1, 2, 3}
  got, want = ([line["loss"] for line in metrics.read(d)] for d in (one.run_dir, whole))
  assert len(got) == 12 and got == pytest.approx(want, abs=1e-5)


@pytest.mark.ray
def test_sigterm_saves_and_ends(job, experiment):
  one = job(experiment, "--train.steps", "10000", "--train.save-every", "10000", devices=1)
  one.until(lambda: one.steps() >= 2)
  one.launcher.send_signal(signal.SIGTERM)
  assert one.launcher.wait(120) == exits.DONE
  assert 2 <= one.steps() < 10_000
  assert checkpoint.steps(one.run_dir / "checkpoints") == [one.steps()]
  assert one.processes() == {}


@pytest.mark.ray
def test_bad_input_is_not_tried_again(job, experiment):
  one = job(experiment, "--optim.peak-lrr", "1")
  assert one.launcher.wait(120) == exits.BAD_INPUT
  told = one.said.read_text()
  assert "[1] omnijax: error: unknown field --optim.peak-lrr" in told
  assert "again in" not in told


@pytest.mark.ray
def test_no_process_outlives_its_worker_or_the_launcher(job, tmp_path):
  (tmp_path / "endless.py").write_text("import time\ntime.sleep(60)\n")
  one = job(tmp_path / "endless.py")
  one.until(lambda: len(one.processes()) == 2)
  process, worker = one.processes()[0]
  os.kill(worker, signal.SIGKILL)
  one.until(lambda: process not in [p for p, _ in one.processes().values()], 5)
  one.until(lambda: len(one.processes()) == 2)  # again
  one.launcher.kill()
  one.launcher.wait()
  deadline = time.monotonic() + 20
  while one.processes():
    assert time.monotonic() < deadline
    time.sleep(0.05)
