"""A device whose copy is not as the others'."""

import jax
import numpy as np
import pytest

from omnijax import config, sharding
from omnijax.checkpoint import replicas
from omnijax.job import exits


def laid(value, spec, bad=()):
  """An array on the mesh; on the devices given it has another bit."""
  place = jax.sharding.NamedSharding(jax.sharding.get_mesh(), spec)
  parts = []
  for device, index in place.addressable_devices_indices_map(value.shape).items():
    part = value[index].copy()
    if device.id in bad:
      part.reshape(-1).view(np.uint32)[3] ^= 1 << 9
    parts.append(jax.device_put(part, device))
  return jax.make_array_from_single_device_arrays(value.shape, place, parts)


@pytest.fixture
def eight():
  with jax.set_mesh(sharding.make_mesh(config.Mesh(data=2, fsdp=4))):
    yield


def test_the_device_is_named(eight):
  value = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
  make = lambda bad: {"a": laid(value, jax.P(None, None), bad), "b": {"c": laid(
    value + 1, jax.P("fsdp", None))}}
  replicas.check(make(()))
  with pytest.raises(exits.Again, match=r"differ: a on cpu:5 of process 0; the device may"):
    replicas.check(make({5}))


def test_of_two_copies_nobody_knows_which_is_wrong(eight):
  value = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
  # Devices 1 and 5 hold the same quarter.
  with pytest.raises(exits.Again, match="w on cpu:1 of process 0, cpu:5 of process 0;"):
    replicas.check({"w": laid(value, jax.P("fsdp", None), {5})})
  replicas.check({"w": laid(value, jax.P(("data", "fsdp"), None), {5})})  # there is one of each
