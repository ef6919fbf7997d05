"""Slices of TPUs as Google's services name them.

Labels and chips of a host: cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus; accelerator
types and runtime versions: cloud.google.com/tpu/docs/runtimes.
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence

from omnijax.plan import chips


@dataclasses.dataclass(frozen=True)
class Kind:
  """What one kind of chip is called."""

  gke: str  # label cloud.google.com/gke-tpu-accelerator
  type: str  # of TPU VMs, and of xpk
  version: str | None  # of the software on TPU VMs; None where there are none


KINDS = {
  "v5e": Kind("tpu-v5-lite-podslice", "v5litepod", "v2-alpha-tpuv5-lite"),
  "v5p": Kind("tpu-v5p-slice", "v5p", "v2-alpha-tpuv5"),
  "v6e": Kind("tpu-v6e-slice", "v6e", "v2-alpha-tpuv6e"),
  "tpu7x": Kind("tpu7x", "tpu7x", None),
}
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


@dataclasses.dataclass(frozen=True)
class Slice:
  """A slice that can be rented, and how many.

  Args:
    kind: of chip.
    topology: such as 4x4x4.
    slices: how many.
    hosts: of each slice.
    chips: of each host.
  """

  kind: Kind
  topology: str
  slices: int
  hosts: int
  chips: int


def parse(text: str, slices: int = 1, chips_per_host: int | None = None) -> Slice:
  """A slice from the name that `omnijax plan` has for it, such as v5p:4x4x4.

  Raises:
    ValueError: nobody rents out such a slice, or several slices of one host each.
  """
  made = chips.parse(text, slices)
  kind, shape = KINDS.get(made.chip.name), made.shape
  if kind is None:
    raise ValueError(f"--topology is {text!r}; wanted TPUs: {', '.join(KINDS)}.")
  if len(shape) == 2 and shape not in _FLAT:
    raise ValueError(f"--topology is {text!r}; wanted {_listed(_FLAT)}.")
  if len(shape) == 3 and shape not in _SMALL and (
      any(n % 4 for n in shape) or list(shape) != sorted(shape)):
    raise ValueError(f"--topology is {text!r}; wanted {_listed(_SMALL)}, or multiples of 4 in "
                     "rising order, such as 4x4x8.")
  count = math.prod(shape)
  each = min(count, 4) if chips_per_host is None else chips_per_host
  if each < 1 or count % each:
    raise ValueError(f"--chips-per-host is {each}; wanted a divisor of {text}'s {count} chips.")
  if slices > 1 and count == each:
    raise ValueError(f"--slices is {slices} of {text}, which is one host; wanted slices of several "
                     "hosts: others are not joined.")
  return Slice(kind, "x".join(map(str, shape)), slices, count // each, each)


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
  return ", ".join("x".join(map(str, shape)) for shape in shapes)


def add(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
  """The options that name a slice."""
  parser.add_argument("--topology", required=required, metavar="CHIP:SHAPE",
                      help="of a slice, such as v5e:4x4, v5p:4x4x4, v6e:16x16, tpu7x:2x2x2")
  parser.add_argument("--slices", type=int, default=1, metavar="N",
                      help="how many (default: %(default)s)")
