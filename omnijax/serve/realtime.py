"""The WebSocket endpoint of OpenAI's Realtime API, /v1/realtime.

`Realtime(service, settings).endpoint` is a route of Starlette or FastAPI. What a session does with
the events is in realtime_session.py, the native full-duplex talk in duplex.py.

Beside OpenAI's `server_vad` and null, `audio.input.turn_detection` of a session may be
{"type": "native"}, and is so from the start if the model hears and speaks:

- The first sound opens a talk, which takes a slot. From then on the model speaks when it likes, and
  its responses come as events of OpenAI's without being asked for. Until then, and for responses
  with conversation "none", it answers as with null.
- The model's time is that of the sound it hears: a client sends sound all the time, silence too.
- Texts and pictures of conversation.item.create are seen at once; response.create has nothing to
  add to that. Items can't be deleted, and sound is never committed: it has been heard.
- conversation.item.truncate takes what wasn't heard of the last response out of the model's memory;
  one that is still being said ends. response.cancel ends one, too.
- A response that falls silent while the client speaks is cancelled, with the reason turn_detected.
- Sound that the model hears is not transcribed, in any mode.
"""

import asyncio
import collections
import logging
import math
from typing import Any

import anyio
from starlette.websockets import WebSocket, WebSocketDisconnect

from omnijax.serve import realtime_events
from omnijax.serve.errors import Refused
from omnijax.serve.realtime_events import Problem
from omnijax.serve.realtime_session import Session
from omnijax.serve.realtime_shared import Service, Settings

_LOG = logging.getLogger(__name__)
_CLOSE_S = 2.0  # that a close frame may take


class Outbox:
  """What is yet to be sent to a client that reads as fast as it likes; putting never waits.

  Args:
    most: bytes; with more, the client counts as gone.
  """

  def __init__(self, most: int):
    self._most = most
    self._waiting: collections.deque[str] = collections.deque()
    self._bytes = 0
    self._ending: tuple[int, str] | None = None
    self._more = asyncio.Event()
    self.overflowed = asyncio.Event()

  def put(self, event: dict[str, Any]) -> None:
    """Queues an event, unless the connection ends."""
    if self._ending or self.overflowed.is_set():
      return
    text = realtime_events.pack(event)
    self._bytes += len(text)  # as ASCII
    self._waiting.append(text)
    self._more.set()
    if self._bytes > self._most:
      self.overflowed.set()

  def end(self, code: int, reason: str) -> None:
    """Nothing more is queued; the connection is closed when the rest is sent."""
    self._ending = self._ending or (code, reason)
    self._more.set()

  async def send(self, websocket: WebSocket) -> None:
    """Sends what is queued, until `end`."""
    while True:
      while self._waiting:
        text = self._waiting.popleft()
        await websocket.send_text(text)
        self._bytes -= len(text)
      if self._ending:
        await websocket.close(*self._ending)
        return
      self._more.clear()
      await self._more.wait()


class Realtime:
  """The sessions of a server.

  Args:
    service: the model's.
    settings: who may connect, and limits.
  """

  def __init__(self, service: Service, settings: Settings):
    self._service, self._settings = service, settings
    # As many as there are sessions, each with little to do: who has much waits for itself only.
    self._threads = anyio.CapacityLimiter(math.inf)

  async def endpoint(self, websocket: WebSocket) -> None:
    """Serves one session, from the handshake until one side closes.

    A page of another origin and an unknown model get 403 and 404 in answer to the handshake, with
    OpenAI's JSON of an error; keys, rates and how many there are have been checked before.
    """
    refused = self._refuse(websocket)
    if refused:
      await websocket.send_denial_response(refused.response())
      return
    metrics = self._settings.metrics
    if metrics:
      metrics.session_opened()
    try:
      offered = websocket.scope.get("subprotocols", [])
      await websocket.accept(subprotocol="realtime" if "realtime" in offered else None)
      await self._serve(websocket)
    except WebSocketDisconnect:
      pass  # it went while something was sent
    finally:
      if metrics:
        metrics.session_closed()

  async def _serve(self, websocket: WebSocket) -> None:
    outbox = Outbox(self._settings.outgoing_bytes)
    session = Session(self._service, self._settings, self._threads, send=outbox.put,
                      end=outbox.end)
    reader = asyncio.create_task(self._read(websocket, session, outbox))
    sender = asyncio.create_task(outbox.send(websocket))
    tasks = {reader, sender, asyncio.create_task(session.work()),
             asyncio.create_task(outbox.overflowed.wait())}
    try:
      await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED,
                         timeout=self._settings.session_s)
      session.close()
      await self._part(websocket, outbox, tasks, reader, sender)
    finally:
      session.close()
      for task in tasks:
        task.cancel()
      await asyncio.gather(*tasks, return_exceptions=True)

  async def _part(self, websocket: WebSocket, outbox: Outbox, tasks: set[asyncio.Task[Any]],
                  reader: asyncio.Task[Any], sender: asyncio.Task[Any]) -> None:
    """Says why the session ends, if it wasn't the client's wish."""
    if outbox.overflowed.is_set():
      sender.cancel()
      await self._close(websocket, 1008, "events are not read")
      return
    failed = [t for t in tasks if t.done() and t.exception() and not isinstance(
      t.exception(), WebSocketDisconnect)]
    if failed:
      _LOG.error("a realtime session fails", exc_info=failed[0].exception())
      outbox.put(Problem("the server failed; connect again.", code="server_error",
                         kind="server_error").event(None))
      outbox.end(1011, "server error")
    elif not any(t.done() for t in tasks):
      outbox.put(Problem(f"the session is {self._settings.session_s:g} s old, which is the most; "
                         "connect again.", code="session_expired").event(None))
      outbox.end(1000, "session expired")
    gone = reader.done() and isinstance(reader.exception(), WebSocketDisconnect)
    if not gone:
      await asyncio.wait({sender}, timeout=_CLOSE_S)

  async def _close(self, websocket: WebSocket, code: int, reason: str) -> None:
    """Closes in a bounded time; a client that reads nothing doesn't even get that."""
    try:
      async with asyncio.timeout(_CLOSE_S):
        await websocket.close(code, reason)
    except (TimeoutError, WebSocketDisconnect):
      pass

  async def _read(self, websocket: WebSocket, session: Session, outbox: Outbox) -> None:
    """Hands the client's messages to the session, until it goes."""
    while True:
      try:
        async with asyncio.timeout(self._settings.idle_s):
          message = await websocket.receive()
      except TimeoutError:
        outbox.put(Problem(f"nothing came for {self._settings.idle_s:g} s; connect again.",
                           code="session_idle").event(None))
        outbox.end(1000, "idle")
        return
      if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"])
      text = message.get("text")
      most = self._settings.message_bytes
      if text is None:
        outbox.put(Problem("the message is binary; wanted text, an event in JSON.",
                           code="invalid_json").event(None))
      elif len(text) > most or (len(text) * 4 > most and len(text.encode()) > most):
        outbox.put(Problem(f"the message is longer than {most} bytes; send less at once.",
                           code="message_too_large").event(None))
      else:
        await session.receive(text)

  def _refuse(self, websocket: WebSocket) -> Refused | None:
    """What is said to who may not have a session."""
    origin, host = (websocket.headers.get(name) for name in ("origin", "host"))
    if not self._settings.keyed and origin and origin.partition("//")[2] != host:
      # Browsers let every page open WebSockets to every server, those of this machine included.
      return Refused(403, f"A page of {origin[:200]} may not use this server without an API key; "
                     "set one, or serve the page from here.", code="origin_not_allowed")
    model = websocket.query_params.get("model", self._service.name)
    if model != self._service.name:
      return Refused(404, f"There is no model {model[:200]!r}; there is {self._service.name}.",
                     code="model_not_found", param="model")
    return None
