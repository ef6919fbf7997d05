"""One row of any source, a dict as JSON has it, to the parts of a document.

Known are, in this order: `parts` (omnijax's own), `messages` (as in OpenAI's API), `conversations`
(ShareGPT and LLaVA), `texts` with `images` (interleaved, None where it is the other's turn), and
else one picture or recording, or several, and a text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from omnijax import vocab as vocab_lib
from omnijax.data import documents
from omnijax.data.sources import store
from omnijax.data.sources.item import Bad, Item, RawPart

_KINDS = {"text": vocab_lib.TEXT, "image": vocab_lib.IMAGE, "audio": vocab_lib.AUDIO}
# What belongs to a part of audio beside its file.
_OF_AUDIO = ("transcript", "words", "listen", "channel")
_ROLES = {**documents.ROLES, "human": documents.USER, "gpt": documents.ASSISTANT,
          "bot": documents.ASSISTANT, "system": documents.NONE}
IMAGES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm")
SOUNDS = ("wav", "flac", "ogg", "oga", "opus", "mp3", "aiff", "aif", "au", "m4a", "mp4", "aac",
          "webm", "g722")
# Columns of flat rows, the likeliest first.
_TEXT = ("text", "caption", "transcript", "transcription", "sentence", "raw_text", "txt")
_IMAGE = ("image", "img", "picture", *IMAGES)
_AUDIO = ("audio", "audio_filepath", "sound", *SOUNDS)


def item(number: int, where: str, row: Any) -> Item:
  """The document of a row.

  Args:
    number: of the row in its source, from 1.
    where: the document's id, unless the row has one.
    row: what was read, or a `Bad`.
  """
  name = where
  try:
    if isinstance(row, Bad):
      raise row
    if not isinstance(row, Mapping):
      raise Bad("bad document", f"a {type(row).__name__}; wanted an object with \"parts\"")
    given, group = row.get("id", name), row.get("group", "")
    if isinstance(given, int) and not isinstance(given, bool) and "parts" not in row:
      given = str(given)  # as tables have them
    for key, value in (("id", given), ("group", group)):
      if not isinstance(value, str):
        raise Bad("bad document", f"{key} is {value!r}; wanted a string")
    name = given
    return Item(number, name, parts(row), group)
  except Bad as bad:
    return Item(number, name, bad)


def parts(row: Mapping[str, Any]) -> tuple[RawPart, ...]:
  """The parts of a row.

  Raises:
    Bad: what is wrong with it.
  """
  if "parts" in row:
    given = row["parts"]
    if not isinstance(given, list):
      raise Bad("bad document", f"\"parts\" is {given!r}; wanted a list")
    found = [part(p, f"part {i}") for i, p in enumerate(given)]
  elif isinstance(row.get("messages"), list):
    found = _messages(row["messages"])
  elif isinstance(row.get("conversations"), list):
    found = _conversations(row)
  elif isinstance(row.get("texts"), list) and isinstance(row.get("images"), list):
    found = _interleaved(row["texts"], row["images"])
  else:
    found = _flat(row)
  if not found:
    raise Bad("empty document", "no parts")
  return tuple(found)


def part(given: Any, where: str) -> RawPart:
  """One entry of `parts`."""
  if not isinstance(given, dict):
    raise Bad("bad document", f"{where} is {given!r}; wanted an object")
  kinds = [k for k in _KINDS if k in given]
  unknown = sorted(set(given) - set(_KINDS) - {"role", *_OF_AUDIO})
  if unknown or len(kinds) != 1:
    raise Bad("unknown modality" if unknown else "bad document",
              f"{where} has the keys {sorted(given)}; wanted one of {sorted(_KINDS)} and perhaps "
              "\"role\" or \"transcript\"")
  (kind,) = kinds
  role = given.get("role")
  if role is not None and (not isinstance(role, str) or role not in documents.ROLES):
    raise Bad("bad document", f"{where} has the role {role!r}; wanted one of "
              f"{sorted(documents.ROLES)}")
  sound = [k for k in _OF_AUDIO if k in given]
  if sound and kind != "audio":
    raise Bad("bad document", f"{where} has a {sound[0]} but is {kind}; only audio has one")
  return _made(kind, given[kind], documents.ROLES[role] if role else documents.NONE, where,
               transcript=given.get("transcript"), words=given.get("words"),
               listen=given.get("listen"), channel=given.get("channel"))


def _made(kind: str, value: Any, role: int, where: str, *, transcript: Any = None,
          words: Any = None, listen: Any = None, channel: Any = None) -> RawPart:
  """A part whose values are checked."""
  for name, text in ((kind, value), ("transcript", transcript), ("listen", listen)):
    if text is None and name != kind:
      continue
    if not isinstance(text, str):
      raise Bad("bad document", f"{where}: {name} is {text!r}; wanted a string")
    if any("\ud800" <= c <= "\udfff" for c in text):
      raise Bad("invalid UTF-8", f"{where}: {name} has half of a surrogate pair")
    if "\0" in text and name in ("image", "audio", "listen"):
      raise Bad("bad document", f"{where}: the path {text!r} has a null character")
  if not value:
    raise Bad("empty document", f"{where}: {kind} is empty")
  if channel is not None:
    if not isinstance(channel, int) or isinstance(channel, bool) or channel < 0:
      raise Bad("bad document", f"{where}: channel is {channel!r}; wanted 0 or more")
    value = f"{value}#{channel}"
  if listen is not None and role == documents.USER:
    raise Bad("bad document", f"{where} is of the user and has a \"listen\"; only what the model "
              "says has another side")
  timed = _timed(words, where) if words is not None else None
  if timed is not None and transcript is None:
    transcript = " ".join(word for _, word in timed)
  return RawPart(_KINDS[kind], role, value, transcript, timed, listen)


def _timed(words: Any, where: str) -> tuple[tuple[float, str], ...]:
  """Words and the seconds at which they begin: [[0.32, "hello"], ...], or dicts as recognisers
  write them ({"start": 0.32, "word": "hello"})."""
  out = []
  if not isinstance(words, Sequence) or isinstance(words, str):
    raise Bad("bad document", f"{where}: words is {words!r}; wanted [[seconds, word], ...]")
  for entry in words:
    if isinstance(entry, dict):
      entry = (entry.get("start"), entry.get("word", entry.get("text")))
    try:
      start, word = entry
      good = isinstance(word, str) and 0 <= float(start) < float("inf")
    except (TypeError, ValueError):
      good = False
    if not good:
      raise Bad("bad document", f"{where}: words has {entry!r}; wanted [seconds, word]")
    out.append((float(start), word.strip()))
  if any(b[0] < a[0] for a, b in zip(out, out[1:], strict=False)):
    raise Bad("bad document", f"{where}: words do not follow each other in time")
  return tuple(out)


def _messages(messages: list[Any]) -> list[RawPart]:
  """Turns {"role", "content"}; content is a text, or a list of parts as OpenAI's API has them."""
  out = []
  for i, message in enumerate(messages):
    where = f"message {i}"
    if not isinstance(message, dict):
      raise Bad("bad document", f"{where} is {message!r}; wanted an object")
    role, content = _role(message.get("role"), where), message.get("content")
    for entry in [content] if isinstance(content, str) else content or []:
      if isinstance(entry, str):
        entry = {"type": "text", "text": entry}
      kind = str(entry.get("type", "")) if isinstance(entry, dict) else ""
      kind = kind.removeprefix("input_").removeprefix("output_").removesuffix("_url")
      if kind not in _KINDS:
        raise Bad("unknown modality", f"{where} has {entry!r}; wanted a \"type\" of "
                  f"{sorted(_KINDS)}")
      key = next(k for k in (f"{kind}_url", f"input_{kind}", kind, "url", "path") if k in entry
                 or k == "path")
      value = entry.get(key)
      if isinstance(value, dict):
        value = value.get("url", value.get("path"))
      out.append(_made(kind, value, role, where, **(
        {k: entry.get(k) for k in _OF_AUDIO} if kind == "audio" else {})))
  return out


def _conversations(row: Mapping[str, Any]) -> list[RawPart]:
  """Turns {"from", "value"}; `<image>` and `<audio>` in them stand for the row's files, in turn."""
  waiting = {kind: list(_files(row, names)) for kind, names in (("image", _IMAGE),
                                                                ("audio", _AUDIO))}
  out = []
  for i, turn in enumerate(row["conversations"]):
    where = f"turn {i}"
    if not isinstance(turn, dict):
      raise Bad("bad document", f"{where} is {turn!r}; wanted an object")
    role, rest = _role(turn.get("from", turn.get("role")), where), turn.get("value")
    if not isinstance(rest, str):
      raise Bad("bad document", f"{where}: value is {rest!r}; wanted a string")
    while rest:
      at, kind = min((rest.find(f"<{k}>"), k) for k in waiting if f"<{k}>" in rest) if any(
        f"<{k}>" in rest for k in waiting) else (len(rest), "")
      if text := rest[:at].strip("\n" if kind else ""):
        out.append(_made("text", text, role, where))
      if kind:
        if not waiting[kind]:
          raise Bad("bad document", f"{where} has more <{kind}> than the row has files of it")
        out.append(_made(kind, waiting[kind].pop(0), role, where))
      rest = rest[at + len(kind) + 2 :].lstrip("\n") if kind else ""
  left = {k: len(v) for k, v in waiting.items() if v}
  if left:
    raise Bad("bad document", f"files that no turn mentions: {left}; wanted <image> or <audio> "
              "in a turn for each")
  return out


def _role(role: Any, where: str) -> int:
  if not isinstance(role, str) or role not in _ROLES:
    raise Bad("bad document", f"{where} has the role {role!r}; wanted one of {sorted(_ROLES)}")
  return _ROLES[role]


def _interleaved(texts: list[Any], images: list[Any]) -> list[RawPart]:
  if len(texts) != len(images):
    raise Bad("bad document", f"{len(texts)} texts and {len(images)} images; wanted as many, None "
              "where it is the other's turn")
  pairs = [[("text", t), ("image", i)] for t, i in zip(texts, images, strict=True)]
  return [_made(kind, value, documents.NONE, f"place {n}")
          for n, pair in enumerate(pairs) for kind, value in pair if value]


def _flat(row: Mapping[str, Any]) -> list[RawPart]:
  """Pictures, then a recording with the text as its transcript, or the text."""
  images, sounds = list(_files(row, _IMAGE)), list(_files(row, _AUDIO))
  if isinstance(name := row.get("file_name"), str):  # Hugging Face's metadata.jsonl
    (images if store.extension(name) in IMAGES else sounds).append(name)
  text = next((row[k] for k in _TEXT if row.get(k) is not None), None)
  if text is None and not images and not sounds:
    raise Bad("bad document", f"the columns {sorted(row)[:20]}; wanted \"parts\", \"messages\", or "
              "text, image or audio")
  out = [_made("image", name, documents.NONE, "the picture") for name in images]
  for i, name in enumerate(sounds):
    only = {k: row.get(k) for k in ("words", "listen", "channel")} if not i else {}
    out.append(_made("audio", name, documents.NONE, "the recording",
                     transcript=text if not i else None, **only))
  if text is not None and not sounds:
    out.append(_made("text", text, documents.NONE, "the text"))
  return out


def _files(row: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
  """Values of the first of some columns that is there, or of its plural."""
  for name in names:
    for key in (name, name + "s"):
      value = row.get(key)
      if value is not None:
        return list(value) if isinstance(value, list | tuple) else [value]
  return []
