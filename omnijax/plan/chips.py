"""Accelerators one can rent, and slices of them by name.

Peaks, memory and bandwidth are the vendors' (cloud.google.com/tpu/docs pages of each). The rates of
single links, the network between slices and clocks are not published there: links from the total
per chip, clocks from peak / (FLOPs in an estimated cycle of the compiler), the network and the way
to the host (16 lanes of PCIe 3, of a v6e 4) assumed.
Of GPUs and CPUs there is no model of time here: memory and what is sent can be told, seconds not.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

RESERVED = 0.02  # of a chip's memory, which its runtime keeps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """One kind of accelerator."""

  name: str
  platform: str = "tpu"
  devices: int = 1  # that jax sees in one; all figures here and in plans are of such a device
  hbm: float = math.inf  # bytes
  dims: int = 1  # of the torus
  # Those that follow are infinite where there is no model of time.
  flops: float = math.inf  # dense bfloat16, FLOP/s
  hbm_rate: float = math.inf  # bytes/s
  link_rate: float = math.inf  # bytes/s one way over one link of the torus
  ring: int = 1  # chips along a dim from which on it closes to a ring
  network_rate: float = math.inf  # bytes/s of a chip to other slices
  host_rate: float = math.inf  # bytes/s of a chip to or from its host's memory
  clock: float = math.inf  # Hz
  twice: str = ""  # XLA's name of a type whose products are twice as fast
  # Attention's kernel: its share of peak, as published step times of MaxText suggest.
  attention: float = 1.0

  @property
  def timed(self) -> bool:
    return math.isfinite(self.flops)


_NETWORK = 6.25e9
CHIPS = {c.name: c for c in (
  Chip(name="v5e", flops=197e12, hbm=16 * 2**30, hbm_rate=819e9, link_rate=45e9, dims=2, ring=16,
       network_rate=_NETWORK, host_rate=16e9, clock=1.5e9, twice="s8", attention=0.40),
  Chip(name="v5p", flops=459e12, hbm=95 * 2**30, hbm_rate=2765e9, link_rate=90e9, dims=3, ring=4,
       network_rate=_NETWORK, host_rate=16e9, clock=1.75e9, twice="s8", attention=0.40),
  Chip(name="v6e", flops=918e12, hbm=32 * 2**30, hbm_rate=1640e9, link_rate=90e9, dims=2, ring=16,
       network_rate=_NETWORK, host_rate=32e9, clock=1.75e9, twice="s8", attention=0.28),
  # A chip has two cores that share its links; attention as on v6e, whose matrix units are as wide.
  Chip(name="tpu7x", devices=2, flops=1153.5e12, hbm=96 * 2**30, hbm_rate=3690e9, link_rate=45e9,
       dims=3, ring=4, network_rate=_NETWORK / 2, host_rate=16e9, clock=2.2e9, twice="f8e4m3fn",
       attention=0.28),
  Chip(name="h100", platform="cuda", hbm=81_559 * 2**20),
  Chip(name="h200", platform="cuda", hbm=143_771 * 2**20),
  Chip(name="cpu", platform="cpu"),
)}
_HOST = 8  # GPUs of a host
# What XLA wants to know of a GPU that isn't here, by NVIDIA's data sheets (Hopper).
_GPU = """
platform_name: "CUDA" device_description_str: "NVIDIA H100"
dnn_version_info {{ major: 9 minor: 10 }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }} core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472 shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448 l2_cache_size: 52428800
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  device_memory_size: {memory} memory_bandwidth: 3350000000000
}}"""


@dataclasses.dataclass(frozen=True)
class Slice:
  """Chips joined by one torus, such as v5p:4x4x4, and how many such."""

  chip: Chip
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def chips(self) -> int:
    """Devices, as jax sees them."""
    return math.prod(self.shape) * self.slices * self.chip.devices

  @property
  def name(self) -> str:
    return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

  @property
  def hbm_gib(self) -> float | None:
    """Memory of a chip; None where that isn't known."""
    return self.chip.hbm / 2**30 if math.isfinite(self.chip.hbm) else None

  def need_compiler(self) -> None:
    """Raises ModuleNotFoundError if the compiler for it isn't installed."""
    if self.chip.platform == "tpu":
      import libtpu  # noqa: F401
    elif self.chip.platform == "cuda" and not any(
        importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
      raise ModuleNotFoundError(name="jax_cuda13_plugin")

  def devices(self) -> list[Any]:
    """What jax compiles for; of CPUs, those of this process, which must have no others yet.

    Raises:
      ValueError: there is no such topology.
    """
    import jax
    from jax.experimental import topologies
    # Of a TPU that this host may have nothing is wanted here. Set where the compiler is loaded:
    # processes that are to use a TPU must not get them.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    more: dict[str, Any] = {}
    if self.chip.platform == "cpu":
      jax.config.update("jax_num_cpu_devices", self.chips)
      return list(jax.devices("cpu"))
    if self.chip.platform == "cuda":
      on_host = min(self.chips, _HOST)
      more = {"topology": f"1x{self.chips // on_host}x{on_host}",
              "target_config": _GPU.format(memory=int(self.chip.hbm))}
    elif self.slices > 1:
      more = {"num_slices": self.slices}
    name = self.name if self.chip.platform == "tpu" else ""
    try:
      return list(topologies.get_topology_desc(name, self.chip.platform, **more).devices)
    except Exception as error:
      raise ValueError(f"the compiler knows no topology {self.name}: {error}. "
                       f"{_examples()}") from error


def parse(text: str, slices: int = 1) -> Slice:
  """A slice from its name, such as v5p:4x4x4.

  Raises:
    ValueError: no such chip, not the chip's number of dims, or no slice.
  """
  found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", text)
  chip = CHIPS.get(found[1]) if found else None
  if not found or not chip:
    raise ValueError(f"unknown topology {text!r}. {_examples()}")
  shape = tuple(int(n) for n in found[2].split("x"))
  if len(shape) != chip.dims or min(shape) < 1:
    raise ValueError(f"topology {text!r} has {len(shape)} dims; {chip.name} is wired in "
                     f"{chip.dims}. {_examples()}")
  if chip.platform == "cuda" and shape[0] > _HOST and shape[0] % _HOST:
    raise ValueError(f"topology {text!r} has {shape[0]} GPUs; wanted at most {_HOST}, or hosts of "
                     f"{_HOST}, such as {shape[0] // _HOST * _HOST}.")
  if slices > 1 and chip.platform != "tpu":
    raise ValueError(f"--slices is {slices}; only TPUs come in slices. {_examples()}")
  if slices < 1:
    raise ValueError(f"--slices is {slices}; wanted 1 or more.")
  return Slice(chip, shape, slices)


def _examples() -> str:
  return ("Wanted CHIP:SHAPE, such as v5e:4x4, v5e:16x16, v5p:2x2x1, v5p:4x4x4, v5p:8x8x16, "
          "v6e:16x16, tpu7x:2x2x1, h100:8, h200:16 or cpu:8.")
