"""The prompts of Asterisk: five languages, a professional voice each, and what they say.

A package has recordings `VOICE/KEY.g722`, another their transcripts, lines `KEY: text`, where `;`
starts a comment and brackets hold what is not said. Each recording with a transcript is a document;
its key is its group, so that a prompt is held out in all languages at once.
"""

from __future__ import annotations

import codecs
import collections
import dataclasses
import gzip
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator

LANGUAGES = ("en", "es", "fr", "it", "ru")
TEXTS = tuple(f"asterisk-core-sounds-{language}" for language in LANGUAGES)
PACKAGES = (*TEXTS, *(f"{name}-g722" for name in TEXTS))
SOUNDS = "usr/share/asterisk/sounds"
_DOCS = "usr/share/doc/asterisk-core-sounds-{0}/core-sounds-{0}.txt.gz"
_NOTE = re.compile(r"\[[^]]*\]|\([^)]*\)|<[^>]*>")
# A letter with an accent that became a question mark: Italian "pu? essere", "La linea ? libera".
_DAMAGED = re.compile(r"\w\?\s+(\w)|\w\?(\w)|\s\?\s+(\w)")
NO_LINE, NO_SPEECH, DAMAGED = "no transcript", "no speech", "damaged transcript"


@dataclasses.dataclass(frozen=True)
class Recording:
  """A recording; `text` is what it says, or "" and then `reason` is why that isn't known."""

  language: str
  key: str
  path: str  # relative to the root
  text: str
  reason: str = ""


def transcripts(content: bytes) -> dict[str, str]:
  """Texts by key, in lower case as some have it; the first counts where a key comes twice."""
  found: dict[str, str] = {}
  for line in content.decode("utf-8-sig").splitlines():
    key, colon, text = line.partition(":")
    if colon and not key.startswith(";"):
      found.setdefault(key.strip().lower(), text.strip())
  return found


def said(key: str, line: str) -> str:
  """What is said according to a line: without notes, quotation marks around it, and dots before it.
  """
  line = line.removeprefix(f"{key}:")
  return " ".join(_NOTE.sub(" ", line).split()).strip(" \"\u201c\u201d").lstrip(" .\u2026")


def read(root: pathlib.Path) -> list[Recording]:
  """All recordings of the unpacked packages, by language and key.

  Raises:
    ValueError: recordings or transcripts of a language are missing.
  """
  lines = {}
  for language in LANGUAGES:
    path = root / _DOCS.format(language)
    if not path.is_file():
      raise ValueError(f"there are no transcripts {path}; wanted the packages "
                       f"{', '.join(PACKAGES)}, unpacked.")
    lines[language] = transcripts(gzip.decompress(path.read_bytes()))
  # In some languages only are they in brackets.
  mute = {key for of in lines.values() for key, line in of.items() if line and not said(key, line)}
  found = []
  for language in LANGUAGES:
    voices = sorted((root / SOUNDS).glob(f"{language}_*"))
    mine = [(p.relative_to(voice), p) for voice in voices for p in sorted(voice.rglob("*.g722"))]
    if not mine:
      raise ValueError(f"there are no recordings {root / SOUNDS}/{language}_*/**.g722; wanted the "
                       f"package asterisk-core-sounds-{language}-g722, unpacked.")
    for name, path in mine:
      key = name.with_suffix("").as_posix().lower()
      found.append(_recording(language, key, path.relative_to(root).as_posix(),
                              lines[language].get(key, ""), key in mute))
  return found


def _recording(language: str, key: str, path: str, line: str, mute: bool) -> Recording:
  if not line:
    return Recording(language, key, path, "", NO_LINE)
  if mute:
    return Recording(language, key, path, "", NO_SPEECH)
  text = said(key, line)
  if any("".join(filter(None, after.groups())).islower() for after in _DAMAGED.finditer(text)):
    return Recording(language, key, path, "", DAMAGED)
  return Recording(language, key, path, text)


def documents(recordings: Iterable[Recording]) -> Iterator[dict]:
  """Each recording whose words are known."""
  for one in recordings:
    if one.text:
      yield {"id": f"{one.language}/{one.key}", "group": one.key,
             "parts": [{"audio": f"root/{one.path}", "transcript": one.text}],
             "about": {"kind": "voice", "language": one.language}}


def in_package(members: Iterable[tuple[str, Callable[[], bytes]]]) -> dict[str, int]:
  """Recordings of the packages, and those with a line, by language; found without `read`."""
  keys, told = collections.defaultdict(list), {}
  for path, content in members:
    if path.startswith(f"{SOUNDS}/") and path.endswith(".g722"):
      voice, _, key = path.removeprefix(f"{SOUNDS}/").partition("/")
      keys[voice.split("_")[0]].append(key.removesuffix(".g722").lower().encode())
    elif path.endswith(".txt.gz"):
      language = path.removesuffix(".txt.gz")[-2:]
      text = gzip.decompress(content()).removeprefix(codecs.BOM_UTF8).lower()
      told[language] = set(re.findall(rb"(?m)^([^;:\n]+):[ \t]*\S", text))
  out = {}
  for language in LANGUAGES:
    out[f"{language} recordings"] = len(keys[language])
    out[f"{language} recordings with a line"] = sum(k in told[language] for k in keys[language])
  return out


def in_manifest(recordings: Iterable[Recording], lines: Iterable[dict]) -> dict[str, int]:
  """The same counts: of the documents, and of what was left out with a reason."""
  out = {}
  for language in LANGUAGES:
    made = sum(line["about"]["language"] == language for line in lines)
    why = collections.Counter(r.reason for r in recordings if r.language == language and r.reason)
    out[f"{language} recordings"] = made + why.total()
    out[f"{language} recordings with a line"] = made + why.total() - why[NO_LINE]
  return out


def texts(recordings: Iterable[Recording]) -> Iterator[tuple[str, str]]:
  """The group and the words of every recording."""
  for one in recordings:
    if one.text:
      yield one.key, one.text
