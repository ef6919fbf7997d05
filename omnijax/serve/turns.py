"""The client's side of a conversation by turns: its sound is collected, then it is an item.

L samples
"""

from collections.abc import Callable

import numpy as np

from omnijax.serve import realtime_events
from omnijax.serve.activity import Activity, Change
from omnijax.serve.conversation import Content, Item
from omnijax.serve.realtime_config import TurnDetection
from omnijax.serve.realtime_events import Problem
from omnijax.serve.realtime_shared import Shared, whole

_SHORTEST_MS = 100


class Turns:
  """Sound that waits to be committed: by the client, or by a pause in its speech (server_vad).

  Positions are samples at the service's rate, counted from the first of the session.

  Args:
    shared: of the session.
    detect: None where the client commits.
    begin: position of the first sample that will come.
    started: called when speech starts.
    committed: called when speech has stopped, and is an item.
  """

  def __init__(self, shared: Shared, detect: TurnDetection | None, begin: int,
               started: Callable[[], None], committed: Callable[[], None]):
    self._shared, self._detect = shared, detect
    self._on_started, self._on_committed = started, committed
    self._pieces: list[np.ndarray] = []
    self._begin = self._end = begin  # of what is kept
    self._most = round(shared.settings.buffer_s * shared.service.sample_rate)
    self._item_id = realtime_events.new_id("item")  # of what is being collected
    self._listen()

  def _listen(self) -> None:
    self._activity = None
    self._origin = self._end  # where the activity counts from
    if self._detect:
      self._activity = Activity(
        self._shared.service.sample_rate, threshold=self._detect.threshold,
        silence_ms=self._detect.silence_duration_ms)

  @property
  def _padding(self) -> int:
    assert self._detect
    return self._detect.prefix_padding_ms * self._shared.service.sample_rate // 1000

  def append(self, wave_L: np.ndarray) -> None:
    """Takes the next samples, float32 [L].

    Raises:
      Problem: too many wait already; they are not taken.
    """
    if self._end - self._begin + len(wave_L) > self._most:
      if not (self._activity and self._activity.started is not None):
        raise Problem(f"{self._shared.ms(self._end - self._begin)} ms of sound wait to be "
                      f"committed; the most is {self._shared.ms(self._most)} ms: commit or clear.",
                      code="input_audio_buffer_full")
      # Who speaks for so long is answered as if there were a pause.
      self._stopped(self._end)
      self._listen()
    self._pieces.append(wave_L)
    self._end += len(wave_L)
    if self._activity:
      for change in self._activity.hear(wave_L):
        self._changed(change)
      if self._activity.started is None:
        self._drop(self._end - self._padding - self._shared.service.sample_rate // 10)

  def _changed(self, change: Change) -> None:
    if change.kind == "stopped":
      self._stopped(self._origin + change.sample)
      return
    self._drop(self._origin + change.sample - self._padding)
    self._shared.send({"type": "input_audio_buffer.speech_started", "item_id": self._item_id,
                       "audio_start_ms": self._shared.ms(self._begin)})
    self._on_started()

  def _stopped(self, at: int) -> None:
    self._shared.send({"type": "input_audio_buffer.speech_stopped", "item_id": self._item_id,
                       "audio_end_ms": self._shared.ms(at)})
    self._commit(at)
    self._on_committed()

  def commit(self, rest_L: np.ndarray) -> None:
    """Makes an item of what waits, for the client, and of the last samples `rest_L`.

    Raises:
      Problem: that is too little, or the conversation is full.
    """
    self._pieces.append(rest_L)
    self._end += len(rest_L)
    waits = self._shared.ms(self._end - self._begin)
    if waits < _SHORTEST_MS:
      raise Problem(f"{waits} ms of sound wait to be committed; wanted at least {_SHORTEST_MS} ms.",
                    code="input_audio_buffer_commit_empty")
    self._commit(self._end)
    self._listen()

  def clear(self) -> None:
    """Forgets what waits."""
    self._drop(self._end)
    self._item_id = realtime_events.new_id("item")
    self._listen()

  def _commit(self, end: int) -> None:
    """Makes an item of what waits before a position."""
    wave_L = whole(self._pieces)[: end - self._begin]
    item = Item(self._item_id, "user", [Content("input_audio", wave_L=wave_L)])
    self._shared.conversation.check(item)
    self._drop(end)
    self._item_id = realtime_events.new_id("item")
    self._shared.send({"type": "input_audio_buffer.committed", "item_id": item.id,
                       "previous_item_id": self._shared.conversation.last_id})
    self._shared.announce(item)

  def _drop(self, before: int) -> None:
    """Forgets what lies before a position."""
    if before > self._begin:
      self._pieces = [whole(self._pieces)[before - self._begin :]]
      self._begin = before
