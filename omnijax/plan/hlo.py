"""Reads the text of a scheduled HLO module: computations, instructions, loops and their FLOPs.

Only what a cost model needs. The text is what `Compiled.as_text()` of jax gives; the syntax is
XLA's (xla/hlo/parser).
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2,
          "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "token": 0}
_ARRAY = re.compile(r"([a-z]+[0-9]*(?:e[0-9]m[0-9][a-z]*)?)\[([0-9,]*)\](\{[^{}]*\})?")
_HEAD = re.compile(r"^\s*(ROOT )?%?([\w.-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of an instruction's output."""

  kind: str
  shape: tuple[int, ...]
  near: bool = False  # in the vector memory of a TPU's core
  host: bool = False  # in the host's memory

  @property
  def bytes(self) -> float:
    return math.prod(self.shape) * _BYTES.get(self.kind, 1)

  @property
  def far_bytes(self) -> float:
    """Bytes that are moved to read or write it."""
    return 0 if self.near else self.bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation."""

  name: str
  opcode: str
  outputs: tuple[Array, ...]
  operands: tuple[str, ...]
  rest: str  # attributes, as text

  @property
  def bytes(self) -> float:
    return sum(a.bytes for a in self.outputs)

  @property
  def far_bytes(self) -> float:
    return sum(a.far_bytes for a in self.outputs)

  def attribute(self, key: str) -> str | None:
    """A plain attribute such as `calls` or `dim_labels`, without a leading %."""
    found = re.search(rf"[ ,]{key}=%?([^\s,]+)", self.rest)
    return found[1] if found else None

  @property
  def op_name(self) -> str:
    """Where in the program it comes from."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else ""


Computation = dict[str, Instruction]  # in the order of the schedule


@dataclasses.dataclass(frozen=True)
class Module:
  """All computations by name."""

  computations: dict[str, Computation]
  entry: str

  def called(self, of: Instruction) -> Iterator[tuple[Computation, int]]:
    """Computations that an instruction always runs, and how many times."""
    if of.opcode == "while":
      yield self.computations[of.attribute("body") or ""], self.trips(of)
    elif of.opcode in ("fusion", "call", "async-start"):
      yield self.computations[of.attribute("calls") or of.attribute("to_apply") or ""], 1

  def branches(self, of: Instruction) -> list[Computation]:
    """Computations of which a conditional runs one."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", of.rest)
    names = listed[1].split(",") if listed else [
      of.attribute(f"{which}_computation") or "" for which in ("true", "false")]
    return [self.computations[name.strip().lstrip("%")] for name in names]

  def counts(self, loop: Instruction) -> bool:
    """Whether `trips` can be told."""
    try:
      return self.trips(loop) > 0
    except ValueError:
      return False

  def trips(self, loop: Instruction) -> int:
    """How often a while loop runs, from its bound, first value and step.

    Raises:
      ValueError: the loop isn't one that counts.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
    if known:
      return int(known[1])
    condition = self.computations[loop.attribute("condition") or ""]
    compare = next((i for i in condition.values() if i.opcode in ("compare", "fusion")), None)
    found = compare and self._counter(condition, compare)
    if not found:
      raise ValueError(f"the loop {loop.name} doesn't count to a constant; its trips are unknown.")
    index, bound = found
    body = self.computations[loop.attribute("body") or ""]
    return max(1, math.ceil((bound - self._first(loop, index)) / self._step(body, index)))

  def _counter(self, condition: Computation, compare: Instruction) -> tuple[int, int] | None:
    """Which element of the loop's tuple is compared, and with what."""
    index = bound = None
    for name in compare.operands:
      at = condition[name]
      while at.opcode in ("copy", "bitcast"):
        at = condition[at.operands[0]]
      if at.opcode == "get-tuple-element":
        index = int(at.attribute("index") or 0)
      elif at.opcode == "constant":
        bound = number(at)
    return None if index is None or bound is None else (index, bound)

  def _first(self, loop: Instruction, index: int) -> int:
    """The value that a loop's counter starts from; 0 where it can't be seen."""
    for computation in self.computations.values():
      if computation.get(loop.name) is not loop:
        continue
      at = computation[loop.operands[0]]
      if at.opcode == "tuple":
        at = computation[at.operands[index]]
      while at.opcode in ("copy", "bitcast"):
        at = computation[at.operands[0]]
      return number(at) if at.opcode == "constant" else 0
    return 0

  def _step(self, body: Computation, index: int) -> int:
    """By how much a loop's counter grows; 1 where it can't be seen."""
    root = list(body.values())[-1]
    if root.opcode != "tuple":
      return 1
    at = body[root.operands[index]]
    inner = body
    while at.opcode in ("copy", "bitcast", "fusion"):
      if at.opcode == "fusion":
        inner = self.computations[at.attribute("calls") or ""]
        at = list(inner.values())[-1]
      else:
        at = inner[at.operands[0]]
    if at.opcode == "add":
      for name in at.operands:
        if name in inner and inner[name].opcode == "constant":
          return max(1, number(inner[name]))
    return 1


def parse(text: str) -> Module:
  """Reads a module.

  Raises:
    ValueError: there is no entry computation, so it is no HLO module.
  """
  computations: dict[str, Computation] = {}
  entry, current, last = "", None, ""

  def keep() -> None:
    made = _instruction(last) if current is not None else None
    if current is not None and made:
      current[made.name] = made

  for line in text.splitlines():
    if line.startswith(("%", "ENTRY")) and _COMPUTATION.match(line):
      head = _COMPUTATION.match(line)
      assert head
      keep()
      current, last = computations.setdefault(head[2], {}), ""
      entry = head[2] if head[1] else entry
    elif line.rstrip() == "}":
      keep()
      current, last = None, ""
    elif _HEAD.match(line):
      keep()
      last = line
    else:
      last += line  # attributes of an instruction may go on over lines
  if not entry:
    raise ValueError("no ENTRY computation in it; wanted the text of a compiled HLO module.")
  return Module(computations, entry)


def _instruction(line: str) -> Instruction | None:
  head = _HEAD.match(line)
  if not head:
    return None
  at = head.end()
  end = _closing(line, at) if line[at] == "(" else line.index(" ", at)
  shape, rest = line[at:end], line[end:].lstrip()
  opcode, _, after = rest.partition("(")
  close = _closing(rest, len(opcode))
  arguments = rest[len(opcode) + 1 : close - 1]
  literal = opcode in ("constant", "parameter", "iota")
  operands = () if literal else tuple(re.findall(r"%([\w.-]+)", arguments))
  outputs = tuple(Array(kind, tuple(int(n) for n in dims.split(",") if n), "S(1)" in layout,
                        "S(5)" in layout)
                  for kind, dims, layout in _ARRAY.findall(shape))
  attributes = (arguments if literal else "") + " " + rest[close:]
  return Instruction(head[2], opcode, outputs, operands, attributes)


def _closing(text: str, start: int) -> int:
  """Just after the parenthesis that closes the one at start."""
  depth = 0
  for i in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[i], 0)
    if not depth:
      return i + 1
  return len(text)


def number(of: Instruction) -> int:
  """The value of a constant, or which of the parameters one is."""
  found = re.match(r"\s*(-?\d+)", of.rest)
  return int(found[1]) if found else 0


def matmul_flops(of: Instruction, computation: Computation) -> float:
  """FLOPs of a dot or convolution, a multiply and an add as two; 0 of anything else.

  The TPU's compiler writes every matrix product as a convolution whose windows may hang over the
  edge of their input; only what falls inside is work.
  """
  if of.opcode == "dot":
    left = computation[of.operands[0]].outputs[0].shape
    dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", of.rest)
    inner = [left[int(i)] for i in dims[1].split(",") if i] if dims else []
    return 2.0 * math.prod(of.outputs[0].shape) * math.prod(inner)
  if of.opcode != "convolution":
    return 0.0
  lhs_dims, rhs_out = (of.attribute("dim_labels") or "").split("_")
  rhs_dims, out_dims = rhs_out.split("->")
  lhs, rhs = (computation[name].outputs[0].shape for name in of.operands[:2])
  out = of.outputs[0].shape
  window = _window(of.rest)
  taps = 1.0
  for d in sorted(c for c in lhs_dims if c.isdigit()):
    taps *= _taps(lhs[lhs_dims.index(d)], out[out_dims.index(d)], int(d), window)
  return (2.0 * taps * out[out_dims.index("b")] * out[out_dims.index("f")]
          * rhs[rhs_dims.index("i")])


def _window(text: str) -> dict[str, list[str]]:
  found = re.search(r"window=\{([^}]*)\}", text)
  pairs = (part.split("=") for part in (found[1].split() if found else []))
  return {key: value.split("x") for key, value in pairs}


def _taps(size: int, outputs: int, dim: int, window: Mapping[str, list[str]]) -> int:
  """Pairs of an output and a tap of the kernel that meet an input, along one dim."""
  get = lambda key, default: window[key][dim] if key in window else default
  taps, stride = int(get("size", 1)), int(get("stride", 1))
  low = int(str(get("pad", "0_0")).split("_")[0])
  spread, reach = int(get("lhs_dilate", 1)), int(get("rhs_dilate", 1))
  length = (size - 1) * spread + 1
  count = 0
  for tap in range(taps):
    # Outputs o with 0 <= o * stride + tap * reach - low < length, on an input that isn't a hole.
    offset = tap * reach - low
    first = max(0, math.ceil(-offset / stride))
    last = min(outputs - 1, (length - 1 - offset) // stride)
    if spread == 1:
      count += max(0, last - first + 1)
    else:
      count += sum((o * stride + offset) % spread == 0 for o in range(first, last + 1))
  return count
