"""The web page: the files of the folder `page`, as they are, with headers that keep them alone."""

from __future__ import annotations

from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

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


class Page:
  """An ASGI app that serves one or all of the files."""

  def __init__(self) -> None:
    self._files = StaticFiles(directory=FOLDER, html=True)

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    async def guarded(message: Message) -> None:
      if message["type"] == "http.response.start":
        MutableHeaders(scope=message).update(HEADERS)
      await send(message)

    await self._files(scope, receive, guarded)


def page() -> list[Route]:
  """The routes of the page and of its parts, each file by itself: other paths stay unknown."""
  files = [f"/{path.relative_to(FOLDER).as_posix()}" for path in sorted(FOLDER.rglob("*"))
           if path.is_file()]
  return [Route(path, Page()) for path in ("/", *files)]
