"""Accelerators one can rent, and slices of them by name.

Peaks, memory and bandwidth are the vendors' (cloud.google.com/tpu/docs pages of each). The rates of
single links, the network between slices and clocks are not published there: links from the total
per chip, clocks from peak / (FLOPs in an estimated cycle of the compiler), the network assumed.
"""

import dataclasses
import math
import os
import re
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

RESERVED = 0.02  # of a chip's memory, which its runtime keeps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """One kind of accelerator."""

  name: str
  flops: float  # dense bfloat16, FLOP/s
  hbm: float  # bytes
  hbm_rate: float  # bytes/s
  link_rate: float  # bytes/s one way over one link of the torus
  dims: int  # of the torus
  ring: int  # chips along a dim from which on it closes to a ring
  network_rate: float = 6.25e9  # bytes/s of a chip to other slices
  clock: float  # Hz
  # Attention's kernel: its share of peak, as published step times of MaxText suggest.
  attention: float


CHIPS = {c.name: c for c in (
  Chip(name="v5e", flops=197e12, hbm=16 * 2**30, hbm_rate=819e9, link_rate=45e9, dims=2, ring=16,
       clock=1.5e9, attention=0.40),
  Chip(name="v5p", flops=459e12, hbm=95 * 2**30, hbm_rate=2765e9, link_rate=90e9, dims=3, ring=4,
       clock=1.75e9, attention=0.40),
  Chip(name="v6e", flops=918e12, hbm=32 * 2**30, hbm_rate=1640e9, link_rate=90e9, dims=2, ring=16,
       clock=1.75e9, attention=0.28),
)}


@dataclasses.dataclass(frozen=True)
class Slice:
  """Chips joined by one torus, such as v5p:4x4x4, and how many such."""

  chip: Chip
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def chips(self) -> int:
    return math.prod(self.shape) * self.slices

  @property
  def name(self) -> str:
    return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

  def need_compiler(self) -> None:
    """Raises ModuleNotFoundError if the TPU's compiler isn't installed."""
    import libtpu  # noqa: F401

  def devices(self) -> list[Any]:
    """What jax compiles for.

    Raises:
      ValueError: there is no such topology.
    """
    from jax.experimental import topologies
    more = {"num_slices": self.slices} if self.slices > 1 else {}
    try:
      return list(topologies.get_topology_desc(platform="tpu", topology_name=self.name,
                                               **more).devices)
    except Exception as error:
      raise ValueError(f"the TPU's compiler knows no topology {self.name}: {error}. "
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
  if slices < 1:
    raise ValueError(f"--slices is {slices}; wanted 1 or more.")
  return Slice(chip, shape, slices)


def _examples() -> str:
  return ("Wanted CHIP:SHAPE, such as v5e:4x4, v5e:16x16, v5p:2x2x1, v5p:4x4x4, v5p:8x8x16, "
          "v6e:8x8 or v6e:16x16.")
