"""Answers that are sent while they are made, and clients that leave in the middle."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

import anyio
from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from omnijax.serve.errors import Failed, Refused
from omnijax.serve.work import Dropped, Work

T = TypeVar("T")
_log = logging.getLogger("omnijax")


class Gone(Exception):
  """The client has left: nobody is there to be told."""


async def unless_gone(request: Request, doing: Awaitable[T]) -> T:
  """Waits for something; ends it when the client leaves.

  Raises:
    Gone: it has left.
  """
  work = asyncio.ensure_future(doing)
  left = asyncio.ensure_future(_left(request.receive))
  try:
    await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
    if not work.done():
      raise Gone
    return work.result()
  finally:
    for task in (work, left):
      task.cancel()
    await asyncio.gather(work, left, return_exceptions=True)


async def _left(receive: Receive) -> None:
  while (await receive())["type"] != "http.disconnect":
    pass


class Streamed(Response):
  """Sends what a generator yields, as it comes.

  Args:
    work: ended when the client leaves, or takes nothing for `stall_s` seconds.
    body: yields pieces of the body. When it raises, the connection ends without the body's end.
    media_type: of the body.
    stall_s: seconds.
  """

  def __init__(self, work: Work, body: AsyncGenerator[bytes, None], media_type: str,
               stall_s: float):
    self.status_code, self.background, self.media_type = 200, None, media_type
    # Proxies shall pass it on as it comes.
    self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
    self._work, self._body, self._stall_s = work, body, stall_s

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    sending = asyncio.ensure_future(self._send(send))
    left = asyncio.ensure_future(_left(receive))
    try:
      await asyncio.wait((sending, left), return_when=asyncio.FIRST_COMPLETED)
      if sending.done():
        sending.result()
    finally:
      for task in (sending, left):
        task.cancel()
      await asyncio.gather(sending, left, return_exceptions=True)
      self._work.close()

  async def _send(self, send: Send) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
    piece = lambda body, more: {"type": "http.response.body", "body": body, "more_body": more}
    try:
      await send(start)
      async for body in self._body:
        with anyio.fail_after(self._stall_s):
          await send(piece(body, True))
      await send(piece(b"", False))
    except TimeoutError:
      _log.warning("a client is dropped, it took nothing of its answer for %g s", self._stall_s)
    except (Dropped, Refused) as error:
      _log.warning("an answer was broken off: %s", error or type(error).__name__)
    finally:
      await self._body.aclose()


async def as_events(objects: AsyncGenerator[dict[str, Any], None], *, last: bytes = b""
                    ) -> AsyncGenerator[bytes, None]:
  """Server-sent events of objects; what goes wrong on the way becomes one, too.

  Args:
    objects: one for each event.
    last: sent behind them.
  """
  try:
    async for one in objects:
      yield event(one)
  except Refused as error:
    yield event(error.body())
  except Dropped:
    raise
  except Exception:
    _log.exception("an answer failed while it was sent")
    yield event(Failed().body())
  else:
    yield last
  finally:
    await objects.aclose()


def event(data: dict[str, Any]) -> bytes:
  """One server-sent event."""
  return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"
