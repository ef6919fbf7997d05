"""Eight CPU devices for every test, whatever the machine has; set before anything imports jax."""

import atexit
import importlib.metadata
import os
import shutil
import signal
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# The tests' models are so small that compiling them is most of the work: without the backend's
# optimisation passes it takes a third of the time, and the numbers stay within every tolerance.
os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "")
                           + " --xla_backend_optimization_level=0").strip()
# The older code for fusions compiles in half the time; jax 0.12 has lost it.
if importlib.metadata.version("jaxlib").startswith("0.10."):
  os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# Programs are compiled once for all tests, their processes, and those that they start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _cache = tempfile.mkdtemp(prefix="omnijax_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
  atexit.register(shutil.rmtree, _cache, ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
# Shapes of different rank never meet by accident: a missing axis is a mistake more often than not.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def mesh():
  """A mesh of one device, set for the length of the test: for code that isn't about sharding."""
  from omnijax import config, sharding

  with jax.set_mesh(sharding.make_mesh(config.Mesh(data=1, fsdp=1))) as one:
    yield one


@pytest.fixture
def foreground():
  """SIGINT and SIGHUP as on a terminal: who runs the tests in the background ignores them."""
  heed = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
  before = {number: signal.signal(number, handler) for number, handler in heed.items()}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)
