"""POST /v1/audio/speech: text in, speech out, as it is made where the format allows it."""

import base64
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from omnijax.generate.events import End, Sound
from omnijax.serve import bodies, errors, sounds
from omnijax.serve.context import Context
from omnijax.serve.schemas import Speech
from omnijax.serve.streams import Streamed, as_events, unless_gone
from omnijax.serve.work import Work


def router(context: Context) -> APIRouter:
  """The endpoint of a server."""
  routes = APIRouter(tags=["audio"])
  content = {kind: {} for kind, _, _ in sounds.FORMATS.values()} | {"text/event-stream": {}}

  @routes.post("/v1/audio/speech", responses={**errors.RESPONSES, 200: {"content": content}},
               response_class=Response)
  async def speech(body: Speech, request: Request) -> Response:
    """Says a text: a file, or server-sent events with pieces of one."""
    body.check()
    context.check_model(body.model)
    context.check_modality("audio", "speech", None)
    work = Work(context, request, "input")
    try:
      said = await unless_gone(request, _begun(context, body, work))
    except BaseException:
      work.close()
      raise
    if body.stream_format == "sse":
      answer, kind = as_events(_events(said)), "text/event-stream"
    else:
      answer, kind = said.bytes(), sounds.FORMATS[body.response_format][0]
    return Streamed(work, answer, kind, context.settings.stall_s)

  return routes


async def _begun(context: Context, body: Speech, work: Work) -> "_Said":
  """The speech, once the first of it is there: what fails before that has a status of its own."""
  texts = [text for text in (body.language, body.instructions, body.input) if text]
  await work.start(lambda: [{"role": "user", "text": text} for text in texts], to="audio",
                   seed=bodies.seed(body.seed), max_new=context.service.max_positions)
  said = _Said(context, body, work)
  await said.begin()
  return said


class _Said:
  """A speech as pieces of a file."""

  def __init__(self, context: Context, body: Speech, work: Work):
    self._context, self._work, self._format = context, work, body.response_format
    self._rate = context.service.sample_rate
    self._first = np.zeros(0, np.float32)
    self._whole: bytes | None = None
    self.end: End | None = None

  async def begin(self) -> None:
    """Waits for the first sound, or for all of it where the format can't be sent in pieces."""
    wave_L = await self._next()
    if wave_L is not None:
      self._first = wave_L
    if self._format not in sounds.STREAMED:
      wave_L = np.concatenate([wave_L async for wave_L in self._waves()])
      self._whole = await self._context.in_thread(sounds.encode, wave_L, self._rate, self._format)

  async def _next(self) -> np.ndarray | None:
    async for _, event in self._work:
      if isinstance(event, Sound):
        return event.wave_L
      if isinstance(event, End):
        self.end = event
    return None

  async def _waves(self) -> AsyncGenerator[np.ndarray, None]:
    yield self._first
    while (wave_L := await self._next()) is not None:
      yield wave_L

  async def bytes(self) -> AsyncGenerator[bytes, None]:
    """Pieces of the file: as they are made, or all at once."""
    if self._whole is not None:
      yield self._whole
      return
    if self._format == "wav":
      yield sounds.wav_header()
    stream = sounds.Stream(self._rate)
    async for wave_L in self._waves():
      if piece := await self._context.in_thread(stream.feed, wave_L):
        yield piece
    yield await self._context.in_thread(stream.end)


async def _events(said: _Said) -> AsyncGenerator[dict[str, Any], None]:
  async for piece in said.bytes():
    yield {"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()}
  assert said.end is not None
  usage = bodies.TokenUsage.of([said.end]).model_dump(exclude={"type"})
  yield {"type": "speech.audio.done", "usage": usage}
