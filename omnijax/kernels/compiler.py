"""What XLA is told about each kind of device."""

import jax

# Collectives of weights run on the sparse cores beside the matrix products, and are what they say:
# without these, 64 chips of a v5p gather and scatter by whole all-reduces, twice the bytes, while
# the cores wait.
_SPARSE_CORE = {
  "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
  "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather": "true",
  "xla_tpu_enable_sparse_core_collective_offload_3d_all_gather": "true",
  "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
  "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter": "true",
  "xla_tpu_prefer_async_allgather_to_allreduce": "true",
}
_OPTIONS = {"TPU v5": _SPARSE_CORE, "TPU v5p": _SPARSE_CORE, "TPU v6 lite": _SPARSE_CORE}


def options(device_kind: str) -> dict[str, str] | None:
  """Options with which a train step is compiled for a device, by its `device_kind`."""
  return _OPTIONS.get(device_kind)


def platform() -> str:
  """Of the devices that what is being traced will run on: cpu, gpu or tpu."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device is not None else jax.default_backend()
