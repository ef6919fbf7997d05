"""Of a process that hangs: what ends it, and what is left to read."""

import subprocess
import sys
import time

from omnijax.job import exits, watchdog

HANGS = """
import pathlib, sys, threading, time
from omnijax import host
from omnijax.job import watchdog
host.log_to_stderr()
dog = watchdog.Watchdog(1.0, pathlib.Path(sys.argv[1]), tick=0.1)
for i in range(8):
  dog.alive(f"step {i}")
  time.sleep(0.3)
def asleep_in_a_step():
  threading.Event().wait()
asleep_in_a_step()
"""


def test_what_hangs_is_shown_and_ended(tmp_path):
  log = tmp_path / "log.txt"
  begun = time.monotonic()
  ended = subprocess.run([sys.executable, "-c", HANGS, str(log)], capture_output=True, text=True,
                         timeout=60)
  assert ended.returncode == exits.STUCK, ended.stderr
  assert time.monotonic() - begun > 2.4 + 1.0  # signs of life were heard
  assert "asleep_in_a_step" in ended.stderr and "asleep_in_a_step" in log.read_text()
  assert ended.stderr.splitlines()[-1].startswith("stuck in step 7 for 1 s")


def test_it_may_be_off_or_closed():
  watchdog.Watchdog(0)
  watchdog.Watchdog(0.1, tick=0.02).close()
  time.sleep(0.3)  # either would have ended this process
