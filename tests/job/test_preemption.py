"""SIGTERM is obeyed, whatever else asks jax about it."""

import os
import subprocess
import sys
from pathlib import Path

# Asks as training does, with orbax saving step 3 in between, right before SIGTERM comes.
ASKS = """
import os, signal, time
from omnijax.job import preemption, processes
processes.join()
from orbax.checkpoint._src.multihost import multihost
mine = preemption.Preemption()
assert not any(mine.reached() for _ in range(10))
assert not multihost.reached_preemption(3)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(3)
print([mine.reached() for _ in range(3)], flush=True)
os._exit(0)
"""


def test_orbax_does_not_hide_it():
  env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run([sys.executable, "-c", ASKS], env=env, text=True, capture_output=True)
  assert done.stdout.split("\n")[-2] == "[True, True, True]", done.stdout + done.stderr
