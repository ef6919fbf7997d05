"""What starts jobs again, and when it stops doing so; with processes that only pretend to train."""

import os
import signal
import subprocess
import sys
import time
import types
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


@pytest.fixture
def handlers():
  """Those of signals are put back."""
  before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("codes", "restarts", "want", "starts"), [
  (["75", "75", "0"], 2, exits.DONE, 3),
  (["75", "75", "75", "0"], 2, exits.AGAIN, 3),
  (["75", "+75", "75", "0"], 2, exits.DONE, 4),  # a new checkpoint begins the count again
  (["75", "42"], 5, exits.NEVER, 2)])
def test_it_starts_again_while_that_helps(codes, restarts, want, starts, tmp_path, monkeypatch):
  monkeypatch.setattr(local.time, "sleep", lambda s, sleep=time.sleep: sleep(s / 20))
  command = [sys.executable, "-c", PRETENDS, str(tmp_path), *codes]
  assert local.run(lambda: local.Gang(command, 2), restarts, tmp_path) == want
  assert [(tmp_path / f"starts{i}").read_text() for i in "01"] == [str(starts)] * 2


@pytest.mark.usefixtures("handlers")
def test_a_signal_while_processes_start_is_passed_on_to_them():
  sent = []

  def start():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0)  # where Python calls the handler
    return types.SimpleNamespace(send=sent.append, wait=lambda: [75])

  assert local.run(start, 5, None) == exits.AGAIN and sent == [signal.SIGTERM]


@pytest.mark.parametrize(("train", "want"), [
  (["x.py", "--run-dir", "r", "--seed", "3"], Path("r")), (["x.py", "--run-dir=r"], Path("r")),
  (["x.py", "--help"], None), (["x.py", "--run-dir"], None)])
def test_the_run_directory_is_found_however_it_is_given(train, want):
  assert local.run_dir(train) == want


def test_who_does_not_follow_is_killed(monkeypatch):
  monkeypatch.setattr(local, "LEAVE_S", 0.5)
  code = ("import os, sys, time; time.sleep(60 * (os.environ['JAX_PROCESS_ID'] == '1')); "
          "sys.exit(75)")
  gang = local.Gang([sys.executable, "-c", code], 2, echo=False)
  assert gang.wait() == [75, -signal.SIGKILL]


# Experiments that never come to training; the first says which process it is, and ends when asked.
ENDLESS = """
import os, pathlib, signal, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
pathlib.Path(os.environ["PIDS"], str(os.getpid())).touch()
time.sleep(60)
"""
TALKS = "import os\nfor _ in range(20): print('a word ' * 10000, flush=True)\nos._exit(42)"


@pytest.fixture
def launched(tmp_path):
  """Starts `launch local` of two processes with an experiment of this text; kills it in the end."""
  pids, file = tmp_path / "pids", tmp_path / "exp.py"
  pids.mkdir()
  launchers = []

  def launch(text, **options):
    file.write_text(text)
    command = [sys.executable, "-m", "launch", "local", "--processes", "2", "--", file,
               "--run-dir", tmp_path / "run"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PIDS": str(pids)}
    launchers.append(subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True,
                                      **options))
    return launchers[0], pids

  yield launch
  launchers[0].kill()
  launchers[0].wait()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's prctl")
def test_no_process_outlives_a_launcher_that_is_killed(launched):
  launcher, pids = launched(ENDLESS)
  until(lambda: len(list(pids.iterdir())) == 2, 60)
  launcher.kill()
  until(lambda: not any(alive(p.name) for p in pids.iterdir()), 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_ends_the_launcher_ends_its_processes_in_order(foreground, launched, number):
  launcher, pids = launched(ENDLESS)
  until(lambda: len(list(pids.iterdir())) == 2, 60)
  os.killpg(launcher.pid, number)  # as a terminal does
  assert launcher.wait(20) == exits.DONE


def test_a_job_goes_on_when_nobody_reads_what_it_says(launched):
  launcher, _ = launched(TALKS, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
  assert launcher.stdout.read(10)
  launcher.stdout.close()
  assert launcher.wait(20) == exits.NEVER


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


def test_engines_leave_the_environment_of_what_they_start_alone():
  code = ("import os\nbefore = dict(os.environ)\nimport launch.__main__\n"
          "assert dict(os.environ) == before, dict(os.environ).keys() - before.keys()")
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_command_teaches_and_refuses():
  code, text = said("--help")
  assert code == 0 and "local" in text
  code, text = said("local", "--help")
  assert code == 0 and "python -m launch local --processes 2 --" in text
  assert said("slrum")[0] == 2
  for bad in (("--processes", "0"), ("--devices", "0"), ("--restarts", "-1")):
    code, text = said("local", *bad, "--", "x.py", "--run-dir", "r")
    assert code == 2 and "--processes and --devices must be 1 or more" in text
  code, text = said("local", "--", "nowhere.py", "--run-dir", "r")
  assert code == 2 and "nowhere.py" in text
