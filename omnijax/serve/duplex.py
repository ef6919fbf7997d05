"""A native full-duplex talk, told in OpenAI's events: the model decides when it speaks.

Every piece of the client's sound goes to the model at once, and for each 80 ms of it a frame of
the model's own sound comes back, mostly silence. A response is what lies between two silences. The
server's voice activity detector only tells when the client speaks; it decides nothing.

L samples
"""

import itertools
import math
import secrets
from typing import Any

import numpy as np

from omnijax.generate.events import End, Frame
from omnijax.serve import conversation as conversation_lib
from omnijax.serve import realtime_events
from omnijax.serve.activity import Activity, Change
from omnijax.serve.conversation import Content, Item
from omnijax.serve.realtime_config import TurnDetection
from omnijax.serve.realtime_events import ItemTruncate, Problem
from omnijax.serve.realtime_shared import Shared, Talk, usage
from omnijax.serve.response import Response, Status

_SOUND = 10 ** (-50 / 20)  # root mean square of a frame that isn't silent
_PAUSE_S = 0.4  # of silence between two responses


class Duplex:
  """One talk.

  Args:
    shared: of the session.
    detect: how the client's speech is found.
    begin: samples, at the service's rate, that the session heard before this.
  """

  def __init__(self, shared: Shared, detect: TurnDetection, begin: int):
    self._shared, self._begin = shared, begin
    self._activity = Activity(shared.service.sample_rate, threshold=detect.threshold,
                              silence_ms=detect.silence_duration_ms)
    self._talk: Talk | None = None
    self._closed = False
    self._pause = math.ceil(_PAUSE_S * shared.service.sample_rate / shared.service.frame_size)
    self._item_id = ""  # of what the client is saying
    self._after: str | None = None  # the item that was the last when it began
    self._response: Response | None = None
    self._first = 0  # frame of the response, or of the last one
    self._silent = 0  # the first frame of the silence that lasts
    self._next = 0  # the frame that comes next
    self._used = 0  # the first frame that no response's usage has counted
    self._hushed = False  # what it still says was called off
    self._last: Response | None = None  # the last that is finished
    self._heard_ms: int | None = None  # of that, if it was truncated

  async def open(self) -> None:
    """Takes a slot, and shows the model what the user has put into the conversation unanswered.

    What was said before that is not in its memory.

    Raises:
      Full: none is free.
      ValueError: the model can't talk.
    """
    emit = self._shared.on_loop(self._event)

    def take() -> None:
      self._talk = talk = self._shared.service.talk(seed=secrets.randbits(31), emit=emit)
      # Whichever comes first, this or close, the other sees it: no slot is lost.
      if self._closed:
        talk.close()

    await self._shared.in_thread(take)
    asked = itertools.takewhile(lambda item: item.role != "assistant",
                                reversed(self._shared.conversation.items))
    try:
      await self.insert(conversation_lib.prompt([*asked][::-1], self._shared.config.instructions))
    except Problem as problem:
      # The talk goes on without: else a client with an item that is too long could never talk.
      self._shared.send(problem.event(None))

  def close(self) -> None:
    """Frees the slot; nothing more is told."""
    self._closed = True
    if self._talk:
      self._talk.close()

  def leave(self) -> None:
    """Ends the talk because the client wants another way of taking turns."""
    if self._response:
      self._finish("cancelled", "client_cancelled")
    self.close()

  def detect(self, detect: TurnDetection) -> None:
    """From now on the client's speech is found so."""
    self._activity.set(threshold=detect.threshold, silence_ms=detect.silence_duration_ms)

  def hear(self, wave_L: np.ndarray) -> None:
    """The client's next samples, float32 [L].

    Raises:
      Problem: the model is too far behind; they are lost.
    """
    assert self._talk
    try:
      self._talk.hear(wave_L)
    except ValueError as error:
      raise Problem(str(error), code="input_audio_buffer_full", param="audio") from error
    for change in self._activity.hear(wave_L):
      self._changed(change)

  def _changed(self, change: Change) -> None:
    at = self._shared.ms(self._begin + change.sample)
    if change.kind == "started":
      self._item_id = realtime_events.new_id("item")
      self._after = self._shared.conversation.last_id
      self._shared.send({"type": "input_audio_buffer.speech_started", "item_id": self._item_id,
                         "audio_start_ms": at})
      return
    self._shared.send({"type": "input_audio_buffer.speech_stopped", "item_id": self._item_id,
                       "audio_end_ms": at})
    # The model may have begun to answer: its item comes after this one, which is told later.
    self._shared.conversation.forget()
    after = self._after if self._shared.conversation.has(self._after) else None
    self._shared.send({"type": "input_audio_buffer.committed", "item_id": self._item_id,
                       "previous_item_id": after})
    self._shared.announce(Item(self._item_id, "user", [Content("input_audio")]), after or "root")

  async def insert(self, parts: list[dict[str, Any]], param: str = "item") -> None:
    """Shows the model texts and pictures; sounds among them are left out.

    Raises:
      Problem: it can't read one, or they are too long; `param` is where they come from.
    """
    seen = [part for part in parts if "audio" not in part]
    talk = self._talk
    if seen and talk:
      try:
        await self._shared.in_thread(lambda: talk.insert(seen))
      except ValueError as error:
        raise Problem(str(error), param=param) from error

  def cancel(self, response_id: str | None) -> None:
    """Ends the response that is being said.

    Raises:
      Problem: there is none, or another.
    """
    response = self._response
    if response is None or response_id not in (None, response.id):
      raise Problem("there is no such active response to cancel.", param="response_id",
                    code="response_cancel_not_active")
    self._hush()
    self._finish("cancelled", "client_cancelled")

  def _hush(self) -> None:
    assert self._talk
    self._talk.hush()
    self._hushed = True

  def truncate(self, event: ItemTruncate) -> None:
    """What the client has not heard of the last item leaves the model's memory.

    If the model is still saying it, that ends.

    Raises:
      Problem: it is not the last that the model said, or is shorter.
    """
    response = self._response or self._last
    item = response.item if response else None
    if response is None or item is None or item.id != event.item_id:
      self._shared.conversation.find(event.item_id)
      raise Problem("in a native talk only the last item that the model said can be truncated: "
                    "what came after it would leave the model's memory, too.", param="item_id")
    rate, size = self._shared.service.sample_rate, self._shared.service.frame_size
    check_truncation(event, item, self._shared.ms(response.samples) if self._heard_ms is None
                     else self._heard_ms)
    heard = event.audio_end_ms * rate // 1000
    if heard < response.samples and self._talk:
      if response is self._response:
        self._hush()
        self._finish("cancelled", "turn_detected")
      self._talk.truncate(self._first + heard // size, heard % size)
      item.content[event.content_index].transcript = None
      self._heard_ms = event.audio_end_ms
    self._shared.send(truncated(event))

  def _event(self, event: Frame | End) -> None:
    if self._closed:
      return
    if isinstance(event, End):
      self._ended(event)
      return
    if self._shared.settings.metrics:
      late = event.took_s > self._shared.service.frame_size / self._shared.service.sample_rate
      self._shared.settings.metrics.observe_frame(event.took_s, late)
    self._next = event.index + 1
    loud = float(np.sqrt(np.mean(np.square(event.wave_L)))) > _SOUND
    busy = loud or bool(event.text.strip())
    if self._hushed and busy:
      return
    self._hushed = False
    if self._response is None:
      if not busy:
        return
      self._start(event.index)
    self._say(event)
    if busy:
      self._silent = event.index + 1
    elif event.index + 1 - self._silent >= self._pause:
      # Who spoke when the silence began decides, not who speaks by now. The model had heard all of
      # that frame when it made its own.
      cut = self._activity.spoke_at((self._silent + 1) * self._shared.service.frame_size - 1)
      self._finish("cancelled" if cut else "completed", "turn_detected" if cut else None)

  def _start(self, frame: int) -> None:
    config = self._shared.config
    self._shared.conversation.forget()
    self._first, self._heard_ms = frame, None
    self._response = Response(
      self._shared, modality=config.output_modalities[0], form=config.audio.output.format.type,
      keep=False)

  def _say(self, frame: Frame) -> None:
    assert self._response
    if self._response.modality == "text":
      self._response.text(frame.text)
    else:
      self._response.sound(frame.wave_L)
      self._response.words(frame.text)

  def _finish(self, status: Status, reason: str | None) -> None:
    assert self._response
    used = usage(self._first - self._used, self._next - self._first, self._response.modality)
    self._last, self._response, self._used = self._response, None, self._next
    self._last.finish(status, used, reason=reason)

  def _ended(self, end: End) -> None:
    """Something else than the client has ended the talk; the session ends with it."""
    self._closed = True
    if self._response:
      self._finish("failed" if end.reason == "failed" else "incomplete", None)
    if end.reason == "failed":
      self._shared.send(Problem(end.error or "the model failed.", code="server_error",
                                kind="server_error").event(None))
      self._shared.end(1011, "the model failed")
    elif end.reason == "cancelled":
      self._shared.send(Problem("the server is shutting down; connect again.",
                                code="server_shutdown", kind="server_error").event(None))
      self._shared.end(1001, "the server is shutting down")
    else:
      self._shared.send(Problem("the talk is as long as the model's memory; connect again.",
                                code="context_length_exceeded").event(None))
      self._shared.end(1000, "the model's memory is full")


def check_truncation(event: ItemTruncate, item: Item, longest_ms: int) -> None:
  """Raises Problem unless a truncation is of speech that is at least so long."""
  if event.content_index >= len(item.content) or (
      item.content[event.content_index].kind != "output_audio"):
    raise Problem(f"content {event.content_index} of item {item.id} is no speech of the model; "
                  "wanted the index of an output_audio.", param="content_index")
  if event.audio_end_ms > longest_ms:
    raise Problem(f"audio_end_ms is {event.audio_end_ms}, and the item has {longest_ms} ms; wanted "
                  "no more than that.", param="audio_end_ms")


def truncated(event: ItemTruncate) -> dict[str, Any]:
  """The answer to a truncation."""
  return {"type": "conversation.item.truncated", "item_id": event.item_id,
          "content_index": event.content_index, "audio_end_ms": event.audio_end_ms}
