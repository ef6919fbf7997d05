"""Processes as trials: what they get, that they stop as asked, and that none is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pretend
import pytest

from omnijax.sweep import engine
from omnijax.sweep import trial as trial_lib

ROOT = Path(__file__).parents[2]
# What a trial does here: says what it got, and waits until it is told to end.
WAITS = """
import json, os, pathlib, signal, sys, time
from omnijax import host
host.die_with_launcher()
def stop(*_):
  print("saved", flush=True)
  sys.exit(75)
signal.signal(signal.SIGTERM, stop)
folder = pathlib.Path(sys.argv[1])
(folder / "got.part").write_text(json.dumps({"pid": os.getpid(), "env": dict(os.environ)}))
(folder / "got.part").rename(folder / "got.json")
time.sleep(60)
"""


@pytest.fixture
def trials(tmp_path, monkeypatch):
  """Trials that wait."""
  monkeypatch.setattr(trial_lib.Trial, "command", property(
    lambda t: [sys.executable, "-c", WAITS, str(t.dir)]))
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  made = [trial_lib.make(pretend.run(str(i)), tmp_path) for i in range(4)]
  for one in made:
    one.write()
  return made


def until(true, seconds=60):
  deadline = time.monotonic() + seconds
  while not (found := true()):
    assert time.monotonic() < deadline
    time.sleep(0.02)
  return found


def got(trial):
  """What a trial was given, once it runs."""
  path = trial.dir / "got.json"
  until(path.exists)
  value = json.loads(path.read_text())
  path.unlink()
  return value


def alive(pid):
  try:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except FileNotFoundError:
    return False


def test_trials_are_stopped_one_by_one_and_all_at_once(trials):
  local = engine.Local(jobs=2, devices=3)
  assert local.room == 2
  local.start(trials[:2])
  envs = [got(t)["env"] for t in trials[:2]]
  assert all(e["JAX_NUM_CPU_DEVICES"] == "3" and e["JAX_PLATFORMS"] == "cpu" for e in envs)
  assert local.ended() == {}
  local.stop([trials[0].id, "somebody else"])
  assert until(local.ended) == {trials[0].id: 75}
  assert (trials[0].dir / "output.txt").read_text() == "saved\n"
  local.start([trials[2]])
  pid = got(trials[2])["pid"]
  os.kill(pid, signal.SIGKILL)
  assert until(local.ended) == {trials[2].id: -9} and local.ended() == {}
  assert trials[2].why(-9) == "killed by SIGKILL"
  local.kill()
  assert until(local.ended) == {trials[1].id: -9}
  local.start([trials[3]])
  pid = got(trials[3])["pid"]
  local.close()
  assert not alive(pid)


def test_a_gpu_is_free_again_when_its_trial_has_ended(trials, monkeypatch):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  monkeypatch.setattr(engine, "_plugin", lambda: True)
  local = engine.Local()
  local.start(trials[:2])
  assert [got(t)["env"]["CUDA_VISIBLE_DEVICES"] for t in trials[:2]] == ["4", "7"]
  local.stop([trials[1].id])
  until(local.ended)
  local.start(trials[2:3])
  assert got(trials[2])["env"]["CUDA_VISIBLE_DEVICES"] == "7"
  local.close()


def test_a_trial_is_a_job_of_its_own(trials, monkeypatch):
  for name in engine._NOT_MINE:
    monkeypatch.setenv(name, "7")
  local = engine.Local()
  assert local.room == 1
  local.start(trials[:1])
  one = got(trials[0])
  assert set(engine._NOT_MINE).isdisjoint(one["env"])
  assert one["env"]["OMNIJAX_STOPPED_CODE"] == "75"
  # What a terminal sends to all that it has in front, such as Ctrl-C, doesn't reach it.
  assert os.getpgid(one["pid"]) != os.getpgid(0)
  local.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's prctl")
def test_no_trial_outlives_a_sweeper_that_is_killed(trials, tmp_path):
  code = ("import sys, pathlib, time; from omnijax.sweep import engine, trial;"
          f"command = lambda t: [sys.executable, '-c', {WAITS!r}, str(t.dir)];"
          "trial.Trial.command = property(command);"
          "e = engine.Local(); e.start([trial.Trial(None, pathlib.Path(sys.argv[1]))]);"
          "time.sleep(60)")
  sweeper = subprocess.Popen([sys.executable, "-c", code, str(trials[0].dir)])
  try:
    pid = got(trials[0])["pid"]
    assert alive(pid)
  finally:
    sweeper.kill()
    sweeper.wait()
  until(lambda: not alive(pid), 5)


@pytest.mark.parametrize(("visible", "devices", "jobs", "room", "want"), [
  ("0,1,2", None, None, 3, [("0", None), ("1", None), ("2", None)]),
  ("4,5,6,7", 2, None, 2, [("4,5", None), ("6,7", None)]),
  ("0,1", None, 1, 1, [("0", None)]),
  ("0,1", None, 4, 4, [("0", "0.450"), ("1", "0.450"), ("0", "0.450"), ("1", "0.450")])])
def test_trials_share_gpus_out(monkeypatch, visible, devices, jobs, room, want):
  monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  monkeypatch.setattr(engine, "_plugin", lambda: True)
  local = engine.Local(jobs, devices)
  envs = [local._env(i) for i in range(len(want))]
  assert local.room == room
  names = ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION")
  assert [tuple(map(e.get, names)) for e in envs] == want
  assert all("JAX_NUM_CPU_DEVICES" not in e for e in envs)


def test_gpus_are_those_that_jax_would_use(monkeypatch, tmp_path):
  monkeypatch.setattr(engine, "_plugin", lambda: True)
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  monkeypatch.setenv("PATH", str(tmp_path))
  assert engine.gpus() == []
  tool = tmp_path / "nvidia-smi"
  tool.write_text("#!/bin/sh\necho 'GPU 0: H100'\necho '  MIG 1g'\necho 'GPU 1: H100'\n")
  tool.chmod(0o755)
  assert engine.gpus() == ["0", "1"]
  with pytest.raises(ValueError, match="--devices is 3, and jax finds 2 GPUs here"):
    engine.Local(devices=3)
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
  assert engine.gpus() == []
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
  assert engine.gpus() == ["1"]
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  assert engine.gpus() == []
  monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
  assert engine.gpus() == ["1"]
  monkeypatch.setattr(engine, "_plugin", lambda: False)
  assert engine.gpus() == []
