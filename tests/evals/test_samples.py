"""Which documents a run's samples are made of."""

import numpy as np
import pytest
import tiny

from omnijax import vocab as vl
from omnijax.data import documents
from omnijax.evals import samples


@pytest.mark.parametrize("prompt", [3, 60])
def test_prompts_are_found_wherever_they_are_and_leave_room(monkeypatch, prompt):
  """Pictures come last, far behind the first documents that are looked at."""
  table, reads = np.zeros(18_000, documents.PART), []
  table["heard_offset"] = -1
  table["kind"][1::2] = np.repeat([vl.TEXT, vl.AUDIO, vl.IMAGE], [4000, 4500, 500])
  table["role"] = np.tile([documents.USER, documents.ASSISTANT], 9000)
  table["length"] = np.tile([prompt, 4], 9000)
  counts = documents.counts(table, np.arange(0, 18_000, 2))

  def read(i):
    reads.append(i)
    return [documents.Part(vl.TEXT, documents.USER, np.full(prompt, i % 200)),
            documents.Part(int(table["kind"][2 * i + 1]), documents.ASSISTANT, np.zeros((2, 2)))]

  class Fake:
    def __init__(self, name):
      self.lengths, self.read = counts, read

    def __len__(self):
      return len(counts)

  monkeypatch.setattr(samples, "Records", Fake)
  found = samples._prompts(tiny.run(), list)
  each = samples.EACH if prompt < 50 else 0  # rows have 64 positions
  assert {name: len(prompts) for name, prompts in found.items()} == {
    "text": each, "image": each, "audio": each}
  for prompts in found.values():
    for asked, turn in prompts:
      assert asked.role == documents.USER and len(asked.codes) == prompt
      assert turn.role == documents.ASSISTANT and len(turn.codes) == 0
  assert len(reads) <= 2000


def test_every_direction_of_a_document_is_asked_for(monkeypatch):
  """A captioned picture is described and drawn; what was said is written down and said."""
  words = np.arange(3)
  docs = [[documents.Part(vl.IMAGE, documents.NONE, np.zeros((2, 2), int)),
           documents.Part(vl.TEXT, documents.NONE, words)],
          [documents.Part(vl.AUDIO, documents.NONE, np.zeros((4, 3), int), words)]]
  table = np.zeros(3, documents.PART)
  table["kind"], table["length"] = [vl.IMAGE, vl.TEXT, vl.AUDIO], [4, 3, 4]
  table["words"], table["heard_offset"] = [-1, -1, 3], -1

  class Fake:
    def __init__(self, name):
      self.lengths, self.read = documents.counts(table, np.array([0, 2])), docs.__getitem__

    def __len__(self):
      return 2

  monkeypatch.setattr(samples, "Records", Fake)
  found = samples._prompts(tiny.run(data={"prompts": ("caption: x", "speak: y")}),
                           lambda text: [77])
  kinds = {name: [[p.kind for p in prompt[:-1]] for prompt in prompts]
           for name, prompts in found.items()}
  assert kinds == {"text": [[vl.IMAGE, vl.TEXT], [vl.AUDIO]], "image": [[vl.TEXT]],
                   "audio": [[vl.TEXT, vl.TEXT]]}
  assert found["text"][0][1].codes.tolist() == [77]
