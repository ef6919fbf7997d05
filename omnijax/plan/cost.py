"""How long a scheduled HLO module takes on a chip: arithmetic, memory, and collectives on the wire.

Each instruction takes the longest of its FLOPs at 90 % of the peak of their type, its bytes at 85 %
of the memory's rate, and 0.59 of the compiler's own estimated cycles (which price memory at half
its rate). A collective that starts before other work and is waited for after it costs only the
wait. The constants are of a study of MaxText's published step times, which they missed by 16 % at
worst; what is here was compared with no real step.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from omnijax.plan import hlo
from omnijax.plan.chips import Slice

ERROR = 0.16  # the largest miss of the constants in that study, of time
_MATMUL, _MEMORY, _CYCLES = 0.90, 0.85, 0.59
_RAGGED = 0.60  # of peak, of products in groups: assumed
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
                "ragged-all-to-all")
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota",
         "partition-id", "replica-id", "opt-barrier", "domain", "add-dependency")
_FREE_CALLS = ('"AllocateBuffer"', '"Sharding"', '"ConcatBitcast"', '"AssumeGatherIndicesInBound"')


@dataclasses.dataclass
class Collective:
  """What all collectives of a kind over the same mesh axes add up to, of one chip and step.

  And copies to and from the host's memory.
  """

  count: int = 0
  bytes: float = 0.0  # sent over the wire by a chip
  seconds: float = 0.0
  exposed: float = 0.0  # while nothing else is done


@dataclasses.dataclass
class Cost:
  """Of one chip and one run of a computation."""

  seconds: float = 0.0
  flops: float = 0.0  # of matrix products and attention kernels, as executed
  by_kind: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  collectives: dict[tuple[str, str], Collective] = dataclasses.field(default_factory=dict)
  # (start, seconds, what) in the order of the schedule, loops as a whole.
  timeline: list[tuple[float, float, str]] = dataclasses.field(default_factory=list)

  def book(self, key: tuple[str, str], size: float, seconds: float) -> None:
    """Counts one transfer."""
    booked = self.collectives.setdefault(key, Collective())
    booked.count, booked.bytes = booked.count + 1, booked.bytes + size
    booked.seconds += seconds

  def add(self, other: "Cost", times: int) -> None:
    """Runs another computation so many times, here."""
    self.seconds += other.seconds * times
    self.flops += other.flops * times
    for kind, seconds in other.by_kind.items():
      self.by_kind[kind] += seconds * times
    for key, c in other.collectives.items():
      mine = self.collectives.setdefault(key, Collective())
      for field in ("count", "bytes", "seconds", "exposed"):
        setattr(mine, field, getattr(mine, field) + getattr(c, field) * times)

  def collectives_by_bytes(self, timed: bool) -> list[dict[str, Any]]:
    """Collectives as plain values, those that send most first."""
    most = sorted(self.collectives.items(), key=lambda item: -item[1].bytes)
    keys = ("count", "bytes", "seconds", "exposed") if timed else ("count", "bytes")
    return [{"kind": kind, "axis": axis, **{k: getattr(c, k) for k in keys}}
            for (kind, axis), c in most]


@dataclasses.dataclass(frozen=True)
class _Wire:
  """A collective in flight."""

  done: float
  key: tuple[str, str] | None


class Estimator:
  """Walks a module's schedule for one chip of a slice.

  Args:
    module: the scheduled HLO.
    where: the slice it is compiled for.
    mesh: its mesh; collectives are named by its axes. Without one they are all "all".
    experts: of the whole model; work is taken to be shared out evenly among them.
    without: the name of a scope; where work in it can be done or left out, it is left out. All else
      that may happen does.
  """

  def __init__(self, module: hlo.Module, where: Slice, mesh: Any = None, experts: int = 0,
               without: str = ""):
    self.module, self.where, self.chip, self.mesh = module, where, where.chip, mesh
    self.experts, self.without = experts, without
    self._memo: dict[int, Cost] = {}

  def step(self) -> Cost:
    """The cost of the whole module."""
    return self._walk(self.module.computations[self.module.entry])

  def round(self) -> Cost:
    """The cost of one round of the loop in the module that goes on until something happens.

    Raises:
      ValueError: all its loops count.
    """
    for i in self.module.computations[self.module.entry].values():
      if i.opcode == "while" and not self.module.counts(i):
        return self._walk(self.module.computations[i.attribute("body") or ""])
    raise ValueError("the program has no loop that goes on until something happens.")

  def _walk(self, computation: hlo.Computation) -> Cost:
    if id(computation) in self._memo:
      return self._memo[id(computation)]
    cost, wires, free = Cost(), {}, {"wire": 0.0, "copy": 0.0, "network": 0.0, "host": 0.0}
    for i in computation.values():
      start = cost.seconds
      if i.opcode in ("while", "call"):
        for inner, times in self.module.called(i):
          cost.add(self._walk(inner), times)
        label = "loop" if i.opcode == "while" else "call"
      elif i.opcode == "conditional":
        cost.add(self._branch(i), 1)
        label = "call"
      elif i.opcode in _FREE:
        continue
      elif i.opcode.endswith(("-start", "-update")) or i.opcode in ("send", "recv"):
        self._begin(i, computation, cost, wires, free)
        continue
      elif i.opcode.endswith("-done"):
        label = "wait"
        wire = wires.get(self._root(i, computation))
        if wire and wire.done > cost.seconds:
          cost.by_kind["wait"] += wire.done - cost.seconds
          if wire.key:
            cost.collectives[wire.key].exposed += wire.done - cost.seconds
          cost.seconds = wire.done
      elif i.opcode in _COLLECTIVES:
        label = "wait"
        seconds, key = self._send(i, i, computation, cost)
        cost.collectives[key].exposed += seconds
        cost.by_kind["wait"] += seconds
        cost.seconds += seconds
      else:
        label, seconds, flops = self._compute(i, computation)
        cost.by_kind[label] += seconds
        cost.flops += flops
        cost.seconds += seconds
      if cost.seconds > start:
        name = i.op_name or i.name
        cost.timeline.append((start, cost.seconds - start, f"{label}: {name}"))
    self._memo[id(computation)] = cost
    return cost

  def _branch(self, i: hlo.Instruction) -> Cost:
    costs = sorted(map(self._walk, self.module.branches(i)), key=lambda c: c.seconds)
    inside = (j.op_name for c in self.module.branches(i) for j in c.values())
    left_out = self.without and any(f"/{self.without}/" in name for name in inside)
    return costs[0 if left_out else -1]

  def _begin(self, i, computation, cost, wires, free) -> None:
    """Something starts that goes on beside what follows."""
    name = self._root(i, computation)
    inner = self._collective(i, computation)
    if i.opcode == "recv":  # comes when what was sent for it is through
      wires[name] = wires.get(_rendezvous(i), _Wire(cost.seconds, None))
      return
    if i.opcode == "send":  # over the network between slices, by the runtime of the hosts
      name, n = _rendezvous(i), self.where.slices
      size = 2 * i.outputs[0].bytes * (n - 1) / n
      seconds, key, lane = size / self.chip.network_rate, ("all-reduce", "slices"), "network"
      cost.book(key, size, seconds)
    elif inner is not None:
      if i.opcode.endswith("call-start") and not i.operands:  # they come with the update
        return
      seconds, key = self._send(inner, i, computation, cost)
      lane = "wire"
    elif any(a.host for a in i.outputs):  # of a copy, or of a slice of something on the host
      size, key, lane = max(a.bytes for a in i.outputs if not a.host), ("copy", "host"), "host"
      seconds = size / self.chip.host_rate
      cost.book(key, size, seconds)
    elif i.opcode in ("copy-start", "slice-start", "async-start"):
      moved = i.outputs[1].bytes if i.opcode == "slice-start" else i.bytes / 2
      seconds, key, lane = moved / (_MEMORY * self.chip.hbm_rate), None, "copy"
    else:
      return
    begun = max(cost.seconds, free[lane])
    free[lane] = begun + seconds
    wires[name] = _Wire(begun + seconds, key)

  def _root(self, i: hlo.Instruction, computation: hlo.Computation) -> str:
    """The first of a chain start, update, done."""
    while i.opcode.endswith(("-update", "-done")) and i.operands and i.operands[0] in computation:
      i = computation[i.operands[0]]
    return i.name

  def _collective(self, i: hlo.Instruction, computation: hlo.Computation
                  ) -> hlo.Instruction | None:
    """The collective that an asynchronous instruction runs."""
    if i.opcode.removesuffix("-start") in _COLLECTIVES:
      return i
    start = computation[i.operands[0]] if i.opcode.endswith("call-update") else i
    called = (start.attribute(key) for key in ("to_apply", "calls", "called_computations"))
    name = next((c.strip("{}%") for c in called if c), "")
    body = self.module.computations.get(name, {})
    return next((j for j in body.values() if j.opcode in _COLLECTIVES), None)

  def _send(self, i, at, computation, cost) -> tuple[float, tuple[str, str]]:
    """Seconds of a collective on the wire, and under what it was booked."""
    kind = i.opcode.removesuffix("-start")
    group = _group(i.rest)
    n = len(group)
    size = i.bytes
    if at.opcode.endswith("-start") and at is i and kind != "all-reduce" and len(i.outputs) > 1:
      size = max(a.bytes for a in i.outputs)
    wire = {"all-gather": size * (n - 1) / n, "reduce-scatter": size * (n - 1),
            "all-reduce": 2 * size * (n - 1) / n, "collective-permute": size}.get(
              kind, size * (n - 1) / n)
    axes, rate = self._path(tuple(group), kind == "collective-permute")
    cost.book((kind, axes), wire, wire / rate)
    return wire / rate, (kind, axes)

  def _path(self, group: tuple[int, ...], one_link: bool) -> tuple[str, float]:
    """The mesh axes a group lies along, and bytes/s of a chip among its members."""
    if self.mesh is None or self.mesh.devices.size <= max(group, default=0):
      return "all", self.chip.link_rate * 2 * self.chip.dims
    devices = self.mesh.devices
    places = np.stack(np.unravel_index(list(group), devices.shape))
    moving = [a for a, p in zip(self.mesh.axis_names, places, strict=True) if len(set(p)) > 1]
    members = [devices.flat[d] for d in group]
    if len({getattr(d, "slice_index", 0) for d in members}) > 1:
      return "+".join(moving), self.chip.network_rate
    coords = np.array([d.coords for d in members])
    links = 0.0
    for d, size in enumerate(self.where.shape):
      along = len(set(coords[:, d]))
      if along > 1:
        links += 2 if along == size and size >= self.chip.ring else 1
    return "+".join(moving) or "self", self.chip.link_rate * (1 if one_link else max(links, 1))

  def _compute(self, i: hlo.Instruction, computation: hlo.Computation
               ) -> tuple[str, float, float]:
    """Kind, seconds and FLOPs of what a chip does by itself."""
    if i.opcode == "custom-call":
      flops = attention_flops(i, computation)
      if flops:
        return "attention", flops / (self.chip.attention * self.chip.flops), flops
      flops = expert_flops(i, computation, self.experts)
      if flops:
        return "experts", flops / (_RAGGED * self.chip.flops), flops
      if i.attribute("custom_call_target") in _FREE_CALLS:
        return "memory", 0.0, 0.0
    flops, least = 0.0, 0.0
    for j, c in self._inside(i, computation):
      if made := hlo.matmul_flops(j, c):
        fast = 2 if c[j.operands[0]].outputs[0].kind == self.chip.twice else 1
        flops, least = flops + made, least + made / (_MATMUL * self.chip.flops * fast)
    moved = self._bytes(i, computation) / (_MEMORY * self.chip.hbm_rate)
    cycles = _CYCLES * _cycles(i) / self.chip.clock
    seconds = max(least, moved, cycles)
    return "matmul" if flops else "memory", seconds, flops

  def _inside(self, i, computation) -> Iterator[tuple[hlo.Instruction, hlo.Computation]]:
    yield i, computation
    if i.opcode == "fusion":
      for inner, _ in self.module.called(i):
        for j in inner.values():
          yield from self._inside(j, inner)

  def _bytes(self, i: hlo.Instruction, computation: hlo.Computation) -> float:
    """Bytes to and from HBM; of a slice taken from, or put into, something large only itself."""
    if i.opcode == "fusion":
      (inner, _), = self.module.called(i)
      return _fusion_bytes(inner, self.module)
    if i.opcode in ("dynamic-slice", "gather", "slice"):
      whole = computation[i.operands[0]]
      return (i.bytes if whole.far_bytes else 0) + i.far_bytes
    if i.opcode == "dynamic-update-slice":
      return 2 * computation[i.operands[1]].far_bytes
    inputs = sum(computation[o].far_bytes for o in i.operands if o in computation)
    return inputs + i.far_bytes


def _fusion_bytes(inner: hlo.Computation, module: hlo.Module) -> float:
  total = sum(_read(p, inner, module) for p in inner.values() if p.opcode == "parameter")
  last = list(inner.values())[-1]
  outputs = [inner[o] for o in last.operands] if last.opcode == "tuple" else [last]
  return total + sum(_written(out, inner, module) for out in outputs)


def _read(of: hlo.Instruction, inner: hlo.Computation, module: hlo.Module) -> float:
  """Bytes that a fusion reads of something: of what it takes slices from, only those."""
  whole, total = of.far_bytes, 0.0
  for user in inner.values() if whole else ():
    if of.name not in user.operands:
      continue
    if user.opcode in ("dynamic-slice", "gather", "slice"):
      total += user.bytes
    elif user.opcode == "bitcast":
      total += _read(dataclasses.replace(user, outputs=of.outputs), inner, module)
    elif user.opcode == "fusion":
      (deeper, _), = module.called(user)
      arguments = sorted((p for p in deeper.values() if p.opcode == "parameter"), key=hlo.number)
      total += sum(_read(dataclasses.replace(p, outputs=of.outputs), deeper, module)
                   for p, o in zip(arguments, user.operands, strict=True) if o == of.name)
    elif user.opcode != "dynamic-update-slice" or user.operands[0] != of.name:
      return whole
  return min(whole, total)


def _written(out: hlo.Instruction, inner: hlo.Computation, module: hlo.Module) -> float:
  """Bytes that a fusion writes of an output: of what it changes a slice of, only that."""
  if out.outputs[0].near:
    return 0.0
  at = out
  while at.opcode in ("bitcast", "copy") and at.operands[0] in inner:
    at = inner[at.operands[0]]
  if at.opcode == "dynamic-update-slice":
    return inner[at.operands[1]].bytes
  if at.opcode == "fusion" and len(at.outputs) == 1:
    (deeper, _), = module.called(at)
    return _written(list(deeper.values())[-1], deeper, module)
  return out.bytes


def _rendezvous(i: hlo.Instruction) -> str:
  """What a send and its recv have in common."""
  found = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', i.rest)
  return found[1] if found else i.name


def _cycles(i: hlo.Instruction) -> float:
  found = re.search(r'"estimated_cycles":"(\d+)"', i.rest)
  return float(found[1]) if found else 0.0


_KERNELS = {"fwd": 2, "dq": 3, "dkv": 4, "fused": 5}  # matrix products of each pair of blocks


def attention_flops(i: hlo.Instruction, computation: hlo.Computation) -> float:
  """FLOPs that a splash attention kernel executes: whole blocks on and below the diagonal."""
  kind = re.search(r"splash_m[hq]a_(fwd|dq|dkv)", i.name)
  if not kind:
    return 0.0
  wide = [computation[o].outputs[0].shape for o in i.operands
          if o in computation and len(computation[o].outputs[0].shape) >= 3
          and computation[o].outputs[0].kind in ("bf16", "f32")]
  queries, keys = wide[0], wide[1]
  T, H, S = queries[-2], queries[-1], keys[-2]
  sizes = [int(n) for n in re.findall(r'"block_(?:q|kv)\\?": (\d+)', i.rest)] or [512, 512]
  blocks = max(1, S // max(sizes))
  share = (1 + 1 / blocks) / 2
  # A kernel that makes all three gradients gives those of the queries in parts, by blocks of keys.
  fused = kind[1] == "dkv" and any(len(a.shape) > len(queries) for a in i.outputs)
  return _KERNELS["fused" if fused else kind[1]] * 2.0 * math.prod(queries[:-2]) * T * S * H * share


def expert_flops(i: hlo.Instruction, computation: hlo.Computation, experts: int) -> float:
  """FLOPs of a product in groups, of as many rows as the device's experts get on average."""
  if not re.match(r"ragged-dot(?!-metadata)", i.name) or not experts:
    return 0.0
  arrays = [computation[o].outputs[0].shape for o in i.operands if o in computation
            and computation[o].outputs[0].kind in ("bf16", "f32")]
  left, right = (s for s in arrays if len(s) >= 2)
  mine, *_ = i.outputs[0].shape if len(i.outputs[0].shape) == 3 else right
  width = right[-1] if len(right) == 2 else i.outputs[0].shape[-1]
  return 2.0 * left[0] * mine / experts * left[-1] * width


def _group(text: str) -> list[int]:
  """Members of the first group of a collective, by their place in the mesh."""
  named = re.search(r"replica_groups=mesh\[([^\]]*)\](?: \{([^}]*)\})?", text)
  if named:
    sizes = [(k, int(n)) for k, n in re.findall(r"'([^']+)'=(\d+)", named[1])]
    chosen = set(re.findall(r"'([^']+)'", named[2] or ""))
    grid = np.arange(math.prod(n for _, n in sizes)).reshape([n for _, n in sizes])
    return [int(d) for d in grid[tuple(slice(None) if k in chosen else 0 for k, _ in sizes)].flat]
  iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
  if iota:
    numbers = lambda s: [int(n) for n in s.split(",")]
    ids = np.arange(math.prod(numbers(iota[2]))).reshape(numbers(iota[2]))
    if iota[3]:
      ids = ids.transpose(numbers(iota[3]))
    return [int(d) for d in ids.reshape(numbers(iota[1]))[0]]
  listed = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
  if listed:
    return [int(n) for n in listed[1].split(",")]
  pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", text)
  return [int(pairs[1]), int(pairs[2])] if pairs else [0]

