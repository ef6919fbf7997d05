"""What clients may send: the fields of every request.

Fields that OpenAI has and that change nothing in what is answered are taken and ignored; those that
would are refused by `unsupported`, unless they have the value that changes nothing.
"""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from omnijax.serve.errors import Refused
from omnijax.serve.sounds import STREAMED

# Names and values of fields that ask for nothing.
_NOTHING: tuple[Any, ...] = (None, False, 0, "none", "auto", [], {}, {"type": "text"})
Count = Annotated[int, Field(ge=1, le=8)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Words = Annotated[str, Field(min_length=1, max_length=32_000)]


class Fields(pydantic.BaseModel):
  """Fields of a request; unknown ones are refused, for they would do nothing."""

  model_config = pydantic.ConfigDict(extra="forbid")


class Lenient(pydantic.BaseModel):
  """Fields of a part of a request, which may have others that mean nothing here."""

  model_config = pydantic.ConfigDict(extra="ignore")


class TextPart(Lenient):
  """Text."""

  type: Literal["text"]
  text: str


class ImageUrl(Lenient):
  """Where a picture is."""

  url: str = Field(description="A data URL: data:image/png;base64,...")


class ImagePart(Lenient):
  """A picture."""

  type: Literal["image_url"]
  image_url: ImageUrl


class InputAudio(Lenient):
  """A sound."""

  data: str = Field(description="The file as base64.")
  format: Literal["wav", "mp3", "flac", "ogg", "opus", "m4a", "mp4", "aac", "webm", "pcm16"] = (
    Field(description="The content counts; pcm16 is bare samples of 24 kHz."))


class AudioPart(Lenient):
  """A sound."""

  type: Literal["input_audio"]
  input_audio: InputAudio


Part = Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]


class SaidBefore(Lenient):
  """Speech that this server has answered with."""

  id: str


class Message(Lenient):
  """One turn. The model has no place for instructions: those of the system are text of the user."""

  role: Literal["system", "developer", "user", "assistant"]
  content: str | list[Part] | None = None
  audio: SaidBefore | None = Field(None, description="Of the assistant: what it said.")
  tool_calls: list[Any] | None = None
  function_call: Any | None = None


class Voice(Lenient):
  """A voice."""

  id: str


class AudioOut(Lenient):
  """How speech is sent."""

  format: Literal["wav", "mp3", "flac", "opus", "pcm16"]
  voice: str | Voice | None = Field(None, description="Ignored: the model has its own voices.")


class StreamOptions(Lenient):
  """What a stream has beside the answer."""

  include_usage: bool | None = None


class Chat(Fields):
  """POST /v1/chat/completions."""

  model: str
  messages: list[Message] = Field(min_length=1, max_length=1000)
  modalities: list[Literal["text", "audio"]] | None = Field(None, min_length=1)
  audio: AudioOut | None = None
  n: Count | None = None
  max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
    None, description="Positions; one of speech is 80 ms.")
  max_tokens: Annotated[int, Field(ge=1)] | None = None
  temperature: Temperature | None = Field(None, description="Of text and of what is said; the "
                                          "sound of the voice is drawn as the server likes.")
  top_p: Annotated[float, Field(ge=0, le=1)] | None = None
  top_k: Annotated[int, Field(ge=0)] | None = Field(None, description="Not of OpenAI's.")
  seed: Seed | None = None
  stop: str | Annotated[list[str], Field(max_length=4)] | None = None
  stream: bool | None = None
  stream_options: StreamOptions | None = None
  # Taken and ignored.
  user: Any = None
  store: Any = None
  metadata: Any = None
  service_tier: Any = None
  safety_identifier: Any = None
  prompt_cache_key: Any = None
  prompt_cache_options: Any = None
  prompt_cache_retention: Any = None
  parallel_tool_calls: Any = None
  prediction: Any = None
  reasoning_effort: Any = None
  verbosity: Any = None
  # Refused, unless they ask for nothing.
  frequency_penalty: Any = None
  function_call: Any = None
  functions: Any = None
  logit_bias: Any = None
  logprobs: Any = None
  moderation: Any = None
  presence_penalty: Any = None
  response_format: Any = None
  tool_choice: Any = None
  tools: Any = None
  top_logprobs: Any = None
  web_search_options: Any = None

  @property
  def spoken(self) -> bool:
    """Whether speech is wanted."""
    return "audio" in (self.modalities or ())

  @property
  def stops(self) -> list[str]:
    """Texts that end the answer."""
    return [self.stop] if isinstance(self.stop, str) else self.stop or []

  def check(self) -> None:
    """What no single field says.

    Raises:
      Refused: fields don't go together, or ask for what the model can't do.
    """
    unsupported(self, "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
                "moderation", "presence_penalty", "response_format", "tool_choice", "tools",
                "top_logprobs", "web_search_options")
    if not all(self.stops):
      raise Refused(400, "stop has an empty text; leave it out.", code="invalid_value",
                    param="stop")
    if self.spoken and self.audio is None:
      raise Refused(400, 'modalities ask for audio; say its format, such as audio={"voice": '
                    '"any", "format": "wav"}.', code="missing_required_parameter", param="audio")
    if self.spoken and self.stops:
      raise Refused(400, "stop has no effect on speech, which can't be cut at a word; leave it "
                    "out, or ask for text.", code="unsupported_parameter", param="stop")
    if self.spoken and self.stream and self.audio and self.audio.format not in STREAMED[1:]:
      raise Refused(400, f"A stream can't have audio.format {self.audio.format!r}; wanted "
                    "'pcm16'.", code="unsupported_value", param="audio.format")


class Images(Fields):
  """POST /v1/images/generations."""

  prompt: Words
  model: str | None = None
  n: Count | None = None
  size: str | None = Field(None, description="WIDTHxHEIGHT, or auto: the model decides.")
  response_format: Literal["b64_json", "url"] | None = Field(
    None, description="url gives a data URL: nothing is kept for later.")
  output_format: Literal["png", "jpeg", "webp"] | None = None
  guidance: Annotated[float, Field(ge=0, le=20)] | None = Field(
    None, description="Not of OpenAI's: how much more the prompt counts than in training; 1 is as "
    "in training.")
  seed: Seed | None = Field(None, description="Not of OpenAI's.")
  # Taken and ignored.
  user: Any = None
  moderation: Any = None
  output_compression: Any = None
  partial_images: Any = None
  quality: Any = None
  complexity: Any = None
  safety_identifier: Any = None
  style: Any = None
  # Refused, unless they ask for nothing.
  background: Any = None
  frame_count: Any = None
  stream: Any = None
  svg: Any = None

  def check(self) -> None:
    """As Chat.check."""
    if self.background == "opaque":
      self.background = None
    unsupported(self, "background", "frame_count", "stream", "svg")


class Speech(Fields):
  """POST /v1/audio/speech."""

  model: str
  input: Words
  voice: str | Voice | None = Field(None, description="Ignored: the model has its own voices.")
  instructions: Words | None = Field(None, description="A text before the input.")
  language: Words | None = Field(None, description="Not of OpenAI's: a text before the input, such "
                                 "as the name of a language that the model was trained with.")
  response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] = "mp3"
  speed: float | None = Field(None, description="1: the model has one speed.")
  stream_format: Literal["audio", "sse"] = "audio"
  seed: Seed | None = Field(None, description="Not of OpenAI's.")

  def check(self) -> None:
    """As Chat.check."""
    if self.speed not in (None, 1.0):
      raise Refused(400, f"speed is {self.speed:g}; the model has one speed: leave it out.",
                    code="unsupported_value", param="speed")


def unsupported(fields: pydantic.BaseModel, *names: str) -> None:
  """Refuses fields that would change the meaning of a request.

  Raises:
    Refused: one of them asks for something.
  """
  for name in names:
    if getattr(fields, name) not in _NOTHING:
      raise Refused(400, f"{name} is not supported by this server; leave it out.",
                    code="unsupported_parameter", param=name)
