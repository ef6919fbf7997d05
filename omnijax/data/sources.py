"""The lines of a manifest to raw documents; what is wrong with one is a `Bad`."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from omnijax import vocab as vocab_lib
from omnijax.data import documents

_KINDS = {"text": vocab_lib.TEXT, "image": vocab_lib.IMAGE, "audio": vocab_lib.AUDIO}


class Bad(Exception):
  """An item that can't be used: a short kind to count by, and what exactly is wrong."""

  def __init__(self, kind: str, detail: str):
    super().__init__(kind, detail)
    self.kind, self.detail = kind, detail

  def __str__(self) -> str:
    return f"{self.kind}: {self.detail}"


@dataclasses.dataclass(frozen=True)
class RawPart:
  """A part as the manifest has it; `value` is a text, or a path as written."""

  kind: int
  role: int
  value: str
  transcript: str | None = None


@dataclasses.dataclass(frozen=True)
class Item:
  """One line of a manifest: its number from 1, its id, and its parts or what is wrong."""

  line: int
  id: str
  parts: tuple[RawPart, ...] | Bad


def manifest_hash(path: pathlib.Path) -> str:
  """16 hex digits of the bytes of a manifest."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_manifest(path: pathlib.Path) -> Iterator[Item]:
  """The items of a JSONL manifest, blank lines left out; never fails on a line."""
  with path.open("rb") as file:
    for number, line in enumerate(file, 1):
      if not line.strip():
        continue
      name = f"line {number}"
      try:
        value = _parse(line)
        given = value.get("id", name)
        if not isinstance(given, str):
          raise Bad("bad document", f"id is {given!r}; wanted a string")
        name = given
        yield Item(number, name, _parts(value))
      except Bad as bad:
        yield Item(number, name, bad)


def _parse(line: bytes) -> dict[str, Any]:
  try:
    value = json.loads(line.decode("utf-8"))
  except UnicodeDecodeError as error:
    raise Bad("invalid UTF-8", f"byte {error.object[error.start]:#04x} at {error.start}") from None
  except (ValueError, RecursionError) as error:
    raise Bad("invalid JSON", str(error)) from None
  if not isinstance(value, dict):
    raise Bad("bad document", f"a {type(value).__name__}; wanted an object with \"parts\"")
  return value


def _parts(value: dict[str, Any]) -> tuple[RawPart, ...]:
  parts = value.get("parts")
  if not isinstance(parts, list):
    raise Bad("bad document", f"\"parts\" is {parts!r}; wanted a list")
  if not parts:
    raise Bad("empty document", "no parts")
  return tuple(_part(part, i) for i, part in enumerate(parts))


def _part(part: Any, i: int) -> RawPart:
  where = f"part {i}"
  if not isinstance(part, dict):
    raise Bad("bad document", f"{where} is {part!r}; wanted an object")
  kinds = [k for k in _KINDS if k in part]
  unknown = sorted(set(part) - set(_KINDS) - {"role", "transcript"})
  if unknown or len(kinds) != 1:
    raise Bad("unknown modality" if unknown else "bad document",
              f"{where} has the keys {sorted(part)}; wanted one of {sorted(_KINDS)} and perhaps "
              "\"role\" or \"transcript\"")
  (kind,) = kinds
  role = part.get("role")
  if role is not None and (not isinstance(role, str) or role not in documents.ROLES):
    raise Bad("bad document", f"{where} has the role {role!r}; wanted one of "
              f"{sorted(documents.ROLES)}")
  if "transcript" in part and kind != "audio":
    raise Bad("bad document", f"{where} has a transcript but is {kind}; only audio has one")
  value, transcript = part[kind], part.get("transcript")
  for name, text in ((kind, value), ("transcript", transcript)):
    if name == "transcript" and text is None:
      continue
    if not isinstance(text, str):
      raise Bad("bad document", f"{where}: {name} is {text!r}; wanted a string")
    if any("\ud800" <= c <= "\udfff" for c in text):
      raise Bad("invalid UTF-8", f"{where}: {name} has half of a surrogate pair")
    if "\0" in text and name in ("image", "audio"):
      raise Bad("bad document", f"{where}: the path {text!r} has a null character")
  if not value:
    raise Bad("empty document", f"{where}: {kind} is empty")
  return RawPart(_KINDS[kind], documents.ROLES[role] if role else documents.NONE, value, transcript)
