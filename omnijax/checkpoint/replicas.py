"""Whether copies of the same values on several devices still are the same.

A device that computes wrongly without a word (silent data corruption) shows in its copy first.
"""

from collections import Counter, defaultdict
from typing import Any

import jax
import numpy as np

from omnijax.checkpoint import arrays as arrays_lib
from omnijax.job import exits


def check(tree: Any) -> None:
  """Compares the bits of all copies; every process must call it.

  Raises:
    Again: some differ; the devices that are not as most are named.
  """
  if found := differing(arrays_lib.named(tree)):
    raise exits.Again(f"copies of the same values differ: {'; '.join(found[:5])}; the device may "
                      "compute wrongly. The same command goes on from the newest checkpoint, whose "
                      "copies were compared")


def differing(arrays: dict[str, jax.Array]) -> list[str]:
  """In words, which devices hold other bits of which array than most that hold the same part."""
  mesh = jax.sharding.get_mesh()
  words = np.asarray(jax.device_get(_words(arrays)))
  devices = list(mesh.devices.flat)
  out = []
  for i, (name, x) in enumerate(arrays.items()):
    part = x.sharding.devices_indices_map(x.shape)
    copies = defaultdict(list)
    for device, word in zip(devices, words[:, i], strict=True):
      copies[str(part[device])].append((device, tuple(word)))
    for same in copies.values():
      (most, count), *others = Counter(word for _, word in same).most_common()
      if others:
        # Where there is no majority, all of them.
        odd = [f"{d.platform}:{d.id} of process {d.process_index}" for d, word in same
               if word != most or 2 * count <= len(same)]
        out.append(f"{name} on {', '.join(odd)}")
  return out


@jax.jit
def _words(arrays: dict[str, jax.Array]) -> jax.Array:
  """Fingerprints of what each device holds: [devices, arrays, 2]."""
  mesh = jax.sharding.get_abstract_mesh()
  specs = {name: jax.typeof(x).sharding.spec for name, x in arrays.items()}

  def local(arrays):
    return jax.numpy.stack([arrays_lib.words(x) for x in arrays.values()])[None]

  each = jax.shard_map(local, in_specs=(specs,), out_specs=jax.P(mesh.axis_names), check_vma=False)
  return jax.reshard(each(arrays), jax.P(None, None, None))
