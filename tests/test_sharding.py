"""Meshes that don't fit, and how rows are laid out over devices."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from omnijax import config, sharding
from omnijax.sharding import AXES, RULES


def mesh(**axes):
  return sharding.make_mesh(config.Mesh(**{"data": 1, "fsdp": 1} | axes))


@pytest.mark.parametrize("axes,changes,message", [
  ({"fsdp": 8}, {"data": {"rows": 12}}, r"accumulate is 12.*'fsdp'.* product 8.*use 8 or 16"),
  ({"context": 4}, {"data": {"positions": 60}}, r"positions is 60; with 4 devices.*multiple of 8"),
  ({"context": 8}, {"data": {"rows": 1, "frames": 12}}, r"frames is 12.*use 8 or 16"),
  ({"expert": 4}, {"model": {"experts": 6}}, r"model.experts is 6.*'expert'.*use 4 or 8"),
  ({"tensor": 4}, {}, r"model.kv_heads is 2.*'tensor'.*use 4"),
])
def test_sizes_that_a_mesh_does_not_divide_are_named(axes, changes, message):
  made = mesh(**axes)
  sharding.check_divides(tiny.run(), mesh())
  with pytest.raises(ValueError, match=message):
    sharding.check_divides(tiny.run(**changes), made)


def test_too_few_or_many_devices_are_named():
  with pytest.raises(ValueError, match=r"needs a multiple of 3 devices, and there are 8"):
    mesh(data=3, fsdp=-1)


def test_every_device_along_a_row_has_as_many_pairs_to_attend_to():
  with jax.set_mesh(mesh(context=4)):
    order = RULES.order(64)
  shares = order.reshape(4, 16)
  assert (np.sort(order) == np.arange(64)).all()
  assert len({int(share.sum()) for share in shares}) == 1  # a position sees those before it
  with jax.set_mesh(mesh(fsdp=8)):
    assert (RULES.order(64) == np.arange(64)).all()


def test_axes_of_one_device_are_in_no_type():
  with jax.set_mesh(mesh(data=2, tensor=4)):
    assert RULES("batch", "seq", "embed") == jax.P("data", None, None)
    with pytest.raises(ValueError, match=r"mesh axis is used twice"):
      dataclasses.replace(RULES, embed=("tensor",))("embed", "mlp")
  assert AXES == tuple(f.name for f in dataclasses.fields(config.Mesh))
