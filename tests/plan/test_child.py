"""Work in a process of its own: what comes back, and that neither process outlives its use."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import pytest

from omnijax.plan import child

HERE = pathlib.Path(__file__)


def doubles(x, stage):
  print("noise of starting", file=sys.stderr, flush=True)
  stage("one")
  print("more noise", file=sys.stderr, flush=True)
  stage("two")
  print("a warning", file=sys.stderr, flush=True)
  return 2 * x, os.getpid()


def fails(how, stage):
  if how == "value":
    raise ValueError("no such thing")
  if how == "compiler":
    raise jax.errors.JaxRuntimeError("INTERNAL: too much\nof it")
  if how == "bug":
    raise KeyError("bug")
  print("F1127 01:26:30.283002    7006 fusion.cc:5] Check failed: x == 0 a split.\n*** stack ***\n"
        "    @  0x7ff9e639ef94  absl::Send()", file=sys.stderr, flush=True)
  os.abort()


def hangs(path, stage):
  pathlib.Path(path).write_text(str(os.getpid()))
  time.sleep(600)


def test_the_result_and_what_was_said_come_back(capfd):
  stages = []
  value, pid = child.call(doubles, 21, what="it", stage=stages.append)
  assert value == 42 and pid != os.getpid() and stages == ["one", "two"]
  assert capfd.readouterr().err == "a warning\n"


@pytest.mark.parametrize("how,error,message", [
  ("value", ValueError, "^no such thing$"),
  ("compiler", child.Refused, "failed on the step: INTERNAL: too much of it. Change the mesh"),
  ("crash", child.Refused, "failed on the step: it was ended by SIGABRT: Check failed: x == 0 a "
   "split. Change the mesh, data.rows"),
  ("bug", RuntimeError, r"the step was not compiled:(.|\n)*KeyError: 'bug'"),
])
def test_a_failure_says_what_and_why(how, error, message, capfd):
  with pytest.raises(error, match=message):
    child.call(fails, how, what="the step")
  assert "0x7ff9e639ef94" not in capfd.readouterr().err


def running(pid):
  try:
    state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  except FileNotFoundError:
    return False
  return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_it_ends_with_its_parent(number, tmp_path):
  script = tmp_path / "parent.py"
  script.write_text(f"""
import sys
sys.path[:0] = {[str(HERE.parent), str(HERE.parents[2])]!r}
import signal
import test_child
signal.signal(signal.SIGINT, signal.default_int_handler)  # not so in the background
if __name__ == "__main__":
  test_child.child.call(test_child.hangs, {str(tmp_path / "pid")!r}, what="it")
""")
  parent = subprocess.Popen([sys.executable, script], stderr=subprocess.DEVNULL)
  try:
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
      assert time.monotonic() < deadline and parent.poll() is None
      time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text())
    assert running(pid)
    parent.send_signal(number)
    assert parent.wait(30) != 0
    while running(pid):
      assert time.monotonic() < deadline
      time.sleep(0.05)
  finally:
    parent.kill()
    parent.wait()
