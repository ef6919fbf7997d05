"""Dataclasses as plain values and back: dotted names, fingerprints, and what can't be read."""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any


def flat(tree: Any, path: str = "") -> dict[str, Any]:
  """Dicts within dicts, or dataclasses within dataclasses, as one dict by dotted path."""
  if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
    tree = dataclasses.asdict(tree)
  if not isinstance(tree, dict):
    return {path: tree}
  return {k: v for key, value in tree.items()
          for k, v in flat(value, f"{path}.{key}" if path else str(key)).items()}


def fingerprint(value: Any) -> str:
  """16 hex digits that change when anything in a dataclass or JSON value changes."""
  plain = value
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    plain = dataclasses.asdict(value)
  text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def build(cls: Any, values: Mapping[str, Any], path: str) -> Any:
  """A dataclass of the values that `dataclasses.asdict` made of it, perhaps by way of JSON.

  Raises:
    ValueError: an unknown or missing field, named with its path.
  """
  fields = {f.name: f for f in dataclasses.fields(cls)}
  unknown = sorted(set(values) - set(fields))
  if unknown:
    raise ValueError(f"{path} has the unknown field(s) {unknown}; known are {sorted(fields)}.")
  hints = typing.get_type_hints(cls)
  out = {}
  for name, value in values.items():
    kind = hints[name]
    if dataclasses.is_dataclass(kind):
      out[name] = build(kind, value, f"{path}.{name}")
    elif typing.get_origin(kind) is tuple or isinstance(kind, types.GenericAlias):
      out[name] = tuple(value)
    else:
      out[name] = value
  try:
    return cls(**out)
  except TypeError as error:
    raise ValueError(f"{path} can't be read: {error}.") from error
