"""The stamps of Tux Paint: pictures, captions in many languages, voices and noises.

A stamp is some files of one name: `crow.png` or `crow.svg`; `crow.txt`, an English caption and
then lines `fr.utf8=Un corbeau.`; `crow_desc.ogg` and `crow_desc_fr.ogg`, which say the caption;
`crow.ogg`, what a crow sounds like. Documents, each with the stamp's path as its group:

  captions   [picture, "fr: Un corbeau."]        caption or drawing, by the run's odds of tasks
  speech     [voice that says "Un corbeau."]     transcribed or spoken, likewise
             ["fr:", picture] -> [voice]         [voice] -> [picture]
             [picture] -> [noise]                [noise] -> [picture]
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator

PACKAGES = ("tuxpaint-stamps-default",)
FOLDER = "usr/share/tuxpaint/stamps"
_CAPTION = re.compile(r"([A-Za-z_@]+)\.utf8=(.*)")
_LANGUAGE = r"[a-z]{2,3}(?:_[A-Za-z]{2})?(?:@[a-z]+)?"
_VOICE = re.compile(rf"(.+)_desc(?:_({_LANGUAGE}))?(?:\.(?:ogg|wav))+")
_NOISE = re.compile(r"(.+)\.(?:ogg|wav)")
# Where sounds without "_desc" say the name of a letter or digit, some with a language behind it.
_SPOKEN = "symbols/"


@dataclasses.dataclass
class Stamp:
  """Paths are relative to the folder of stamps; languages are as the stamps spell them."""

  name: str
  picture: str = ""  # PNG only
  vector: str = ""
  captions: dict[str, str] = dataclasses.field(default_factory=dict)
  voices: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # language, path
  noises: list[str] = dataclasses.field(default_factory=list)


def captions(content: bytes) -> dict[str, str]:
  """The captions of a text file by language; the first line is English."""
  first, *rest = content.decode("utf-8-sig").splitlines() or [""]
  found = {"en": first.strip()}
  for line in rest:
    if match := _CAPTION.fullmatch(line):
      found.setdefault(match[1], match[2].strip())
  return {language: caption for language, caption in found.items() if caption}


def read(root: pathlib.Path) -> list[Stamp]:
  """All stamps of an unpacked package, in order of their names.

  Raises:
    ValueError: there are none.
  """
  folder = root / FOLDER
  stamps: dict[str, Stamp] = {}
  of = lambda name: stamps.setdefault(name, Stamp(name))
  for path in sorted(p for p in folder.rglob("*") if p.is_file()):
    name = path.relative_to(folder).as_posix()
    stem, _, kind = name.rpartition(".")
    if kind == "png":
      of(stem).picture = name
    elif kind == "svg":
      of(stem).vector = name
    elif kind == "txt":
      of(stem).captions = captions(path.read_bytes())
    elif match := _VOICE.fullmatch(name):
      of(match[1]).voices.append((match[2] or "en", name))
    elif match := _NOISE.fullmatch(name):
      of(match[1]).noises.append(name)
  if not stamps:
    raise ValueError(f"{folder} has no stamps; wanted {PACKAGES[0]}, unpacked.")
  return list(stamps.values())


def _line(stamp: Stamp, kind: str, language: str, number: int, parts: list[dict]) -> dict:
  name = f"{stamp.name}:{kind}:{language}" + (f":{number}" if number else "")
  return {"id": name, "group": stamp.name, "parts": parts,
          "about": {"kind": kind, "language": language}}


def _audio(path: str, **more: str) -> dict:
  return {"audio": f"root/{FOLDER}/{path}", **more}


def _image(stamp: Stamp, **more: str) -> dict:
  return {"image": f"root/{FOLDER}/{stamp.picture}", **more}


def caption_documents(stamps: Iterable[Stamp]) -> Iterator[dict]:
  """Each picture with each of its captions."""
  for stamp in stamps:
    for language, caption in stamp.captions.items():
      if stamp.picture:
        yield _line(stamp, "caption", language, 0,
                    [_image(stamp), {"text": f"{language}: {caption}"}])


def speech_documents(stamps: Iterable[Stamp]) -> Iterator[dict]:
  """Each voice that has a caption, alone and with the picture; each noise with the picture."""
  for stamp in stamps:
    said = collections.Counter[str]()
    for language, path in stamp.voices:
      caption, number = stamp.captions.get(language), said[language]
      said[language] += 1
      if caption is None:
        continue
      yield _line(stamp, "voice", language, number, [_audio(path, transcript=caption)])
      if stamp.picture:
        yield _line(stamp, "picture to voice", language, number, [
          {"text": f"{language}:", "role": "user"}, _image(stamp, role="user"),
          _audio(path, transcript=caption, role="assistant")])
        yield _line(stamp, "voice to picture", language, number, [
          _audio(path, transcript=caption, role="user"), _image(stamp, role="assistant")])
    for number, path in enumerate([] if stamp.name.startswith(_SPOKEN) else stamp.noises):
      if stamp.picture:
        yield _line(stamp, "picture to noise", "", number,
                    [_image(stamp, role="user"), _audio(path, role="assistant")])
        yield _line(stamp, "noise to picture", "", number,
                    [_audio(path, role="user"), _image(stamp, role="assistant")])


# The names of what is counted.
_PICTURES, _CAPTIONS = "PNG pictures with a caption", "captions of these"
_MUTE, _VECTORS = "left out: PNG without a caption", "left out: pictures as SVG only"
_VOICES, _SHOWN = "voices with a caption in their language", "voices of these with a PNG"
_WORDLESS = "left out: voices without one"
_NOISES, _NAMES = "noises with a PNG", "left out: names of letters and digits"
_UNSEEN = "left out: noises without a PNG"


def in_package(members: Iterable[tuple[str, Callable[[], bytes]]]) -> dict[str, int]:
  """Counts of the files of a package, found without `read`: by names and lines alone."""
  names, texts = set[str](), dict[str, list[bytes]]()
  for path, content in members:
    if path.startswith(f"{FOLDER}/"):
      name = path.removeprefix(f"{FOLDER}/")
      names.add(name)
      if name.endswith(".txt"):
        texts[name[:-4]] = [line for line in content().splitlines() if line.strip()]
  pngs, svgs = ({n[:-4] for n in names if n.endswith(kind)} for kind in (".png", ".svg"))
  kinds = (_PICTURES, _CAPTIONS, _MUTE, _VECTORS, _VOICES, _SHOWN, _WORDLESS, _NOISES, _UNSEEN,
           _NAMES)
  out = collections.Counter(dict.fromkeys(kinds, 0))
  out[_PICTURES], out[_MUTE] = len(pngs & texts.keys()), len(pngs - texts.keys())
  out[_CAPTIONS] = sum(len(texts[n]) for n in pngs & texts.keys())
  out[_VECTORS] = len(svgs - pngs)
  for name in names:
    if not name.endswith((".ogg", ".wav")):
      continue
    stem, is_voice, tail = name.partition("_desc")
    if is_voice:
      language = tail.split(".")[0].removeprefix("_").encode()
      lines = texts.get(stem, [])
      told = any(line.startswith(language + b".utf8=") for line in lines) if language else lines
      out[_VOICES if told else _WORDLESS] += 1
      out[_SHOWN] += bool(told) and stem in pngs
    elif name.startswith(_SPOKEN):
      out[_NAMES] += 1
    else:
      out[_NOISES if name[:-4] in pngs else _UNSEEN] += 1
  return dict(out)


def in_manifest(stamps: Iterable[Stamp], lines: Iterable[dict]) -> dict[str, int]:
  """The same counts of manifests; what is left out, of the stamps that were read."""
  kinds = collections.Counter(line["about"]["kind"] for line in lines)
  shown = {line["group"] for line in lines if line["about"]["kind"] == "caption"}
  noises = lambda stamp: 0 if stamp.name.startswith(_SPOKEN) else len(stamp.noises)
  return {
    _PICTURES: len(shown), _CAPTIONS: kinds["caption"],
    _MUTE: sum(bool(s.picture and not s.captions) for s in stamps),
    _VECTORS: sum(bool(s.vector and not s.picture) for s in stamps),
    _VOICES: kinds["voice"], _SHOWN: kinds["picture to voice"],
    _WORDLESS: sum(la not in s.captions for s in stamps for la, _ in s.voices),
    _NOISES: kinds["picture to noise"],
    _UNSEEN: sum(noises(s) for s in stamps if not s.picture),
    _NAMES: sum(len(s.noises) - noises(s) for s in stamps),
  }


def texts(stamps: Iterable[Stamp]) -> Iterator[tuple[str, str]]:
  """The group and the text of every caption."""
  for stamp in stamps:
    for language, caption in stamp.captions.items():
      yield stamp.name, f"{language}: {caption}"
