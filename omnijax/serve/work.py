"""What the service's thread says, brought to the event loop: the events of a request's answers."""

import asyncio
import collections
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from fastapi import Request

from omnijax.generate.events import End, Event, Full, Picture, Sound, Text, TooLong
from omnijax.serve.context import Context
from omnijax.serve.errors import Failed, Refused, Stopping

_log = logging.getLogger("omnijax")
_KINDS: dict[type, str] = {Text: "text", Sound: "sound", Picture: "picture"}
# What an event takes beside its samples or pixels, about.
_EVENT_BYTES = 200


class Dropped(Exception):
  """The client reads too slowly: what waits for it has become too much."""


class Work:
  """The answers to one request. `async with`, `start`, then `async for index, event in work`.

  Every answer's last event is its End. Leaving the block cancels what has not ended.

  Args:
    context: the server's.
    request: whose answers these are.
    param: the field of the request that the prompt comes from.
  """

  def __init__(self, context: Context, request: Request, param: str):
    self._context, self._param = context, param
    self._endpoint = request.scope["route"].path
    self._began: float = request.state.began
    self._loop = asyncio.get_running_loop()
    self._most = int(context.settings.max_buffer_mb * 1e6)
    self._waiting: collections.deque[tuple[int, Event]] = collections.deque()
    self._bytes, self._dropped = 0, False
    self._some = asyncio.Event()
    self._lock = threading.Lock()  # of what `start` does in other threads
    self._tickets: dict[int, Any] = {}
    self._closed = False
    self._open = 0  # answers whose End has not come out
    self._first = True
    self._ours: set[int] = set()  # answers that this request has cancelled itself

  async def start(self, parts: Callable[[], list[dict[str, Any]]], *, copies: int = 1, seed: int,
                  **options: Any) -> None:
    """Makes a prompt and asks for its answers, in a worker thread.

    Args:
      parts: makes the prompt, which may take a while.
      copies: of the answer, each drawn by a seed of its own.
      options: of Service.write.

    Raises:
      Refused: the prompt is unusable or too long, or the server is full or stopping.
    """
    await self._context.in_thread(self._start, parts, copies, seed, options)

  def _start(self, parts: Callable[[], list[dict[str, Any]]], copies: int, seed: int,
             options: dict[str, Any]) -> None:
    prompt = parts()
    for i in range(copies):
      if self._closed:
        return
      try:
        ticket = self._context.service.write(prompt, seed=(seed + 7919 * i) % 2**31,
                                             emit=lambda event, i=i: self._emit(i, event),
                                             **options)
      except Full as error:
        if self._context.access.stopping:
          raise Stopping from None
        raise Refused(429, f"The server is full: {error}", code="queue_full",
                      retry_after=2) from None
      except ValueError as error:
        long = isinstance(error, TooLong)
        raise Refused(400, str(error), code="context_length_exceeded" if long else "invalid_value",
                      param=self._param) from None
      with self._lock:
        self._open += 1
        self._tickets[i] = ticket
        if self._closed:
          ticket.cancel()

  def _emit(self, index: int, event: Event) -> None:
    """Called by the service's thread; must neither wait nor raise."""
    try:
      self._loop.call_soon_threadsafe(self._put, index, event)
    except RuntimeError:  # the loop is closed: the server has ended
      pass

  def _put(self, index: int, event: Event) -> None:
    if self._closed:
      return
    if self._dropped and not isinstance(event, End):
      return
    self._bytes += _size(event)
    self._waiting.append((index, event))
    if self._bytes > self._most:
      _log.warning("%s: a client is dropped, it did not read %.1f MB of its answer",
                   self._endpoint, self._bytes / 1e6)
      self._dropped, self._bytes = True, 0
      self._waiting.clear()
      self.cancel()
    self._some.set()

  def cancel(self, index: int | None = None) -> None:
    """Ends one answer, or all; each End still comes."""
    with self._lock:
      mine = list(self._tickets.items()) if index is None else [(index, self._tickets[index])]
    for i, ticket in mine:
      self._ours.add(i)
      ticket.cancel()

  def __aiter__(self) -> "Work":
    return self

  async def __anext__(self) -> tuple[int, Event]:
    """The next event of any answer.

    Raises:
      Dropped: the client has read too slowly.
      Refused: an answer failed, or was ended because the server stops.
    """
    if not self._open:
      raise StopAsyncIteration
    while not self._waiting and not self._dropped:
      self._some.clear()
      await self._some.wait()
    if self._dropped:
      raise Dropped
    index, event = self._waiting.popleft()
    self._bytes -= _size(event)
    if isinstance(event, End):
      self._ended(index, event)
    elif self._first:
      self._first = False
      self._context.metrics.first(self._endpoint, _KINDS[type(event)],
                                  time.perf_counter() - self._began)
    return index, event

  def _ended(self, index: int, end: End) -> None:
    self._open -= 1
    self._context.metrics.positions(self._endpoint, end.prompt, end.written)
    if end.reason == "failed":
      _log.error("%s: the model failed: %s", self._endpoint, end.error)
      raise Failed
    if end.reason == "cancelled" and index not in self._ours:
      raise Stopping

  async def __aenter__(self) -> "Work":
    return self

  async def __aexit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    """Cancels what has not ended; no event comes any more."""
    self._closed = True
    self._waiting.clear()
    self.cancel()


def _size(event: Event) -> int:
  if isinstance(event, Sound):
    return _EVENT_BYTES + event.wave_L.nbytes
  if isinstance(event, Picture):
    return _EVENT_BYTES + event.pixels_HWC.nbytes
  return _EVENT_BYTES
