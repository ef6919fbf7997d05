"""A server for tests of the web page: the page itself, and just enough of what it talks to.

Its model answers each loud stretch of what it hears with three seconds of a tone. A native one does
so frame by frame, as sound is heard, and falls silent when it hears loudness for long enough while
it speaks; one that takes turns sends its whole answer at once. Shapes: L samples.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from omnijax.serve.static import page

RATE = 24000
FRAME = 1920  # 80 ms
LOUD = 0.03
STOPPED_AFTER = 5  # silent frames that end what was heard
ANSWER = 38  # frames
YIELDS_AFTER = 3  # loud frames that silence the model
WORDS = "the tone that you hear is an A and it goes on for three seconds".split()
PICTURE_SIDE = 28


def tone(n: int, start: int = 0, hertz: float = 440.0) -> np.ndarray:
  return 0.3 * np.sin(2 * np.pi * hertz * np.arange(start, start + n) / RATE)


def pcm(wave_L: np.ndarray) -> str:
  return base64.b64encode((wave_L * 32767).astype("<i2").tobytes()).decode()


def png() -> str:
  """A gradient in base64."""
  ramp = np.linspace(0, 255, PICTURE_SIDE, dtype=np.uint8)
  file = io.BytesIO()
  Image.fromarray(np.add.outer(ramp // 2, ramp // 2)).save(file, "PNG")
  return base64.b64encode(file.getvalue()).decode()


@dataclass
class Fake:
  """What the server does, and what it saw."""
  key: str = ""  # wanted of everybody, if any
  full: bool = False  # no place for a conversation
  native: bool = True
  late: int = 0  # frames from the last sound of an answer until it is said to be done
  deaf: bool = False  # nothing that is heard is loud
  hang_up_after: int = 0  # frames; 0: never
  events: list[dict] = field(default_factory=list)  # of clients, without the sound
  heard: list[np.ndarray] = field(default_factory=list)
  bodies: list[tuple[str, dict]] = field(default_factory=list)  # path, JSON
  sent: dict[str, int] = field(default_factory=dict)  # samples of each item
  appends: int = 0

  def of(self, kind: str) -> list[dict]:
    return [event for event in self.events if event["type"] == kind]


class Conversation:
  """One socket; what is heard drives everything."""

  def __init__(self, fake: Fake, socket: WebSocket):
    self.fake, self.socket = fake, socket
    self.left_L = np.zeros(0)
    self.frames = self.loud = self.quiet = self.answers = 0
    self.turns = "native"
    self.hearing = ""  # the item that is being heard
    self.item = ""  # the item that is being said
    self.said = 0  # frames of it
    self.owed: list[tuple[int, dict]] = []  # at which frame: an answer that is done

  async def send(self, kind: str, **more) -> None:
    await self.socket.send_json({"type": kind, "event_id": "event", **more})

  async def refuse(self, event: dict, code: str, message: str) -> None:
    await self.send("error", error={"type": "invalid_request_error", "code": code,
                                    "message": message, "event_id": event.get("event_id")})

  async def receive(self, event: dict) -> None:
    if event["type"] != "input_audio_buffer.append":
      self.fake.events.append(event)
    match event["type"]:
      case "session.update":
        self.turns = event["session"]["audio"]["input"]["turn_detection"]["type"]
        await self.send("session.updated", session=event["session"])
      case "input_audio_buffer.append" if self.turns == "native" and not self.fake.native:
        await self.refuse(event, "invalid_value", "Set turn_detection to server_vad or null.")
      case "input_audio_buffer.append":
        wave_L = np.frombuffer(base64.b64decode(event["audio"]), "<i2") / 32768
        self.fake.heard.append(wave_L)
        self.fake.appends += 1
        self.left_L = np.concatenate([self.left_L, wave_L])
        while len(self.left_L) >= FRAME:
          frame_L, self.left_L = self.left_L[:FRAME], self.left_L[FRAME:]
          await self.step(float(np.sqrt(np.mean(frame_L ** 2))))
      case "response.cancel" if self.item:
        await self.end("cancelled")
      case "response.cancel":
        await self.refuse(event, "response_cancel_not_active", "There is no response.")
      case "conversation.item.truncate":
        most = self.fake.sent[event["item_id"]] * 1000 / RATE
        assert 0 <= event["audio_end_ms"] <= most, (event, most)
        await self.send("conversation.item.truncated", **{
          k: event[k] for k in ("item_id", "content_index", "audio_end_ms")})
      case "conversation.item.create":
        await self.send("conversation.item.added", item={**event["item"], "id": "typed"})
        if self.fake.native:
          await self.begin()
      case "response.create":
        await self.begin()

  async def step(self, level: float) -> None:
    self.frames += 1
    if self.frames == self.fake.hang_up_after:
      await self.socket.close(1011)
      return
    loud = level > LOUD and not self.fake.deaf
    self.loud, self.quiet = (self.loud + 1, 0) if loud else (0, self.quiet + 1)
    await self.settle()
    ms = self.frames * 80
    if self.loud and not self.hearing:
      self.hearing = f"heard_{self.frames}"
      await self.send("input_audio_buffer.speech_started", item_id=self.hearing,
                      audio_start_ms=ms - 80)
    if self.item and self.loud == YIELDS_AFTER:
      await self.end("cancelled")
    if self.hearing and self.quiet == STOPPED_AFTER:
      await self.send("input_audio_buffer.speech_stopped", item_id=self.hearing,
                      audio_end_ms=ms - 80 * STOPPED_AFTER)
      await self.send("input_audio_buffer.committed", item_id=self.hearing)
      self.hearing = ""
      await self.begin()
    elif self.item:
      await self.speak()

  async def begin(self) -> None:
    if self.item:
      return
    self.answers += 1
    self.item, self.said = f"said_{self.answers}", 0
    self.fake.sent[self.item] = 0
    await self.send("response.created", response={"id": self.item, "status": "in_progress"})
    while not self.fake.native and self.item:
      await self.speak()

  async def speak(self) -> None:
    where = dict(item_id=self.item, response_id=self.item, output_index=0, content_index=0)
    if self.said % 3 == 0 and self.said // 3 < len(WORDS):
      await self.send("response.output_audio_transcript.delta",
                      delta=WORDS[self.said // 3] + " ", **where)
    sound_L = tone(FRAME, self.said * FRAME)
    self.fake.sent[self.item] += FRAME
    await self.send("response.output_audio.delta", delta=pcm(sound_L), **where)
    self.said += 1
    if self.said == ANSWER:
      await self.end("completed")

  async def end(self, status: str) -> None:
    item, self.item = self.item, ""
    await self.send("response.output_audio.done", item_id=item, response_id=item)
    self.owed.append((self.frames + self.fake.late,
                      {"id": item, "status": status, "output": [{"id": item}]}))
    await self.settle()

  async def settle(self) -> None:
    while self.owed and self.owed[0][0] <= self.frames:
      await self.send("response.done", response=self.owed.pop(0)[1])


async def _answer(body: dict) -> AsyncIterator[str]:
  event = lambda delta, reason=None: "data: " + json.dumps(
    {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}) + "\n\n"
  if "audio" in body.get("modalities", []):
    for i, word in enumerate(WORDS[:4]):
      yield event({"audio": {"id": "audio_1", "transcript": word + " "}})
      yield event({"audio": {"data": pcm(tone(FRAME, i * FRAME))}})
      await asyncio.sleep(0.02)
  else:
    for word in WORDS[:6]:
      yield event({"content": word + " "})
      await asyncio.sleep(0.02)
  yield event({}, "stop")
  yield "data: [DONE]\n\n"


def create(fake: Fake) -> Starlette:
  def refused(request: Request) -> Response | None:
    if not fake.key or request.headers.get("authorization") == f"Bearer {fake.key}":
      return None
    return JSONResponse({"error": {"message": "wrong key", "code": "invalid_api_key"}}, 401)

  async def models(request: Request) -> Response:
    return refused(request) or JSONResponse({"object": "list", "data": [{"id": "tiny-omni"}]})

  async def health(request: Request) -> Response:
    return JSONResponse({"status": "ok", "model": "tiny-omni", "active": {
      "slots": 4, "talk": 1, "write": 0, "queued": 0}})

  async def chat(request: Request) -> Response:
    body = await request.json()
    fake.bodies.append((request.url.path, body))
    if "too long" in json.dumps(body["messages"]):
      return JSONResponse({"error": {"message": "The conversation does not fit."}}, 400)
    return refused(request) or StreamingResponse(_answer(body), media_type="text/event-stream")

  async def images(request: Request) -> Response:
    fake.bodies.append((request.url.path, await request.json()))
    return refused(request) or JSONResponse({"data": [{"b64_json": png()}]})

  async def realtime(socket: WebSocket) -> None:
    offered = socket.scope["subprotocols"]
    if fake.full or fake.key and f"openai-insecure-api-key.{fake.key}" not in offered:
      await socket.close(1013)
      return
    # A browser gives up unless the server takes one of the protocols that it offers.
    await socket.accept(subprotocol="realtime")
    assert socket.query_params["model"] == "tiny-omni"
    talk = Conversation(fake, socket)
    await talk.send("session.created", session={})
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
      while True:
        await talk.receive(await socket.receive_json())

  return Starlette(routes=[
    Route("/v1/models", models), Route("/health", health),
    Route("/v1/chat/completions", chat, methods=["POST"]),
    Route("/v1/images/generations", images, methods=["POST"]),
    WebSocketRoute("/v1/realtime", realtime), *page()])


@contextlib.contextmanager
def running(fake: Fake) -> Iterator[str]:
  """The address of a server that runs in a thread."""
  server = uvicorn.Server(uvicorn.Config(create(fake), port=0, log_level="warning",
                                         ws="websockets-sansio", timeout_graceful_shutdown=1))
  thread = threading.Thread(target=server.run)
  thread.start()
  try:
    while not server.started:
      assert thread.is_alive()
      thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/"
  finally:
    server.should_exit = True
    thread.join()
