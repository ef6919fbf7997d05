"""The bodies of answers, as OpenAI's clients read them."""

import secrets
from typing import Literal

import pydantic

from omnijax.generate.events import End


class Usage(pydantic.BaseModel):
  """Positions of a prompt, and of all answers to it."""

  prompt_tokens: int
  completion_tokens: int
  total_tokens: int

  @classmethod
  def of(cls, ends: list[End]) -> "Usage":
    """Of answers to one prompt."""
    prompt, written = max(end.prompt for end in ends), sum(end.written for end in ends)
    return cls(prompt_tokens=prompt, completion_tokens=written, total_tokens=prompt + written)


class Audio(pydantic.BaseModel):
  """Speech."""

  id: str
  data: str
  transcript: str
  expires_at: int


class Said(pydantic.BaseModel):
  """A turn of the assistant."""

  role: Literal["assistant"] = "assistant"
  content: str | None
  refusal: None = None
  audio: Audio | None = None


class Choice(pydantic.BaseModel):
  """One of several answers."""

  index: int
  message: Said
  finish_reason: Literal["stop", "length"]
  logprobs: None = None


class ChatCompletion(pydantic.BaseModel):
  """Answers to a chat."""

  id: str
  object: Literal["chat.completion"] = "chat.completion"
  created: int
  model: str
  choices: list[Choice]
  usage: Usage


class TokenUsage(pydantic.BaseModel):
  """Positions, under the names of the newer endpoints."""

  type: Literal["tokens"] = "tokens"
  input_tokens: int
  output_tokens: int
  total_tokens: int

  @classmethod
  def of(cls, ends: list[End]) -> "TokenUsage":
    """Of answers to one prompt."""
    usage = Usage.of(ends)
    return cls(input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens,
               total_tokens=usage.total_tokens)


class Image(pydantic.BaseModel):
  """A picture; `revised_prompt` is what the model wrote before it drew."""

  b64_json: str | None = None
  url: str | None = None
  revised_prompt: str | None = None


class ImageTokens(pydantic.BaseModel):
  """Positions by modality, all counted as text: what is what is not known."""

  text_tokens: int
  image_tokens: int = 0


class ImageUsage(TokenUsage):
  """Positions of a prompt and of pictures."""

  input_tokens_details: ImageTokens


class ImagesAnswer(pydantic.BaseModel):
  """Pictures."""

  created: int
  data: list[Image]
  output_format: str
  size: str
  usage: ImageUsage


class Seconds(pydantic.BaseModel):
  """Seconds of sound."""

  type: Literal["duration"] = "duration"
  seconds: float


class Transcription(pydantic.BaseModel):
  """What was heard; the last three with verbose_json only."""

  text: str
  usage: TokenUsage | Seconds
  task: Literal["transcribe"] | None = None
  language: str | None = None
  duration: float | None = None


class Model(pydantic.BaseModel):
  """The model of this server."""

  id: str
  object: Literal["model"] = "model"
  created: int
  owned_by: Literal["omnijax"] = "omnijax"


class Models(pydantic.BaseModel):
  """All models of this server: one."""

  object: Literal["list"] = "list"
  data: list[Model]


class Health(pydantic.BaseModel):
  """Whether new requests are taken, and what is being done."""

  status: Literal["ok", "stopping", "failed"]
  model: str
  active: dict[str, int]


def seed(asked: int | None) -> int:
  """A seed as the service takes it: the asked one, else any."""
  return secrets.randbelow(2**31) if asked is None else asked % 2**31
