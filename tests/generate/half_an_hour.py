"""A program: half an hour of a dialogue with the codec that ships, as fast as it goes.

Prints how much memory it has after each minute, and how much had been compiled, as JSON.
"""

import dataclasses
import json
import queue
import re
import sys
from pathlib import Path

import jax
import numpy as np
import test_generate
import tiny
from flax import nnx

from omnijax import config, sharding
from omnijax.data.encode import Tokenizers
from omnijax.generate import slots
from omnijax.generate.service import Service
from omnijax.model.transformer import Omni
from omnijax.tokenizers import audio


def main() -> None:
  codec = audio.load(audio.DEFAULT)
  cfg = dataclasses.replace(tiny.MODEL, attention_window=128)
  vocab = dataclasses.replace(tiny.VOCAB, text=256, audio=codec.codes)
  with jax.set_mesh(sharding.make_mesh(config.Mesh(data=1, fsdp=1))):
    model = jax.jit(lambda key: Omni(cfg, vocab, sharding.RULES, rngs=nnx.Rngs(key)))(
      jax.random.key(0))
  tokenizers = Tokenizers(test_generate.Text(), test_generate.Image(), codec)
  service = Service(model, tiny.run(), tokenizers, slots=2, positions=96)
  service.warm()
  functions = [getattr(slots, f) for f in ("_step", "_prefill", "_put", "_rewind", "_replace")]
  functions += [audio._encode_some, audio._decode_some]
  compiled = lambda: [f._cache_size() for f in functions]
  frames, mib, at_first = queue.Queue(), [], []
  talk = service.talk(emit=frames.put)
  r = np.random.default_rng(0)
  for _ in range(30):
    for _ in range(15):
      talk.hear(r.normal(0, 0.1, 50 * codec.frame_size).astype(np.float32))
      frame = [frames.get(timeout=60) for _ in range(50)][-1]
    talk.truncate(frame.index - 5)
    talk.insert([{"text": "x"}])
    mib.append(resident_mib())
    print(f"{len(mib)} min: {mib[-1]:.1f} MiB", file=sys.stderr, flush=True)
    at_first = at_first or compiled()
  service.close()
  print(json.dumps({"frames": frame.index + 1, "mib": mib, "compiled": compiled(),
                    "compiled_at_first": at_first}))


def resident_mib() -> float:
  status = Path("/proc/self/status").read_text()
  return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


if __name__ == "__main__":
  main()
