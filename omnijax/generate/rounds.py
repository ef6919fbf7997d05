"""The thread of a service: who leaves and who comes, pieces of prompts, and steps.

A turn is written as fast as the machine can; a dialogue takes a step for each frame that was
heard. All that are ready share a step, and a prompt is read piece by piece between them, so that
nobody waits long for anybody.

B rows  L samples  Q codebooks
"""

import collections
import logging
import threading
import time
from typing import Any

import numpy as np

from omnijax import vocab as vocab_lib
from omnijax.data import documents
from omnijax.data.documents import Part
from omnijax.generate.callers import Talk, Ticket
from omnijax.generate.events import End, Frame, Sound
from omnijax.generate.prompts import Prompts
from omnijax.generate.sample import Sampling
from omnijax.generate.slots import Slots, Work
from omnijax.generate.sound import Sounds
from omnijax.generate.turns import Goal
from omnijax.generate.writing import Codes, Item, Over

_LOUD = 0.01  # root mean square of a frame in which there is something to be heard, -40 dB
_LOG = logging.getLogger(__name__)


class Rounds:
  """Rows, those who have them, and those who wait for one.

  Args:
    prompts: the tokenizers.
    slots: the rows.
    sounds: their codec.
  """

  def __init__(self, prompts: Prompts, slots: Slots, sounds: Sounds):
    self.prompts, self.slots, self.sounds = prompts, slots, sounds
    codec = prompts.tokenizers.audio
    self.sample_rate, self.frame_size = codec.sample_rate, codec.frame_size
    self.max_positions = slots.positions
    self.silence_Q = slots.silence_Q
    self.changed = threading.Condition()
    self._rows: list[Ticket | Talk | None] = [None] * slots.rows
    self._waiting = collections.deque[Ticket]()
    self._ends = False
    self._thread = threading.Thread(target=self._serve, name="omnijax-service", daemon=True)
    self._thread.start()

  # All of it runs on the thread.

  def _serve(self) -> None:
    try:
      while True:
        with self.changed:
          while not (self._todo() or self._finished()):
            self.changed.wait()
          if self._finished():
            return
        self._round()
    except Exception:
      _LOG.exception("the service has failed")
      with self.changed:
        left = [*self._waiting, *{id(x): x for x in self._rows if x}.values()]
        self._waiting.clear()
        self._rows = [None] * len(self._rows)
        self.changed.notify_all()
      for someone in left:
        someone.emit(End("failed", error="the service has failed"))

  def _finished(self) -> bool:
    return self._ends and not self._waiting and not any(self._rows)

  def _todo(self) -> bool:
    if any(t.cancelled for t in self._waiting) or self._place() is not None:
      return True
    return any(isinstance(x, Ticket) or x.closed or x.orders or x.pieces or x.voice.waits
               or x.waiting for x in self._rows if x is not None)

  def _place(self) -> int | None:
    """Where the first that waits can begin: a pair of rows is two neighbours."""
    if not self._waiting:
      return None
    size = len(self._waiting[0].work.prompts)
    for row in range(0, len(self._rows) - size + 1, size):
      if not any(self._rows[row : row + size]):
        return row
    return None

  def _round(self) -> None:
    """Who leaves and who comes, one piece of a prompt, and a step for those that are ready."""
    self._leave()
    self._come()
    for talk in self._talks().values():
      while talk.orders:
        with self.changed:
          act = talk.orders.popleft()
        act()
    for someone in self._rows:
      if someone is not None and someone.pieces:
        self.slots.prefill(*someone.pieces.pop(0))
        break
    self._step()

  def _talks(self) -> dict[int, Talk]:
    return {row: x for row, x in enumerate(self._rows) if isinstance(x, Talk)}

  def _leave(self) -> None:
    with self.changed:
      gone = [t for t in self._waiting if t.cancelled]
      for ticket in gone:
        self._waiting.remove(ticket)
      here = {id(x): x for x in self._rows if x is not None}.values()
      ends = [x for x in here if (x.cancelled if isinstance(x, Ticket) else x.closed)]
    for someone in [*gone, *ends]:
      if isinstance(someone, Talk):
        self._end(someone, End("cancelled", written=someone.frames))
      else:
        self._end(someone, End("cancelled", someone.prompt, someone.writing.written))

  def _come(self) -> None:
    while True:
      with self.changed:
        row = self._place()
        if row is None:
          return
        ticket = self._waiting.popleft()
        for i in range(len(ticket.work.prompts)):
          self._rows[row + i] = ticket
      self.sounds.reset(row)
      ticket.pieces = self.slots.begin(row, ticket.work)

  def _end(self, someone: Ticket | Talk, end: End) -> None:
    with self.changed:
      self._rows = [None if x is someone else x for x in self._rows]
      self.changed.notify_all()
    someone.emit(end)

  def open(self, row: int, talk: Talk) -> None:
    """Begins a dialogue in a row."""
    self.sounds.reset(row)
    empty = Part(vocab_lib.TEXT, documents.ASSISTANT, np.zeros(0, np.int32))
    streams = talk.voice.opening(self.prompts.render([empty]))
    talk.pieces = self.slots.begin(row, Work([streams], *self._talking(talk)))

  def _talking(self, talk: Talk) -> tuple[Goal, int, Sampling, int]:
    goal = Goal(to="talk")
    return goal, goal.positions(self.slots.layout, 0), talk.sampling, talk.seed

  def _step(self) -> None:
    """One step of all rows that are ready."""
    hearing = {row: t for row, t in self._talks().items() if not t.pieces and not t.voice.waits
               and t.waiting}
    waits = {row: t for row, t in self._talks().items() if not t.pieces and t.voice.waits}
    writes = {row: x for row, x in enumerate(self._rows) if isinstance(x, Ticket) and not x.pieces}
    if not (hearing or waits or writes):
      return
    heard_BQ, came = self._hear(hearing)
    quiet_B = np.array([isinstance(x, Talk) and x.voice.quiet for x in self._rows])
    active = [row in hearing or row in waits or row in writes for row in range(len(self._rows))]
    written: Any = self.slots.step(np.array(active), heard_BQ, quiet_B)
    whole, words = dict[int, np.ndarray](), dict[int, str]()
    for row, talk in (hearing | waits).items():
      heard_Q = heard_BQ[row] if row in hearing else None
      codes_Q, text = talk.voice.take(int(written.main_B[row]), written.codes_BQ[row], heard_Q)
      if row in hearing and talk.said:
        self._insert(row, talk, written.codes_BQ[row])
        if not self.slots.layout.acoustic_delay:  # its frame is written after what is put in
          codes_Q = None
        text = ""
      if row in hearing:
        words[row] = text
        if codes_Q is not None:
          whole[row] = codes_Q
    items = {row: self._items(ticket, row, written) for row, ticket in writes.items()
             if self._rows.index(ticket) == row}
    for row, some in items.items():
      for item in some:
        if isinstance(item, Codes):
          whole[row] = item.codes_Q
    waves = self.sounds.decode(whole)
    for row, some in items.items():
      self._tell(self._rows[row], row, some, waves)
    for row, talk in hearing.items():
      wave_L = waves.get(row, np.zeros(self.frame_size, np.float32))
      talk.emit(Frame(talk.frames, wave_L, words[row], time.perf_counter() - came[row]))
      talk.frames += 1

  def _hear(self, hearing: dict[int, Talk]) -> tuple[np.ndarray, dict[int, float]]:
    """Codes of what each row hears, and when the frames came."""
    frames, came = dict[int, np.ndarray](), dict[int, float]()
    with self.changed:
      for row, talk in hearing.items():
        frames[row], came[row] = talk.waiting.popleft()
    codes = self.sounds.encode(frames)
    Q = self.slots.layout.vocab.codebooks
    heard_BQ = np.full((len(self._rows), Q), self.slots.layout.vocab.no_code, np.int32)
    for row, talk in hearing.items():
      loud = float(np.sqrt(np.mean(frames[row] ** 2))) > _LOUD
      heard_BQ[row] = talk.voice.hears(codes[row][:Q], loud)
    return heard_BQ, came

  def _items(self, ticket: Ticket, row: int, written: Any) -> list[Item | End]:
    """What a step gave a turn."""
    writing = ticket.writing
    if written.wrote_B[row]:
      return list(writing.take(int(written.main_B[row]), written.codes_BQ[row]))
    full = writing.written + 1 >= ticket.work.limit
    return [*writing.end(), End("length" if full else "stop", ticket.prompt, writing.written)]

  def _tell(self, ticket: Any, row: int, items: list[Item | End], waves: dict[int, np.ndarray]
            ) -> None:
    for item in items:
      if isinstance(item, Codes):
        # The decoder begins with what lies before the speech.
        ticket.emit(Sound(waves[row][0 if ticket.spoke else self.sounds.delay :]))
        ticket.spoke = True
      elif isinstance(item, Over):
        if ticket.spoke:
          ticket.emit(Sound(self.sounds.rest(row)))
        self.sounds.reset(row)
        ticket.spoke = False
      elif isinstance(item, End):
        self._end(ticket, item)
      else:
        ticket.emit(item)

  def _insert(self, row: int, talk: Talk, after_Q: np.ndarray) -> None:
    """Puts what was said into a dialogue, in place of the position just written."""
    with self.changed:
      # Each ends with an empty part, by which the assistant's turn begins: one will do.
      parts = [*(p for said in talk.said for p in said[:-1]), talk.said[-1][-1]]
      talk.said.clear()
    streams = talk.voice.insertion(self.prompts.render(parts), after_Q)
    talk.pieces += self.slots.go_on(row, Work([streams], *self._talking(talk)))

  def forget(self, talk: Talk, frame: int) -> None:
    """Has a dialogue's row read again what it heard, without what was never heard of it."""
    again = talk.voice.forget(frame)
    if again is None:
      return
    row = self._rows.index(talk)
    self.slots.rewind(row, again.length)
    for piece in self.slots.pieces(again.streams):
      self.slots.prefill(row, piece)
    self.slots.replace(row, int(again.streams.main[-2]), again.streams.frames[-1])
