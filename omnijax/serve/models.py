"""Which model this is, whether the server is well, and what it has done."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from omnijax.serve import bodies, errors, metrics
from omnijax.serve.context import Context


def router(context: Context) -> APIRouter:
  """The endpoints of a server."""
  routes = APIRouter(tags=["server"])
  service = context.service

  def model() -> bodies.Model:
    return bodies.Model(id=service.name, created=service.created)

  @routes.get("/v1/models", responses=errors.RESPONSES)
  async def list_models() -> bodies.Models:
    """All models: one."""
    return bodies.Models(data=[model()])

  @routes.get("/v1/models/{name}", responses=errors.RESPONSES)
  async def get_model(name: str) -> bodies.Model:
    """One model."""
    context.check_model(name)
    return model()

  @routes.get("/health", response_model=bodies.Health, responses={503: {"model": bodies.Health}})
  async def health() -> Any:
    """Whether new requests are taken: 503 once the server is stopping, or its model has failed."""
    found = bodies.Health(
      status="failed" if not service.alive else "stopping" if context.access.stopping else "ok",
      model=service.name, active=service.active())
    return JSONResponse(found.model_dump(), 200 if found.status == "ok" else 503)

  @routes.get("/metrics", response_class=Response)
  async def figures() -> Response:
    """Counters and histograms, for Prometheus."""
    return Response(context.metrics.text(), media_type=metrics.CONTENT_TYPE)

  return routes
