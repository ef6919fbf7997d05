"""POST /v1/audio/transcriptions: a sound in, its words out."""

from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import PlainTextResponse

from omnijax.generate.events import End, Text
from omnijax.serve import bodies, errors, uploads
from omnijax.serve.chat import sampling
from omnijax.serve.context import Context
from omnijax.serve.errors import Refused
from omnijax.serve.schemas import Seed, Temperature, Words
from omnijax.serve.streams import Streamed, as_events, unless_gone
from omnijax.serve.work import Work

_KNOWN = {"file", "model", "language", "prompt", "response_format", "temperature", "stream",
          "seed", "chunking_strategy", "user"}
_FORMATS = Literal["json", "text", "verbose_json"]


def router(context: Context) -> APIRouter:
  """The endpoint of a server."""
  routes = APIRouter(tags=["audio"])

  @routes.post("/v1/audio/transcriptions", response_model=bodies.Transcription,
               response_model_exclude_none=True,
               responses={**errors.RESPONSES, 200: {"content": {"text/plain": {},
                                                                "text/event-stream": {}}}})
  async def transcribe(
      request: Request,
      file: Annotated[UploadFile, File(description="WAV, FLAC, MP3, OGG; with PyAV, MP4 and "
                                       "WebM.")],
      model: Annotated[str, Form()],
      language: Annotated[Words | None, Form(description="A text before the sound.")] = None,
      prompt: Annotated[Words | None, Form(description="A text before the sound.")] = None,
      response_format: Annotated[_FORMATS, Form()] = "json",
      temperature: Annotated[Temperature | None, Form()] = None,
      stream: Annotated[bool, Form()] = False,
      seed: Annotated[Seed | None, Form(description="Not of OpenAI's.")] = None,
  ) -> Any:
    """Writes down what is said in a sound, whole or as server-sent events."""
    context.check_model(model)
    for kind, what in (("audio", "a sound"), ("text", "its words")):
      context.check_modality(kind, what, "file")
    unknown = sorted({name.removesuffix("[]") for name in await request.form()} - _KNOWN)
    if unknown:
      raise Refused(400, f"{unknown[0][:80]} is not supported by this server; leave it out.",
                    code="unsupported_parameter", param=unknown[0][:80])
    content = await file.read()
    kind = (file.filename or "").rpartition(".")[2].lower()
    heard = _Heard(context, Work(context, request, "file"), content, kind,
                   [text for text in (language, prompt) if text])
    try:
      await unless_gone(request, heard.begin(bodies.seed(seed), sampling(temperature)))
      if stream:
        return Streamed(heard.work, as_events(heard.events()), "text/event-stream",
                        context.settings.stall_s)
      text = await unless_gone(request, heard.text())
    except BaseException:
      heard.work.close()
      raise
    if response_format == "text":
      return PlainTextResponse(f"{text}\n")
    if response_format == "json":
      return bodies.Transcription(text=text, usage=heard.usage())
    return bodies.Transcription(text=text, usage=bodies.Seconds(seconds=heard.seconds),
                                task="transcribe", language=language or "",
                                duration=heard.seconds)

  return routes


class _Heard:
  """A sound and what is being written about it."""

  def __init__(self, context: Context, work: Work, content: bytes, kind: str, texts: list[str]):
    self._context, self.work, self._content, self._kind = context, work, content, kind
    self._texts = texts
    self._end: End | None = None
    self.seconds = 0.0

  async def begin(self, seed: int, drawn: Any) -> None:
    """Decodes the sound and asks for its words."""
    await self.work.start(self._parts, to="text", seed=seed, sampling=drawn,
                          max_new=self._context.service.max_positions)

  def _parts(self) -> list[dict[str, Any]]:
    wave_L = uploads.Uploads(self._context).sound(self._content, self._kind, "file")
    self.seconds = len(wave_L) / self._context.service.sample_rate
    texts = [{"role": "user", "text": text} for text in self._texts]
    return [*texts, {"role": "user", "audio": wave_L}]

  async def _deltas(self) -> AsyncGenerator[str, None]:
    async for _, event in self.work:
      if isinstance(event, Text):
        yield event.delta
      elif isinstance(event, End):
        self._end = event

  async def text(self) -> str:
    """All words."""
    return "".join([delta async for delta in self._deltas()])

  def usage(self) -> bodies.TokenUsage:
    """Once all words have come."""
    assert self._end is not None
    return bodies.TokenUsage.of([self._end])

  async def events(self) -> AsyncGenerator[dict[str, Any], None]:
    """Words as they come."""
    whole = ""
    async for delta in self._deltas():
      whole += delta
      yield {"type": "transcript.text.delta", "delta": delta}
    yield {"type": "transcript.text.done", "text": whole, "usage": self.usage().model_dump()}
