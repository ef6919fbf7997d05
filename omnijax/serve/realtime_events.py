"""The events of OpenAI's Realtime API: those of clients are checked, those of ours are made."""

import base64
import binascii
import json
import secrets
from typing import Annotated, Any, Literal

import pydantic
import pydantic_core

from omnijax.serve import realtime_config
from omnijax.serve.realtime_config import Ignored, MaxTokens, Model, OneModality, Tools

_LONGEST_ID = 64
_MOST_METADATA = 16


class Problem(ValueError):
  """What is wrong with what a client sent; it is told, and goes on.

  Args:
    message: what was got, what was wanted.
    code: OpenAI's word for it.
    param: the field, such as "item.content[0].text".
    kind: OpenAI's type of the error.
  """

  def __init__(self, message: str, *, code: str = "invalid_value", param: str | None = None,
               kind: str = "invalid_request_error"):
    super().__init__(message)
    self.message, self.code, self.param, self.kind = message, code, param, kind

  def event(self, event_id: str | None) -> dict[str, Any]:
    """The `error` event that answers the client's event of this id."""
    return {"type": "error", "error": {
      "type": self.kind, "code": self.code, "message": self.message, "param": self.param,
      "event_id": event_id}}


def new_id(kind: str) -> str:
  """A new id, such as item_0f3a..."""
  return f"{kind}_{secrets.token_hex(10)}"


def pack(event: dict[str, Any]) -> str:
  """The JSON text of a server event, which gets its event_id."""
  return json.dumps({"event_id": new_id("event"), **event}, separators=(",", ":"))


def _base64(value: Any) -> bytes:
  if not isinstance(value, str):
    raise ValueError("wanted a string of base64")
  try:
    return base64.b64decode(value, validate=True)
  except (binascii.Error, ValueError):  # ValueError: characters beyond ASCII
    raise ValueError("it is not base64 (RFC 4648, with padding)") from None


Base64 = Annotated[bytes, pydantic.BeforeValidator(_base64)]
Id = Annotated[str, pydantic.Field(min_length=1, max_length=_LONGEST_ID)]


class Content(Model):
  """A part of an item; which fields it needs depends on its type, see conversation.py."""

  type: Literal["input_text", "input_audio", "input_image", "output_text", "output_audio"]
  text: str | None = None
  audio: Base64 | None = None
  transcript: str | None = None
  image_url: str | None = None
  detail: Ignored = None


class Item(Model):
  type: Literal["message"]  # the model calls no functions
  role: Literal["user", "assistant", "system"]
  content: list[Content] = pydantic.Field(min_length=1, max_length=64)
  id: Id | None = None
  object: Ignored = None
  status: Ignored = None


class Reference(Model):
  type: Literal["item_reference"]
  id: Id


class Event(Model):
  event_id: Annotated[str, pydantic.Field(max_length=512)] | None = None


class SessionUpdate(Event):
  type: Literal["session.update"]
  session: realtime_config.Config


class Append(Event):
  type: Literal["input_audio_buffer.append"]
  audio: Base64


class Commit(Event):
  type: Literal["input_audio_buffer.commit"]


class Clear(Event):
  type: Literal["input_audio_buffer.clear"]


class ItemCreate(Event):
  type: Literal["conversation.item.create"]
  item: Item
  previous_item_id: str | None = None


class ItemRetrieve(Event):
  type: Literal["conversation.item.retrieve"]
  item_id: str


class ItemDelete(Event):
  type: Literal["conversation.item.delete"]
  item_id: str


class ItemTruncate(Event):
  type: Literal["conversation.item.truncate"]
  item_id: str
  content_index: int = pydantic.Field(ge=0)
  audio_end_ms: int = pydantic.Field(ge=0)


class ResponseOutput(Model):
  format: realtime_config.Format | None = None
  voice: Ignored = None


class ResponseAudio(Model):
  output: ResponseOutput | None = None


def _few(metadata: dict[str, str] | None) -> dict[str, str] | None:
  long = any(len(k) > 64 or len(v) > 512 for k, v in (metadata or {}).items())
  if long or len(metadata or {}) > _MOST_METADATA:
    raise ValueError(f"wanted at most {_MOST_METADATA} pairs, keys of at most 64 characters, and "
                     "values of at most 512")
  return metadata


class Options(Model):
  """Of one response; what isn't said is as in the session."""

  conversation: Literal["auto", "none"] | None = "auto"
  input: list[Annotated[Item | Reference, pydantic.Field(discriminator="type")]] | None = None
  instructions: str | None = None
  max_output_tokens: MaxTokens = None
  metadata: Annotated[dict[str, str] | None, pydantic.AfterValidator(_few)] = None
  output_modalities: OneModality | None = None
  audio: ResponseAudio | None = None
  parallel_tool_calls: Ignored = None
  prompt: Ignored = None
  reasoning: Ignored = None
  tool_choice: Ignored = None
  tools: Tools = []


class ResponseCreate(Event):
  type: Literal["response.create"]
  response: Options | None = None


class ResponseCancel(Event):
  type: Literal["response.cancel"]
  response_id: str | None = None


_EVENTS: dict[str, type[Event]] = {
  "session.update": SessionUpdate,
  "input_audio_buffer.append": Append,
  "input_audio_buffer.commit": Commit,
  "input_audio_buffer.clear": Clear,
  "conversation.item.create": ItemCreate,
  "conversation.item.retrieve": ItemRetrieve,
  "conversation.item.delete": ItemDelete,
  "conversation.item.truncate": ItemTruncate,
  "response.create": ResponseCreate,
  "response.cancel": ResponseCancel,
}
_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
# pydantic puts the chosen kind of an item into the path to its fields.
_TAGS = {"message", "item_reference"}


def parse(text: str) -> Event | tuple[Problem, str | None]:
  """A client's event; or what is wrong with it, and its event_id, if it has a usable one."""
  try:
    value = pydantic_core.from_json(text, allow_inf_nan=False)
  except ValueError as error:
    return Problem(f"the message is not JSON: {error}.", code="invalid_json"), None
  if not isinstance(value, dict):
    return Problem("the message is no JSON object; wanted an event, such as "
                   '{"type": "response.create"}.', code="invalid_json"), None
  found = value.get("event_id")
  event_id = found if isinstance(found, str) and len(found) <= 512 else None
  kind = value.get("type")
  if not isinstance(kind, str) or kind not in _EVENTS:
    got = repr(kind)[:100] if "type" in value else "missing"
    return Problem(f"the event's type is {got}; wanted one of {', '.join(_EVENTS)}.",
                   code="invalid_value" if "type" in value else "missing_required_parameter",
                   param="type"), event_id
  try:
    return _EVENTS[kind].model_validate(value)
  except pydantic.ValidationError as error:
    return _problem(error), event_id


def _problem(error: pydantic.ValidationError) -> Problem:
  """The first thing that is wrong."""
  first = error.errors(include_url=False, include_input=False, include_context=False)[0]
  where = ""
  for at in first["loc"]:
    if isinstance(at, int):
      where += f"[{at}]"
    elif at not in _TAGS:
      where += f".{at[:64]}" if where else at[:64]
  kind = first["type"]
  code = _CODES.get(kind, "invalid_type" if kind.endswith("_type") else "invalid_value")
  said = first["msg"].removeprefix("Value error, ")
  return Problem(f"{where}: {said[:1].lower()}{said[1:]}.", code=code, param=where or None)
