"""POST /v1/images/generations: text in, pictures out."""

import base64
import re
import time
from typing import Any

from fastapi import APIRouter, Request

from omnijax.generate.events import End, Picture, Text
from omnijax.serve import bodies, errors, pixels
from omnijax.serve.context import Context
from omnijax.serve.errors import Failed, Refused
from omnijax.serve.schemas import Images
from omnijax.serve.streams import unless_gone
from omnijax.serve.work import Work


def router(context: Context) -> APIRouter:
  """The endpoint of a server."""
  routes = APIRouter(tags=["images"])

  @routes.post("/v1/images/generations", responses=errors.RESPONSES,
               response_model=bodies.ImagesAnswer, response_model_exclude_none=True)
  async def images(body: Images, request: Request) -> Any:
    """Draws pictures of what the prompt says."""
    body.check()
    context.check_model(body.model)
    context.check_modality("image", "a picture", None)
    async with Work(context, request, "prompt") as work:
      return await unless_gone(request, _drawn(context, body, work))

  return routes


def sides(size: str | None, step: int) -> tuple[int, int] | None:
  """Height and width in pixels of a size as clients write it; None leaves it to the model.

  Raises:
    Refused: it is no size, or not one that the model can draw.
  """
  if size is None or size == "auto":
    return None
  found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size, re.ASCII)
  wrong = f"size is {size[:40]!r}; wanted auto, or WIDTHxHEIGHT with multiples of {step} pixels"
  if found is None:
    raise Refused(400, f"{wrong}.", code="invalid_value", param="size")
  w, h = int(found[1]), int(found[2])
  if w % step or h % step:
    near = "x".join(str(max(1, round(n / step)) * step) for n in (w, h))
    raise Refused(400, f"{wrong}, such as {near}.", code="invalid_value", param="size")
  return h, w


async def _drawn(context: Context, body: Images, work: Work) -> bodies.ImagesAnswer:
  copies = body.n or 1
  options = {} if body.guidance is None else {"guidance": body.guidance}
  await work.start(lambda: [{"role": "user", "text": body.prompt}], copies=copies, to="image",
                   image_size=sides(body.size, context.service.image_step),
                   seed=bodies.seed(body.seed), **options)
  words, found, ends = [""] * copies, {}, []
  async for i, event in work:
    if isinstance(event, Text):
      words[i] += event.delta
    elif isinstance(event, Picture) and i not in found:
      found[i] = event.pixels_HWC
    elif isinstance(event, End):
      ends.append(event)
  if len(found) != copies:
    raise Failed
  kind = body.output_format or "png"
  data = []
  for i in range(copies):
    content = await context.in_thread(pixels.encode, found[i], kind)
    encoded = base64.b64encode(content).decode()
    url = f"data:image/{kind};base64,{encoded}" if body.response_format == "url" else None
    data.append(bodies.Image(b64_json=None if url else encoded, url=url,
                             revised_prompt=words[i] or None))
  h, w, _ = found[0].shape
  used = bodies.TokenUsage.of(ends)
  return bodies.ImagesAnswer(
    created=int(time.time()), data=data, output_format=kind, size=f"{w}x{h}",
    usage=bodies.ImageUsage(**used.model_dump(), input_tokens_details=bodies.ImageTokens(
      text_tokens=used.input_tokens)))
