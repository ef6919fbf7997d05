"""What starts jobs again, and when it stops doing so; with processes that only pretend to train."""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import local
from omnijax.job import exits

ROOT = Path(__file__).parents[2]
# Ends with the codes given, one each start; "+" before a code is a new checkpoint.
PRETENDS = """
import os, pathlib, sys
run_dir, *codes = sys.argv[1:]
run_dir = pathlib.Path(run_dir)
count = run_dir / ("starts" + os.environ["JAX_PROCESS_ID"])
n = int(count.read_text()) if count.exists() else 0
count.write_text(str(n + 1))
code = codes[min(n, len(codes) - 1)]
if code[0] == "+":
  (run_dir / "checkpoints" / str(n + 1)).mkdir(parents=True, exist_ok=True)
sys.exit(int(code))
"""


@pytest.mark.parametrize(("codes", "want"), [
  ([0, 0], 0), ([75, -9], None), ([0, 75], None), ([2, 75], 2), ([75, 42], 42), ([76, -6], None),
  ([1, 75], None), ([130, 75], 130)])
def test_what_follows_from_exit_codes(codes, want):
  assert local.verdict(codes) == want


@pytest.mark.parametrize(("codes", "restarts", "want", "starts"), [
  (["75", "75", "0"], 2, exits.DONE, 3),
  (["75", "75", "75", "0"], 2, exits.AGAIN, 3),
  (["75", "+75", "75", "0"], 2, exits.DONE, 4),  # a new checkpoint begins the count again
  (["75", "42"], 5, exits.NEVER, 2)])
def test_it_starts_again_while_that_helps(codes, restarts, want, starts, tmp_path, monkeypatch):
  monkeypatch.setattr(local.time, "sleep", lambda s, sleep=time.sleep: sleep(s / 20))
  before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
  try:
    args = argparse.Namespace(processes=2, devices=None, restarts=restarts)
    command = [sys.executable, "-c", PRETENDS, str(tmp_path), *codes]
    assert local._run(command, args, tmp_path) == want
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  assert [(tmp_path / f"starts{i}").read_text() for i in "01"] == [str(starts)] * 2


def test_who_does_not_follow_is_killed(monkeypatch):
  monkeypatch.setattr(local, "_LEAVE_S", 0.5)
  code = ("import os, sys, time; time.sleep(60 * (os.environ['JAX_PROCESS_ID'] == '1')); "
          "sys.exit(75)")
  gang = local.Gang([sys.executable, "-c", code], 2, echo=False)
  assert gang.wait() == [75, -signal.SIGKILL]


# An experiment that never comes to training; says which process it is.
ENDLESS = """
import os, pathlib, time
pathlib.Path(os.environ["PIDS"], str(os.getpid())).touch()
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's prctl")
def test_no_process_outlives_a_launcher_that_is_killed(tmp_path):
  pids = tmp_path / "pids"
  pids.mkdir()
  (tmp_path / "endless.py").write_text(ENDLESS)
  launcher = subprocess.Popen(
    [sys.executable, "-m", "launch", "local", "--processes", "2", "--", tmp_path / "endless.py",
     "--run-dir", "r"], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "PIDS": str(pids)})
  try:
    until(lambda: len(list(pids.iterdir())) == 2, 60)
  finally:
    launcher.kill()
    launcher.wait()
  until(lambda: not any(alive(p.name) for p in pids.iterdir()), 5)


def test_who_starts_after_its_launcher_is_gone_ends(capfd, monkeypatch):
  monkeypatch.setenv("OMNIJAX_LAUNCHER", "4194305")  # more than Linux counts to
  code = subprocess.run([sys.executable, "-m", "omnijax.cli", "train"], cwd=ROOT).returncode
  assert code == (exits.AGAIN if sys.platform == "linux" else exits.BAD_INPUT)
  assert sys.platform != "linux" or "process 4194305 started this one" in capfd.readouterr().err


def alive(pid):
  try:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except FileNotFoundError:
    return False


def until(true, seconds):
  deadline = time.monotonic() + seconds
  while not true():
    assert time.monotonic() < deadline
    time.sleep(0.05)


def said(*argv):
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  ended = subprocess.run([sys.executable, "-m", "launch", *argv], env=env, cwd=ROOT, text=True,
                         capture_output=True, timeout=60)
  return ended.returncode, ended.stdout + ended.stderr


def test_the_command_teaches_and_refuses():
  code, text = said("--help")
  assert code == 0 and "local" in text
  code, text = said("local", "--help")
  assert code == 0 and "python -m launch local --processes 2 --" in text
  assert said("slrum")[0] == 2
  code, text = said("local", "--processes", "0", "--", "x.py", "--run-dir", "r")
  assert code == 2 and "--processes and --devices must be 1 or more" in text
  code, text = said("local", "--", "nowhere.py", "--run-dir", "r")
  assert code == 2 and "nowhere.py" in text
