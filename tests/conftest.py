"""Eight CPU devices for every test, whatever the machine has; set before anything imports jax."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# The tests' models are so small that compiling them is most of the work: without the backend's
# optimisation passes it takes a third of the time, and the numbers stay within every tolerance.
os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "")
                           + " --xla_backend_optimization_level=0").strip()

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
