"""The items of a realtime conversation, and the prompt that they make.

H, W pixels  C channels  L samples
"""

import base64
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from omnijax.serve import realtime_events as events_lib
from omnijax.serve.errors import Refused
from omnijax.serve.realtime_events import Problem

_KINDS = {"user": ("input_text", "input_audio", "input_image"), "assistant": ("output_text",),
          "system": ("input_text",)}
_FIELD = {"input_text": "text", "output_text": "text", "input_audio": "audio",
          "input_image": "image_url"}


@dataclasses.dataclass(eq=False)
class Content:
  """A part of an item. What a native model heard and said isn't kept: it has no wave_L."""

  kind: str
  text: str | None = None
  transcript: str | None = None
  wave_L: np.ndarray | None = None  # float32, at the service's rate
  pixels_HWC: np.ndarray | None = None
  url: str | None = None

  @property
  def bytes(self) -> int:
    arrays = sum(a.nbytes for a in (self.wave_L, self.pixels_HWC) if a is not None)
    return arrays + sum(len(s) for s in (self.text, self.transcript, self.url) if s)


@dataclasses.dataclass(eq=False)
class Item:
  """A message of one side."""

  id: str
  role: str
  content: list[Content]
  status: str = "completed"

  def json(self, sound: Callable[[np.ndarray], bytes] | None = None) -> dict[str, Any]:
    """OpenAI's item; with sounds and pictures only if it is said how sounds are encoded."""
    return {"id": self.id, "object": "realtime.item", "type": "message", "status": self.status,
            "role": self.role, "content": [_json(c, sound) for c in self.content]}


def _json(content: Content, sound: Callable[[np.ndarray], bytes] | None) -> dict[str, Any]:
  out: dict[str, Any] = {"type": content.kind}
  if content.kind.endswith("_text"):
    return out | {"text": content.text or ""}
  if content.kind == "input_image":
    return out | {"detail": "auto"} | ({"image_url": content.url} if sound else {})
  if sound and content.wave_L is not None:
    out["audio"] = base64.b64encode(sound(content.wave_L)).decode()
  return out | {"transcript": content.transcript}


class Conversation:
  """Items in order.

  Args:
    most_items: of them; the next is refused.
    most_bytes: of their sounds, pictures and texts together.
  """

  def __init__(self, most_items: int, most_bytes: int):
    self.id = events_lib.new_id("conv")
    self.items: list[Item] = []
    self._most_items, self._most_bytes = most_items, most_bytes

  @property
  def last_id(self) -> str | None:
    return self.items[-1].id if self.items else None

  def has(self, item_id: str | None) -> bool:
    return any(item.id == item_id for item in self.items)

  def check(self, item: Item | None = None, after: str | None = None) -> int:
    """Where one more item would go: at the end, or after another's id, "root" being the beginning.

    Raises:
      Problem: the id is taken, there is none to come after, or the conversation is full.
    """
    if item and self.has(item.id):
      raise Problem(f"there is an item {item.id!r} already; give another id, or none.",
                    param="item.id")
    size = sum(c.bytes for i in (*self.items, *([item] if item else [])) for c in i.content)
    if len(self.items) >= self._most_items or size > self._most_bytes:
      raise Problem(
        f"the conversation has {len(self.items)} items and would have {size} bytes; the most are "
        f"{self._most_items} items and {self._most_bytes} bytes: delete some.",
        code="conversation_full")
    if after is None:
      return len(self.items)
    return 0 if after == "root" else self._at(after, "previous_item_id") + 1

  def add(self, item: Item, after: str | None = None) -> str | None:
    """Puts an item where `check` says; the id of the one before it, if there is one."""
    self.items.insert(self.check(item, after), item)
    return self.before(item)

  def append(self, item: Item) -> str | None:
    """Puts an item at the end, unchecked: the room for it was seen to before it was made."""
    self.items.append(item)
    return self.before(item)

  def before(self, item: Item) -> str | None:
    """The id of the item before one that was added, which may have been forgotten since."""
    at = self.items.index(item) if item in self.items else 0
    return self.items[at - 1].id if at else None

  def forget(self) -> None:
    """Makes room for one more item, for talks without an end: the oldest one goes."""
    del self.items[: max(len(self.items) - self._most_items + 1, 0)]

  def find(self, item_id: str, param: str = "item_id") -> Item:
    """The item of an id, which must be there."""
    return self.items[self._at(item_id, param)]

  def remove(self, item_id: str) -> None:
    del self.items[self._at(item_id, "item_id")]

  def _at(self, item_id: str, param: str) -> int:
    for i, item in enumerate(self.items):
      if item.id == item_id:
        return i
    raise Problem(f"there is no item {item_id[:100]!r} in the conversation.", param=param,
                  code="item_not_found")


def read(item: events_lib.Item, *, param: str, hear: Callable[[bytes], np.ndarray],
         see: Callable[[str, str], np.ndarray]) -> Item:
  """An item that a client sent, decoded; slow if it has a sound or a picture.

  Args:
    item: of the event.
    param: the field it is in.
    hear: makes samples, float32 [L] at the service's rate, of the sounds in it.
    see: makes pixels, uint8 [H, W, C], of the data: URLs in it; gets the field's name, too.

  Raises:
    Problem: a content doesn't go with the role, lacks its field, or can't be decoded.
  """
  content = []
  for i, part in enumerate(item.content):
    where = f"{param}.content[{i}]"
    if part.type not in _KINDS[item.role]:
      raise Problem(f"{where}.type is {part.type} in an item of the role {item.role}; wanted "
                    f"{' or '.join(_KINDS[item.role])}.", param=f"{where}.type")
    field = _FIELD[part.type]
    value = getattr(part, field)
    if not value:
      raise Problem(f"{where}.{field} is missing or empty, which {part.type} needs.",
                    param=f"{where}.{field}", code="missing_required_parameter")
    try:
      content.append(_read(part, value, hear, see, f"{where}.{field}"))
    except Refused as refused:
      raise Problem(f"{where}.{field}: {refused.detail}", param=f"{where}.{field}",
                    code=refused.code or "invalid_value") from refused
    except ValueError as error:
      raise Problem(f"{where}.{field}: {error}", param=f"{where}.{field}") from error
  return Item(item.id or events_lib.new_id("item"), item.role, content)


def _read(part: events_lib.Content, value: Any, hear: Callable[[bytes], np.ndarray],
          see: Callable[[str, str], np.ndarray], where: str) -> Content:
  if part.type == "input_audio":
    return Content(part.type, wave_L=hear(value), transcript=part.transcript)
  if part.type == "input_image":
    return Content(part.type, pixels_HWC=see(value, where), url=value)
  return Content(part.type, text=value)


def prompt(items: Sequence[Item], instructions: str | None = None) -> list[dict[str, Any]]:
  """The parts that Service.write takes: what was said, in order, and is still known.

  The model has no role for a system: its texts, and instructions, come as the user's. Of speech
  whose sound isn't kept the transcript stands for it, if it has one. Items that are being said
  are left out.
  """
  parts: list[dict[str, Any]] = [{"text": instructions, "role": "user"}] if instructions else []
  for item in items:
    if item.status != "in_progress":
      role = "assistant" if item.role == "assistant" else "user"
      parts += [part | {"role": role} for c in item.content if (part := _part(c))]
  return parts


def _part(content: Content) -> dict[str, Any] | None:
  if content.pixels_HWC is not None:
    return {"image": content.pixels_HWC}
  if content.wave_L is not None and len(content.wave_L):
    words = {"transcript": content.transcript} if content.transcript else {}
    return {"audio": content.wave_L, **words}
  words = content.text or (content.transcript if content.wave_L is None else None)
  return {"text": words} if words else None
