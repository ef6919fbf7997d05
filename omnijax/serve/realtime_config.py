"""What a realtime session is set to: OpenAI's session object, as far as it means something here.

The fields that OpenAI's clients send and that nothing depends on here are `Ignored`: a session says
that they are unset. Fields that nobody knows are refused, so that a misspelt one isn't overlooked.
"""

import copy
from typing import Annotated, Any, Literal

import pydantic

from omnijax.serve import pcm

Modalities = list[Literal["text", "audio"]]


class Model(pydantic.BaseModel):
  """Of JSON: no text is taken for a number, and no field but those named is accepted."""

  model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _nothing(value: Any) -> None:
  """What is ignored isn't kept."""


Ignored = Annotated[Any, pydantic.AfterValidator(_nothing)]


def no_tools(value: Any) -> list[Any]:
  """Raises ValueError for tools: an answer without them would not be what was asked for."""
  if value:
    raise ValueError("the model calls no tools; leave them out")
  return []


Tools = Annotated[Any, pydantic.AfterValidator(no_tools)]


def _tokens(value: Any) -> Any:
  # A union's own message names its members.
  if value != "inf" and not (type(value) is int and value >= 1):
    raise ValueError('wanted a whole number from 1, or "inf"')
  return value


def _voice(value: Any) -> str:
  name = value.get("id") if isinstance(value, dict) else value
  if not isinstance(name, str):
    raise ValueError('wanted the name of a voice, or {"id": name}')
  return name[:100]


MaxTokens = Annotated[Any, pydantic.AfterValidator(_tokens)]
Voice = Annotated[Any, pydantic.AfterValidator(_voice)]


class Format(Model):
  type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
  rate: int | None = None

  @pydantic.model_validator(mode="after")
  def _known_rate(self) -> "Format":
    if self.rate not in (None, pcm.RATES[self.type]):
      raise ValueError(f"{self.type} at {self.rate} Hz; wanted {pcm.RATES[self.type]} Hz")
    return self


class TurnDetection(Model):
  """Who decides when it is the model's turn: itself (native), or the server, by loudness."""

  type: Literal["native", "server_vad"]
  threshold: float = pydantic.Field(default=0.5, ge=0, le=1)
  prefix_padding_ms: int = pydantic.Field(default=300, ge=0, le=5000)
  silence_duration_ms: int = pydantic.Field(default=500, ge=20, le=10000)
  # Of server_vad only: a native model does both or not as it likes.
  create_response: bool = True
  interrupt_response: bool = True
  # A model that speaks up when nobody does is not what server_vad here can ask for.
  idle_timeout_ms: None = None


class Input(Model):
  format: Format = Format()
  noise_reduction: Ignored = None
  transcription: Ignored = None
  turn_detection: TurnDetection | None = None


class Output(Model):
  format: Format = Format()
  speed: float = 1.0
  voice: Voice = "default"  # any name is fine: a model has the voice that it was taught

  @pydantic.field_validator("speed")
  @classmethod
  def _as_it_is(cls, speed: float) -> float:
    if speed != 1:
      raise ValueError(f"speed is {speed}; the model speaks at 1.0 only")
    return speed


class Audio(Model):
  input: Input = Input()
  output: Output = Output()


def one_modality(modalities: list[str]) -> list[str]:
  """Raises ValueError unless it is exactly one of text and audio."""
  if len(modalities) != 1:
    raise ValueError(f'{modalities}; wanted ["text"], or ["audio"], which has a transcript')
  return modalities


OneModality = Annotated[Modalities, pydantic.AfterValidator(one_modality)]


class Config(Model):
  """A session's settings; in an update only what was sent counts, see `merge`."""

  type: Literal["realtime"]
  model: str | None = None
  output_modalities: OneModality = ["audio"]
  instructions: str | None = None
  max_output_tokens: MaxTokens = "inf"
  audio: Audio = Audio()
  include: Ignored = None
  parallel_tool_calls: Ignored = None
  prompt: Ignored = None
  reasoning: Ignored = None
  tool_choice: Ignored = None
  tools: Tools = []
  tracing: Ignored = None
  truncation: Ignored = None


def merge(old: Config, new: Config) -> Config:
  """The old settings with those that `new` was given; turn detection is replaced as a whole."""
  return _merge(old, new)


def _merge(old: Any, new: Any) -> Any:
  merged = copy.copy(old)
  changes = {}
  for name in new.model_fields_set:
    was, now = getattr(old, name), getattr(new, name)
    deep = isinstance(now, Audio | Input | Output)
    changes[name] = _merge(was, now) if deep else now
  return merged.model_copy(update=changes)


def describe(config: Config) -> dict[str, Any]:
  """The fields of OpenAI's session object, but for its id and times."""
  out = config.model_dump()
  for side in out["audio"].values():
    if side["format"]["type"] == "audio/pcm":
      side["format"]["rate"] = pcm.RATES["audio/pcm"]
    else:
      del side["format"]["rate"]
  turns = out["audio"]["input"]["turn_detection"]
  if turns and turns["type"] == "native":
    out["audio"]["input"]["turn_detection"] = {
      k: turns[k] for k in ("type", "threshold", "silence_duration_ms")}
  return out | {"instructions": config.instructions or "", "tool_choice": "none",
                "truncation": "disabled"}
