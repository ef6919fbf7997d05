"""What was said is remembered for a while, and not too much of it."""

import numpy as np

from omnijax.serve.memory import Memory


class Clock:
  now = 1000.0

  def __call__(self):
    return self.now


def test_it_forgets_after_an_hour():
  clock = Clock()
  memory = Memory(clock)
  wave = np.ones(5, np.float32)
  assert memory.keep("a", wave, "words") == 4600
  clock.now = 4600
  assert memory.recall("a") == (wave, "words") and memory.recall("b") is None
  clock.now = 4601
  assert memory.recall("a") is None
  memory.keep("b", wave, "")
  assert list(memory._kept) == ["b"] and memory._bytes == wave.nbytes


def test_the_oldest_make_room(monkeypatch):
  monkeypatch.setattr("omnijax.serve.memory._MOST_BYTES", 100)
  memory = Memory(Clock())
  for name in "abc":
    memory.keep(name, np.zeros(10, np.float32), "")
  assert [memory.recall(n) is not None for n in "abc"] == [False, True, True]
  memory.keep("huge", np.zeros(1000, np.float32), "")
  assert memory._bytes == 0 and memory.recall("huge") is None


def test_names_can_not_be_guessed():
  assert len({Memory.name() for _ in range(100)}) == 100 and len(Memory.name()) > 30
