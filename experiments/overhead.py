"""What it costs that no step is lost: `python -m experiments.overhead RECORDS [--json FILE]`.

RECORDS are the quickstart's (`quickstart_run/records/train`). Its run is trained at its own
interval of saving, in one process. From save to save, fingerprints, lists of files, watchdog and
ledger are in turn there and not; a block with them is compared with the mean of the two beside it.
Blocks begin with their save. Seven minutes on two cores.
"""

import argparse
import dataclasses
import json
import platform
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax

from experiments import quickstart
from omnijax import checkpoint, host
from omnijax.checkpoint import arrays, manifest
from omnijax.job import goodput, processes, watchdog
from omnijax.train import loop

_WARM = 2  # blocks that compile


class Switch:
  """Takes the four away and brings them back."""

  def __init__(self) -> None:
    self.on, self.starts = True, list[float]()
    self.spent = dict.fromkeys(("fingerprints", "lists of files", "watchdog", "ledger"), 0.0)
    self.dogs: list[watchdog.Watchdog] = []
    arrays.fingerprints = self.switched(arrays.fingerprints, {}, "fingerprints")
    manifest.write = self.switched(manifest.write, None, "lists of files")
    for name in ("enter", "at", "flush"):
      old = getattr(goodput.Ledger, name)
      setattr(goodput.Ledger, name, self.switched(old, None, "ledger"))
    watchdog.Watchdog.alive = self.switched(watchdog.Watchdog.alive, None, "watchdog")
    begin, save = watchdog.Watchdog.__init__, checkpoint.Checkpoints.save

    def kept(dog, *args, **kwargs):
      begin(dog, *args, **kwargs)
      self.dogs.append(dog)

    def saved(*args, **kwargs):
      self.flip()
      save(*args, **kwargs)

    watchdog.Watchdog.__init__ = kept
    checkpoint.Checkpoints.save = saved

  def switched(self, function, nothing, name):
    def maybe(*args, **kwargs):
      if not self.on:
        return nothing
      begun = time.perf_counter()
      out = function(*args, **kwargs)
      self.spent[name] += time.perf_counter() - begun
      return out
    return maybe

  def flip(self) -> None:
    self.starts.append(time.perf_counter())
    self.on = len(self.starts) % 2 == 1
    dog = self.dogs[0]
    if self.on:
      dog._stop.clear()
      dog._waited = 0.0
      threading.Thread(target=dog._watch, daemon=True).start()
    else:
      dog._stop.set()


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("records", type=Path)
  parser.add_argument("--pairs", type=int, default=7, help="of blocks (default: %(default)s)")
  parser.add_argument("--json", type=Path, metavar="FILE")
  args = parser.parse_args()
  host.log_to_stderr()
  processes.join()
  run = quickstart.run()
  blocks = _WARM + 2 * args.pairs + 2
  run = dataclasses.replace(
    run, data=dataclasses.replace(run.data, sources=(str(args.records),)),
    train=dataclasses.replace(run.train, steps=(blocks + 2) * run.train.save_every))
  switch = Switch()
  with tempfile.TemporaryDirectory() as folder:
    loop.train(run, Path(folder) / "run")
  took = [b - a for a, b in zip(switch.starts, switch.starts[1:], strict=False)][_WARM:blocks]
  # The first has them, the second has not, and so on: each but the first lies between two without.
  on, off = took[2::2], took[1::2]
  ratios = [2 * here / (before + after) - 1
            for here, before, after in zip(on, off[:-1], off[1:], strict=True)]
  device = jax.devices()[0]
  result = {
    "overhead": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
    "pairs": len(ratios), "block_s": took, "steps_of_a_block": run.train.save_every,
    "spent_s": switch.spent, "device": device.device_kind, "machine": platform.processor(),
    "jax": jax.__version__, "python": platform.python_version()}
  print(json.dumps(result, indent=2))
  if args.json:
    args.json.write_text(json.dumps(result, indent=2) + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(main())
