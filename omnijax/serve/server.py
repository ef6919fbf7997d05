"""Uvicorn, with an end that lets clients finish, and connections that can't be held for ever."""

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType

import anyio.to_thread
import uvicorn
from fastapi import FastAPI

from omnijax.serve.context import Context

_LAST_S = 5  # for what has been cancelled to be sent


def bind(host: str, port: int, stall_s: float) -> socket.socket:
  """A socket that only needs to listen; port 0 takes any that is free.

  Args:
    host, port: where.
    stall_s: seconds after which Linux ends a connection whose other side takes nothing.

  Raises:
    ValueError: that is not an address of this machine, or somebody has the port.
  """
  if not 0 <= port < 1 << 16:
    raise ValueError(f"--port is {port}; wanted 0 (any that is free) to 65535.")
  bound = None
  try:
    (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sys.platform == "linux":
      # Connections have it of the socket that they come from.
      bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_s * 1000))
    bound.bind(address)
    # Now, so that two servers can't both think the port theirs while they load their models.
    bound.listen(2048)
  except OSError as error:
    if bound is not None:
      bound.close()
    raise ValueError(f"can't listen on {host}, port {port}: {error.strerror or error}; give "
                     "another --port (0 takes any that is free) or --host.") from None
  return bound


class Server(uvicorn.Server):
  """Serves an app of `app.create`.

  SIGTERM: nobody new is let in and /health says so; who is inside may finish for drain_s seconds;
  then the service ends what is left, and the server ends. SIGINT, and a second SIGTERM: without
  that time.

  Args:
    app: what is served.
    ready: called once it listens.
  """

  def __init__(self, app: FastAPI, ready: Callable[[], None]):
    self._context: Context = app.state.context
    settings = self._context.settings
    super().__init__(uvicorn.Config(
      app, lifespan="off", log_config=None, access_log=False, server_header=False,
      timeout_keep_alive=75, timeout_graceful_shutdown=_LAST_S,
      # Sound as base64 hardly shrinks.
      ws_per_message_deflate=False, ws_max_size=int(settings.max_upload_mb * 1e6)))
    self._ready, self._until = ready, float("inf")

  def handle_exit(self, sig: int, frame: FrameType | None) -> None:
    """Uvicorn calls it for SIGINT and SIGTERM."""
    first = not self._context.access.stopping
    self._context.access.stopping = True
    if sig == signal.SIGTERM:  # kept from uvicorn, which would end this process by it
      self._until = time.monotonic() + (self._context.settings.drain_s if first else 0)
    else:
      super().handle_exit(sig, frame)

  async def startup(self, sockets: list[socket.socket] | None = None) -> None:
    """Uvicorn calls it to begin."""
    await super().startup(sockets)
    self._ready()

  async def on_tick(self, counter: int) -> bool:
    """Uvicorn asks it ten times a second whether this is the end."""
    idle = self._context.access.stopping and not self._context.access.inside
    late = time.monotonic() >= self._until
    return await super().on_tick(counter) or idle or late

  async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
    """Uvicorn calls it to end: all that still runs is cancelled, and its clients are told."""
    self._context.access.stopping = True
    ending = asyncio.ensure_future(anyio.to_thread.run_sync(self._context.service.close))
    await super().shutdown(sockets)
    await ending
