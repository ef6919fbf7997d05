"""One server's app: its endpoints and what stands before them."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

import omnijax
from omnijax.serve import (
  chat,
  errors,
  images,
  models,
  realtime,
  realtime_shared,
  speech,
  static,
  transcriptions,
)
from omnijax.serve.context import Context
from omnijax.serve.gate import Gate
from omnijax.serve.settings import Settings
from omnijax.serve.streams import Gone

_ABOUT = """\
OpenAI's interface to a model that reads and writes text, pictures and speech. Its clients work
unchanged, with this server's address as their base URL.
"""


def create(service: Any, settings: Settings) -> FastAPI:
  """An ASGI app in front of a service; its `state.context` is what its endpoints share.

  Args:
    service: an omnijax.generate.service.Service, or what behaves like one. It is not closed here.
    settings: limits of clients.
  """
  context = Context.of(service, settings)
  app = FastAPI(title="omnijax", version=omnijax.__version__, description=_ABOUT,
                redirect_slashes=False)
  app.state.context = context
  errors.add(app)
  app.add_exception_handler(Gone, _gone)
  for part in (chat, images, speech, transcriptions, models):
    app.include_router(part.router(context))
  limits = realtime_shared.Settings(
    keyed=bool(settings.api_keys), pixels=int(settings.max_megapixels * 1e6),
    image_size=context.image_size, buffer_s=settings.max_audio_s,
    outgoing_bytes=int(settings.max_buffer_mb * 1e6),
    message_bytes=int(settings.max_upload_mb * 1e6), metrics=context.metrics)
  app.add_api_websocket_route("/v1/realtime", realtime.Realtime(service, limits).endpoint)
  app.routes.extend(static.page())
  app.add_middleware(Gate, context=context)
  return app


def _gone(request: Request, error: Exception) -> Response:
  """Nobody reads this; the number is what the metrics count."""
  return Response(status_code=499)
