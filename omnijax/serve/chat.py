"""POST /v1/chat/completions: text, pictures and sounds in any order in, text or speech out."""

import base64
import dataclasses
import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response

from omnijax.generate.events import End, Event, Sound, Text
from omnijax.generate.sample import Sampling, Setting
from omnijax.serve import bodies, errors, prompts, sounds
from omnijax.serve.context import Context
from omnijax.serve.schemas import Chat
from omnijax.serve.stops import Stops
from omnijax.serve.streams import Streamed, as_events, unless_gone
from omnijax.serve.work import Work


def router(context: Context) -> APIRouter:
  """The endpoint of a server."""
  routes = APIRouter(tags=["chat"])

  @routes.post("/v1/chat/completions", responses=errors.RESPONSES,
               response_model=bodies.ChatCompletion)
  async def chat(body: Chat, request: Request) -> Any:
    """Answers a chat, whole or as a stream of server-sent events."""
    body.check()
    context.check_model(body.model)
    context.check_modality("audio" if body.spoken else "text", "the answer", "modalities")
    answer = _Answer(context, body, Work(context, request, "messages"))
    return await answer.streamed(request) if body.stream else await answer.whole(request)

  return routes


def sampling(temperature: float | None, top_p: float | None = None, top_k: int | None = None
             ) -> Sampling | None:
  """How text is drawn as asked; None where nothing was asked. Sounds and pictures stay as they are.
  """
  if temperature is None and top_p is None and top_k is None:
    return None
  base = Sampling()
  text = Setting(
    temperature=base.text.temperature if temperature is None else temperature,
    top_k=base.text.top_k if top_k is None else top_k,
    # 0 is the least that there is: the most likely alone.
    top_p=base.text.top_p if top_p is None else max(top_p, 1e-6))
  return dataclasses.replace(base, text=text)


class _Choice:
  """One of the answers to a chat, as far as it has come."""

  def __init__(self, stops: list[str], sample_rate: int, name: str):
    self.stops, self.stream, self.name = Stops(stops), sounds.Stream(sample_rate), name
    self.text, self.words, self.waves = "", "", [np.zeros(0, np.float32)]
    self.end: End | None = None

  def take(self, event: Event) -> str:
    """Text that has become ready to be shown; of speech, its words."""
    shown = ""
    if isinstance(event, Sound):
      self.waves.append(event.wave_L)
    elif isinstance(event, Text) and event.spoken:
      self.words += event.delta
      return event.delta
    elif isinstance(event, Text):
      shown = self.stops.feed(event.delta)
    elif isinstance(event, End):
      self.end, shown = event, self.stops.rest()
    self.text += shown
    return shown

  @property
  def finish(self) -> Literal["stop", "length"]:
    """Why it ended; where a stop was met it was cancelled."""
    assert self.end is not None
    return "length" if self.end.reason == "length" else "stop"


class _Answer:
  """Everything that is answered to one request."""

  def __init__(self, context: Context, body: Chat, work: Work):
    self._context, self._body, self._work = context, body, work
    rate = context.service.sample_rate
    self._choices = [_Choice(body.stops, rate, context.memory.name()) for _ in range(body.n or 1)]
    self._about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()),
                   "model": context.service.name}

  async def _start(self) -> None:
    body = self._body
    most = body.max_completion_tokens or body.max_tokens or self._context.service.max_positions
    await self._work.start(
      lambda: prompts.parts(body.messages, self._context), copies=len(self._choices),
      to="audio" if body.spoken else "text", seed=bodies.seed(body.seed), max_new=most,
      sampling=sampling(body.temperature, body.top_p, body.top_k))

  async def whole(self, request: Request) -> bodies.ChatCompletion:
    """The answers as one object."""
    async with self._work:
      return await unless_gone(request, self._whole())

  async def _whole(self) -> bodies.ChatCompletion:
    await self._start()
    async for i, event in self._work:
      self._take(i, event)
    choices = [bodies.Choice(index=i, finish_reason=c.finish, message=await self._said(c))
               for i, c in enumerate(self._choices)]
    return bodies.ChatCompletion(**self._about, choices=choices, usage=self._usage())

  def _take(self, index: int, event: Event) -> str:
    choice = self._choices[index]
    shown = choice.take(event)
    if choice.stops.met and choice.end is None:
      self._work.cancel(index)
    return shown

  async def _said(self, choice: _Choice) -> bodies.Said:
    if not self._body.spoken:
      return bodies.Said(content=choice.text)
    assert self._body.audio is not None
    wave_L = np.concatenate(choice.waves)
    data = await self._context.in_thread(sounds.encode, wave_L, self._context.service.sample_rate,
                                         self._body.audio.format)
    return bodies.Said(content=choice.text or None, audio=bodies.Audio(
      id=choice.name, data=base64.b64encode(data).decode(), transcript=choice.words,
      expires_at=self._keep(choice)))

  def _keep(self, choice: _Choice) -> int:
    return self._context.memory.keep(choice.name, np.concatenate(choice.waves), choice.words)

  def _usage(self) -> bodies.Usage:
    return bodies.Usage.of([c.end for c in self._choices if c.end is not None])

  async def streamed(self, request: Request) -> Response:
    """The answers as they come."""
    try:
      await unless_gone(request, self._start())
    except BaseException:
      self._work.close()
      raise
    return Streamed(self._work, as_events(self._chunks(), last=b"data: [DONE]\n\n"),
                    "text/event-stream", self._context.settings.stall_s)

  async def _chunks(self) -> AsyncGenerator[dict[str, Any], None]:
    for i in range(len(self._choices)):
      yield self._chunk(i, {"role": "assistant", "content": None if self._body.spoken else ""})
    async for i, event in self._work:
      choice = self._choices[i]
      shown = self._take(i, event)
      if shown and isinstance(event, Text) and event.spoken:
        yield self._chunk(i, {"audio": {"id": choice.name, "transcript": shown}})
      elif shown:
        yield self._chunk(i, {"content": shown})
      if self._body.spoken and isinstance(event, Sound | End):
        wave_L = event.wave_L if isinstance(event, Sound) else np.zeros(0, np.float32)
        data = await self._context.in_thread(choice.stream.feed, wave_L, isinstance(event, End))
        if data:
          yield self._chunk(i, {"audio": {"id": choice.name,
                                          "data": base64.b64encode(data).decode()}})
      if isinstance(event, End):
        if self._body.spoken:
          yield self._chunk(i, {"audio": {"id": choice.name, "expires_at": self._keep(choice)}})
        yield self._chunk(i, {}, choice.finish)
    options = self._body.stream_options
    if options is not None and options.include_usage:
      yield {**self._chunk(0, {}), "choices": [], "usage": self._usage().model_dump()}

  def _chunk(self, index: int, delta: dict[str, Any], finish: str | None = None
             ) -> dict[str, Any]:
    options = self._body.stream_options
    usage = {"usage": None} if options is not None and options.include_usage else {}
    return {**self._about, "object": "chat.completion.chunk", **usage, "choices": [
      {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}]}
