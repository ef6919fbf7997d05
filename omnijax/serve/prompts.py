"""Messages of a chat as parts of a prompt."""

from typing import Any

from omnijax.serve import uploads
from omnijax.serve.context import Context
from omnijax.serve.errors import Refused
from omnijax.serve.schemas import AudioPart, ImagePart, Message, TextPart

_MOST_MEDIA = 64


def parts(messages: list[Message], context: Context) -> list[dict[str, Any]]:
  """Parts as Service.write takes them; decodes media, so it is for worker threads.

  Instructions of the system or the developer become text of the user where they stand: no other
  text was in training.

  Raises:
    Refused: something can't be read, is not known, or is more than the server takes.
  """
  found: list[dict[str, Any]] = []
  media = uploads.Uploads(context)
  lists = [m.content for m in messages if isinstance(m.content, list)]
  if sum(not isinstance(part, TextPart) for parts in lists for part in parts) > _MOST_MEDIA:
    raise Refused(400, f"There are more than {_MOST_MEDIA} pictures and sounds in the messages; "
                  "leave older ones out.", code="invalid_value", param="messages")
  for i, message in enumerate(messages):
    where = f"messages[{i}]"
    role = "assistant" if message.role == "assistant" else "user"
    if message.tool_calls or message.function_call:
      raise Refused(400, f"{where} calls a tool; the model has none: leave such messages out.",
                    code="unsupported_parameter", param=f"{where}.tool_calls")
    if message.audio is not None:
      found.append({"role": role, **_said_before(message, where, context)})
    content = message.content or []
    if isinstance(content, str):
      content = [TextPart(type="text", text=content)]
    found += [{"role": role, **part} for j, one in enumerate(content)
              if (part := _part(one, f"{where}.content[{j}]", media))]
  if not any(part["role"] == "user" for part in found):
    raise Refused(400, "The messages have nothing of the user in them; give at least one text, "
                  "picture or sound.", code="invalid_value", param="messages")
  return found


def _part(part: TextPart | ImagePart | AudioPart, where: str, media: uploads.Uploads
          ) -> dict[str, Any]:
  """A part without its role; nothing where there is no text."""
  if isinstance(part, TextPart):
    return {"text": part.text} if part.text else {}
  if isinstance(part, ImagePart):
    param = f"{where}.image_url.url"
    return {"image": media.picture(uploads.data_url(part.image_url.url, param), param)}
  param = f"{where}.input_audio.data"
  content = uploads.base64(part.input_audio.data, param)
  return {"audio": media.sound(content, part.input_audio.format, param)}


def _said_before(message: Message, where: str, context: Context) -> dict[str, Any]:
  assert message.audio is not None
  param = f"{where}.audio.id"
  if message.role != "assistant":
    raise Refused(400, f"{param} belongs to a message of the role {message.role}; only the "
                  "assistant has said something before. Send sounds as input_audio.",
                  code="invalid_value", param=param)
  said = context.memory.recall(message.audio.id)
  if said is None:
    raise Refused(400, f"The speech {message.audio.id[:80]!r} is not known, or not any more; send "
                  "its transcript as content instead.", code="audio_not_found", param=param)
  wave_L, words = said
  return {"audio": wave_L, **({"transcript": words} if words else {})}
