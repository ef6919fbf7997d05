"""Which documents a run's samples are made of."""

import types

import numpy as np
import tiny

from omnijax import vocab as vl
from omnijax.data import documents
from omnijax.evals import samples


def test_prompts_are_found_wherever_they_are(monkeypatch):
  """Pictures come last, far behind the first documents that are looked at."""
  plain = tiny.parts(np.random.default_rng(0))[:1]
  counts = documents.counts(np.zeros(1, documents.PART), np.array([0])).repeat(9000)
  reads = []

  def read(i):
    reads.append(i)
    kind = vl.TEXT if i < 4000 else vl.AUDIO if i < 8500 else vl.IMAGE
    return [documents.Part(vl.TEXT, documents.USER, np.array([i % 200])),
            documents.Part(kind, documents.ASSISTANT, plain[0].codes)]

  class Fake:
    def __init__(self, name):
      self.name, self.counts, self.read = name, counts, read

    def __len__(self):
      return len(counts)

  monkeypatch.setattr(samples, "Records", Fake)
  run = types.SimpleNamespace(data=types.SimpleNamespace(heldout=("a",), sources=("b",)))
  found = samples._prompts(run)
  assert {name: len(prompts) for name, prompts in found.items()} == {
    "text": samples.EACH, "image": samples.EACH, "audio": samples.EACH}
  for prompts in found.values():
    for asked, turn in prompts:
      assert asked.role == documents.USER and len(asked.codes) == 1
      assert turn.role == documents.ASSISTANT and len(turn.codes) == 0
  assert len(reads) <= 2000
