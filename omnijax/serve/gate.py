"""What every request passes first: who comes, how much is sent, how long it takes."""

import logging
import time
import uuid

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from omnijax.serve.access import presented
from omnijax.serve.context import Context
from omnijax.serve.errors import Failed, Refused

_log = logging.getLogger("omnijax")
_GUARDED = "/v1/"
_GONE = 499  # nginx's number for a client that left


class Gate:
  """ASGI middleware, the outermost.

  A request of /v1/ needs a key, counts against the client's rate, and is not taken once the server
  is stopping; so is a WebSocket's session. No body may be larger than the limit, which holds while
  it is read.
  """

  def __init__(self, app: ASGIApp, context: Context):
    self._app, self._context = app, context

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
      await _Passage(self._app, self._context, scope, receive, send).run()
    elif scope["type"] == "websocket":
      await self._session(scope, receive, send)
    else:
      await self._app(scope, receive, send)

  async def _session(self, scope: Scope, receive: Receive, send: Send) -> None:
    access = self._context.access
    try:
      _admit(self._context, scope)
    except Refused as refused:
      await WebSocket(scope, receive, send).send_denial_response(refused.response())
      return
    access.inside += 1
    try:
      await self._app(scope, receive, send)
    finally:
      access.inside -= 1


def _admit(context: Context, scope: Scope) -> None:
  """Lets a client in, or raises Refused."""
  key = presented(Headers(scope=scope).get("authorization"), scope.get("subprotocols", ()))
  client = scope.get("client")
  context.access.check(key, client[0] if client else "unknown")


class _Passage:
  """One request on its way."""

  def __init__(self, app: ASGIApp, context: Context, scope: Scope, receive: Receive, send: Send):
    self._app, self._context, self._scope = app, context, scope
    self._receive_raw, self._send_raw = receive, send
    self._limit = int(context.settings.max_upload_mb * 1e6)
    self._got, self._reading = 0, True
    self._status = 0
    self._id = f"req_{uuid.uuid4().hex}"

  async def run(self) -> None:
    access, scope = self._context.access, self._scope
    scope.setdefault("state", {})["began"] = began = time.perf_counter()
    guarded = scope["path"].startswith(_GUARDED)
    try:
      self._check(guarded)
    except Refused as refused:
      await refused.response()(scope, self._receive, self._send)
    else:
      access.inside += guarded
      try:
        await self._app(scope, self._receive, self._send)
      except Exception:
        _log.exception("%s %s failed, request %s", scope["method"], scope["path"], self._id)
        if self._status:
          raise  # the connection ends here, so that nobody takes half an answer for all of it
        await Failed().response()(scope, self._receive, self._send)
      finally:
        access.inside -= guarded
    route = scope.get("route")
    self._context.metrics.request(getattr(route, "path", "other"), self._status or _GONE,
                                  time.perf_counter() - began)

  def _check(self, guarded: bool) -> None:
    if guarded:
      _admit(self._context, self._scope)
    length = Headers(scope=self._scope).get("content-length", "")
    if length.isdecimal() and int(length) > self._limit:
      raise self._too_large()

  def _too_large(self) -> Refused:
    return Refused(413, f"The body has more than {self._context.settings.max_upload_mb:g} MB, "
                   "which is this server's limit; send less.", code="body_too_large")

  async def _receive(self) -> Message:
    if not self._reading:
      return await self._receive_raw()
    try:
      with anyio.fail_after(self._context.settings.stall_s):
        message = await self._receive_raw()
    except TimeoutError:
      raise Refused(408, f"No more of the body came for {self._context.settings.stall_s:g} s.",
                    code="timeout") from None
    if message["type"] == "http.request":
      self._reading = message.get("more_body", False)
      self._got += len(message.get("body", b""))
      if self._got > self._limit:
        raise self._too_large()
    return message

  async def _send(self, message: Message) -> None:
    if message["type"] == "http.response.start":
      self._status = message["status"]
      MutableHeaders(scope=message)["x-request-id"] = self._id
    await self._send_raw(message)
