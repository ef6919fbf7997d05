"""A response as it is made: the events that tell of it, in OpenAI's order.

L samples
"""

import base64
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from omnijax.serve import pcm, realtime_events
from omnijax.serve.conversation import Content, Item
from omnijax.serve.realtime_shared import Shared, whole
from omnijax.serve.resample import Resampler

Status = Literal["completed", "cancelled", "incomplete", "failed"]
_PART = {"output_audio": "audio", "output_text": "text"}


class Response:
  """Begins when it is made; says, once, that it is finished.

  Args:
    shared: of the session.
    modality: "text" or "audio".
    form: of OpenAI's audio formats.
    keep: whether its sound goes into the conversation's memory.
    apart: whether it is outside the conversation.
    metadata, max_tokens: are only told.
  """

  def __init__(self, shared: Shared, *, modality: str, form: str, keep: bool, apart: bool = False,
               metadata: dict[str, str] | None = None, max_tokens: Any = "inf"):
    self.id = realtime_events.new_id("resp")
    self.modality, self.apart = modality, apart
    self.item: Item | None = None
    self.samples = 0  # of its sound, at the service's rate
    self._shared, self._form, self._keep = shared, form, keep
    self._metadata, self._max_tokens = metadata, max_tokens
    self._resampler = Resampler(shared.service.sample_rate, pcm.RATES[form])
    self._pieces: list[np.ndarray] = []
    self._send({"type": "response.created", "response": self._json("in_progress")})

  def words(self, text: str) -> None:
    """More of the transcript of its speech."""
    if text:
      at, content = self._part("output_audio")
      content.transcript = (content.transcript or "") + text
      self._delta("response.output_audio_transcript.delta", at, text)

  def text(self, text: str) -> None:
    """More of its text, which isn't spoken."""
    if text:
      at, content = self._part("output_text")
      content.text = (content.text or "") + text
      self._delta("response.output_text.delta", at, text)

  def sound(self, wave_L: np.ndarray) -> None:
    """More of its speech, float32 [L] at the service's rate."""
    at, _ = self._part("output_audio")
    self.samples += len(wave_L)
    if self._keep:
      self._pieces.append(wave_L)
    self._sound(at, self._resampler.feed(wave_L))

  def finish(self, status: Status, usage: Mapping[str, Any] | None, *, reason: str | None = None,
             error: Mapping[str, Any] | None = None) -> None:
    """Tells that it is whole, or why it isn't."""
    if self.item:
      self._finish_item(self.item, "completed" if status == "completed" else "incomplete")
    details: dict[str, Any] | None = None
    if status != "completed":
      details = {"type": status} | ({"reason": reason} if reason else {}) | (
        {"error": error} if error else {})
    self._send({"type": "response.done",
                "response": self._json(status, status_details=details, usage=usage)})

  def _finish_item(self, item: Item, status: str) -> None:
    for at, content in enumerate(item.content):
      where = self._where(at)
      if content.kind == "output_audio":
        if self.samples:
          self._sound(at, self._resampler.flush())
        if self._keep:
          content.wave_L = whole(self._pieces)
        self._send({"type": "response.output_audio.done", **where})
        self._send({"type": "response.output_audio_transcript.done",
                    "transcript": content.transcript or "", **where})
      else:
        self._send({"type": "response.output_text.done", "text": content.text, **where})
      self._send({"type": "response.content_part.done", "part": _json(content), **where})
    item.status = status
    if not self.apart:
      self._send({"type": "conversation.item.done", "item": item.json(),
                  "previous_item_id": self._shared.conversation.before(item)})
    self._send({"type": "response.output_item.done", "response_id": self.id, "output_index": 0,
                "item": item.json()})

  def _part(self, kind: str) -> tuple[int, Content]:
    """The content of a kind and its index; it, and the item, are told when they are new."""
    if self.item is None:
      self.item = Item(realtime_events.new_id("item"), "assistant", [], "in_progress")
      self._send({"type": "response.output_item.added", "response_id": self.id,
                  "output_index": 0, "item": self.item.json()})
      if not self.apart:
        before = self._shared.conversation.append(self.item)
        self._send({"type": "conversation.item.added", "item": self.item.json(),
                    "previous_item_id": before})
    for at, content in enumerate(self.item.content):
      if content.kind == kind:
        return at, content
    self.item.content.append(Content(kind))
    at = len(self.item.content) - 1
    self._send({"type": "response.content_part.added", "part": _json(self.item.content[at]),
                **self._where(at)})
    return at, self.item.content[at]

  def _sound(self, at: int, wave_L: np.ndarray) -> None:
    if len(wave_L):
      data = base64.b64encode(pcm.encode(wave_L, self._form)).decode()
      self._delta("response.output_audio.delta", at, data)

  def _delta(self, kind: str, at: int, delta: str) -> None:
    self._send({"type": kind, "delta": delta, **self._where(at)})

  def _where(self, at: int) -> dict[str, Any]:
    assert self.item is not None
    return {"response_id": self.id, "item_id": self.item.id, "output_index": 0,
            "content_index": at}

  def _send(self, event: dict[str, Any]) -> None:
    self._shared.send(event)

  def _json(self, status: str, *, status_details: Any = None, usage: Any = None
            ) -> dict[str, Any]:
    output = self._shared.config.audio.output
    rate = {"rate": pcm.RATES[self._form]} if self._form == "audio/pcm" else {}
    return {"object": "realtime.response", "id": self.id, "status": status,
            "status_details": status_details, "output": [self.item.json()] if self.item else [],
            "conversation_id": None if self.apart else self._shared.conversation.id,
            "output_modalities": [self.modality], "max_output_tokens": self._max_tokens,
            "audio": {"output": {"format": {"type": self._form, **rate}, "voice": output.voice}},
            "usage": usage, "metadata": self._metadata}


def _json(content: Content) -> dict[str, Any]:
  kind = _PART[content.kind]
  words = content.transcript if kind == "audio" else content.text
  return {"type": kind, "transcript" if kind == "audio" else "text": words or ""}
