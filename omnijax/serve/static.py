"""The web page: the files of the folder `page`, as they are, with headers that keep them alone."""

from __future__ import annotations

from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FOLDER = Path(__file__).parent / "page"
HEADERS = {
  # Nothing from elsewhere, no script or style in the page itself. Pictures and sounds come as data:
  # and blob: addresses. 'self' allows the WebSocket of this server, too.
  "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; media-src blob:; "
                             "object-src 'none'; base-uri 'none'; form-action 'self'; "
                             "frame-ancestors 'none'",
  "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
  # Asks each time whether a file has changed: a new version of the server has a new page.
  "Cache-Control": "no-cache",
}


def page() -> ASGIApp:
  """The page and its parts, to be mounted at "/" after all other routes."""
  files = StaticFiles(directory=FOLDER, html=True)

  async def serve(scope: Scope, receive: Receive, send: Send) -> None:
    async def guarded(message: Message) -> None:
      if message["type"] == "http.response.start":
        MutableHeaders(scope=message).update(HEADERS)
      await send(message)

    await files(scope, receive, guarded)

  return serve
