"""A model that serves: people come and go, each with a row, and everything runs on one thread."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnijax import config as config_lib
from omnijax.generate.callers import Talk, Ticket
from omnijax.generate.events import End, Event, Frame, Full
from omnijax.generate.prompts import Prompts
from omnijax.generate.rounds import Rounds
from omnijax.generate.sample import GREEDY, Sampling
from omnijax.generate.slots import Slots, Work
from omnijax.generate.sound import Sounds
from omnijax.generate.turns import Goal, To
from omnijax.model.transformer import Omni

_LEAST = 64  # positions, for any prompt with its answer


class Service(Rounds):
  """A model with its tokenizers and rows; any thread may call it.

  Args:
    model: the weights, on devices that don't share out the batch.
    run: that trained it.
    tokenizers: of the run.
    slots: rows: turns and dialogues at once; a guided picture takes two.
    positions: most of a prompt and its output.
    queue: turns that may wait for a row.
    int8: weights and caches are rounded to 8 bits.
    name, created: what it is called, and when it was made (Unix time).

  Raises:
    ValueError: slots, positions or queue are too few.
  """

  def __init__(self, model: Omni, run: config_lib.Run, tokenizers: Any, *, slots: int = 4,
               positions: int = 512, queue: int = 64, int8: bool = False, name: str = "",
               created: int = 0):
    for what, value, least in (("slots", slots, 1), ("queue", queue, 1),
                               ("positions", positions, _LEAST)):
      if value < least:
        raise ValueError(f"{what} is {value}; wanted at least {least}.")
    self.name, self.created, self.queue = name or run.name, created, queue
    self.modalities = frozenset(("text", "image", "audio"))
    self.image_step = tokenizers.image.downsample
    sounds = Sounds(tokenizers.audio, slots)
    super().__init__(
      Prompts(model.vocab, run.data, tokenizers),
      Slots(model, run.data, rows=slots, positions=positions, int8=int8,
            silence_Q=sounds.silence()[: model.vocab.codebooks]), sounds)

  @classmethod
  def load(cls, run_dir: Path, *, slots: int = 4, positions: int = 512, queue: int = 64,
           int8: bool = False) -> "Service":
    """The newest checkpoint of a run, compiled and ready.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: its tokenizers are not at hand.
    """
    from omnijax import checkpoint
    run_dir = Path(run_dir)
    run, _, model, tokenizers = checkpoint.load_for_inference(run_dir)
    newest = checkpoint.read_identity(run_dir / "checkpoints")[0]
    made = (run_dir / "checkpoints" / str(newest)).stat().st_mtime
    service = cls(model, run, tokenizers, slots=slots, positions=positions, queue=queue, int8=int8,
                  created=int(made))
    service.warm()
    return service

  def warm(self) -> None:
    """Compiles everything, by a short dialogue and a short turn of every kind."""
    done = threading.Semaphore(0)

    def emit(event: Any) -> None:
      if isinstance(event, End | Frame):
        done.release()

    talk = self.talk(emit=emit)
    talk.order(self.slots.warm)  # before it ends, else it would not be carried out
    talk.hear(np.zeros(2 * self.frame_size, np.float32))
    done.acquire()
    done.acquire()
    talk.close()
    done.acquire()
    kinds: tuple[To, ...] = ("text", "image", "audio")
    for to in kinds:
      self.write([{"text": "a"}], to=to, max_new=8, image_size=(self.image_step,) * 2, emit=emit,
                 guidance=2.0 if len(self._rows) > 1 else 1.0)
      done.acquire()

  def write(self, parts: Sequence[Mapping[str, Any]], *, to: To, sampling: Sampling | None = None,
            seed: int = 0, max_new: int = 256, image_size: tuple[int, int] | None = None,
            guidance: float = 1.0, emit: Callable[[Event], None]) -> Ticket:
    """Answers a prompt; events come to `emit`, on the service's thread, which must not wait.

    Parts, and the rest, as in decode.Generator.generate.

    Raises:
      ValueError: a part that can't be read, or the prompt doesn't fit.
      Full: too many wait already, or the service ends.
      RuntimeError: the service has failed.
    """
    goal = Goal(to=to, grid=self.prompts.grid(image_size), max_new=max_new)
    said = self.prompts.encode([parts])[0]
    prompts = [self.prompts.render(said)]
    guided = guidance != 1 and to in ("image", "any")
    if guided:
      prompts.append(self.prompts.without(said))
      if len(self._rows) < 2:
        raise ValueError("guidance takes two rows, and there is one; serve with 2 slots or more.")
    limit = goal.positions(self.slots.layout, self.max_positions - len(prompts[0].main) + 1)
    work = Work(prompts, goal, limit, sampling or Sampling(), seed, guidance if guided else 0.0)
    ticket = Ticket(self, work, emit)
    with self.changed:
      self._check_open()
      if len(self._waiting) >= self.queue:
        raise Full(f"{len(self._waiting)} requests wait already; try again later.")
      self._waiting.append(ticket)
      self.changed.notify()
    return ticket

  def talk(self, *, sampling: Sampling | None = None, seed: int = 0,
           emit: Callable[[Frame | End], None]) -> Talk:
    """Begins a dialogue: for each 80 ms that it hears, a Frame comes to `emit`, as above.

    Args:
      sampling: how tokens are drawn; None is the most likely.
      seed: of the draws.
      emit: gets the frames, and one End.

    Raises:
      Full: no row is free, or the service ends.
      RuntimeError: the service has failed.
      ValueError: the model's acoustic codes lag by more than a frame.
    """
    if self.slots.layout.acoustic_delay > 1:
      raise ValueError(f"the run's data.acoustic_delay is {self.slots.layout.acoustic_delay}; "
                       "dialogues want 0 or 1.")
    talk = Talk(self, sampling or GREEDY, seed, emit)
    with self.changed:
      self._check_open()
      if None not in self._rows:
        raise Full(f"all {len(self._rows)} rows are taken; try again later.")
      row = self._rows.index(None)
      self._rows[row] = talk
      talk.orders.append(lambda: self.open(row, talk))
      self.changed.notify()
    return talk

  def active(self) -> dict[str, int]:
    """How many turns and dialogues there are, how many turns wait, and how many rows there are."""
    with self.changed:
      tickets = {id(x) for x in self._rows if isinstance(x, Ticket)}
      return {"write": len(tickets), "talk": sum(isinstance(x, Talk) for x in self._rows),
              "queued": len(self._waiting), "slots": len(self._rows)}

  def close(self, *, drain_s: float = 0.0) -> None:
    """Takes no more work, waits so long for what there is, and ends the rest."""
    until = time.monotonic() + drain_s
    with self.changed:
      self._ends = True
      busy = lambda: self._waiting or any(isinstance(x, Ticket) for x in self._rows)
      while busy() and self._thread.is_alive() and time.monotonic() < until:
        self.changed.wait(max(until - time.monotonic(), 0))
      for ticket in self._waiting:
        ticket.cancelled = True
      for someone in self._rows:
        if isinstance(someone, Ticket):
          someone.cancelled = True
        elif someone is not None:
          someone.closed = True
      self.changed.notify_all()
    self._thread.join()

  @property
  def alive(self) -> bool:
    """Whether its thread runs; if it has failed, the log says why, and it stays so."""
    return self._thread.is_alive()

  def _check_open(self) -> None:
    if self._ends:
      raise Full("the service ends; ask another one.")
    if not self.alive:
      raise RuntimeError("the service has failed; its log says why. Start it again.")
