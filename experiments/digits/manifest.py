"""The quickstart's documents: every digit crossed between text, image and speech.

`write` unpacks the data set and writes two manifests for `omnijax prepare`. A training document
is an input (role user) followed by an output (role assistant) that mean the same digit, paired at
random. A short text part first names the language wherever the output has one; which modality
comes is shown by what follows, and forced by a control token when generating. What was heard is
named before it is drawn, as speech has its words beside it.

  speech->text   [audio, its word]               text->speech   ["fr", "six", audio]
  image->text    ["it", image, word in Italian]  image->speech  ["fr", image, audio]
  text->image    [word in any language, image]   speech->image  [audio, its word, image]
"""

from __future__ import annotations

import json
import pathlib
import random

from experiments.digits import unpack
from experiments.digits.voices import KOKORO_SPOKEN, LANGUAGES, WORDS

# Shares of the documents: reading and hearing generalise slowest. "plain" are single modalities.
SHARES = {
  "speech->text": 0.30,
  "image->text": 0.22,
  "text->image": 0.09,
  "text->speech": 0.08,
  "image->speech": 0.11,
  "speech->image": 0.18,
  "plain": 0.02,
}
DIRECTIONS = tuple(name for name in SHARES if name != "plain")


def _text(text: str, role: str) -> dict:
  return {"text": text, "role": role}


def _image(picture: unpack.Picture, role: str) -> dict:
  return {"image": picture.path, "role": role}


def _audio(clip: unpack.Clip, role: str) -> dict:
  return {"audio": clip.path, "transcript": WORDS[clip.language][clip.digit], "role": role}


class _Deck:
  """Draws items in shuffled rounds, so that each is used equally often."""

  def __init__(self, items: list, rng: random.Random):
    self.items, self.rng, self.left = items, rng, []

  def draw(self):
    if not self.left:
      self.left = self.rng.sample(self.items, len(self.items))
    return self.left.pop()


def parts(direction: str, language: str, picture: unpack.Picture, clip: unpack.Clip) -> list[dict]:
  """The parts of one document of a direction; picture and clip show the same digit.

  language: of the word (image->text, text->image); where a recording takes part, its own counts.
  """
  word = WORDS[language][clip.digit]
  own = WORDS[clip.language][clip.digit]
  if direction == "speech->text":
    return [_audio(clip, "user"), _text(own, "assistant")]
  if direction == "image->text":
    return [_text(language, "user"), _image(picture, "user"), _text(word, "assistant")]
  if direction == "text->image":
    return [_text(word, "user"), _image(picture, "assistant")]
  if direction == "text->speech":
    return [_text(clip.language, "user"), _text(own, "user"), _audio(clip, "assistant")]
  if direction == "image->speech":
    return [_text(clip.language, "user"), _image(picture, "user"), _audio(clip, "assistant")]
  if direction == "speech->image":
    return [_audio(clip, "user"), _text(own, "assistant"), _image(picture, "assistant")]
  raise ValueError(f"unknown direction {direction!r}; want one of {', '.join(DIRECTIONS)}")


def _balanced(clips: list[unpack.Clip], rng: random.Random) -> dict[tuple[str, int], dict]:
  """For each (language, digit), decks of the recordings of people and of synthesisers."""
  decks: dict[tuple[str, int], dict] = {}
  for language in LANGUAGES:
    for digit in range(10):
      mine = [c for c in clips if (c.language, c.digit) == (language, digit)]
      groups = {kind: [c for c in mine if c.kind == kind] for kind in {c.kind for c in mine}}
      decks[language, digit] = {k: _Deck(groups[k], rng) for k in sorted(groups)}
  return decks


def _weights(decks: dict[str, _Deck]) -> list[float]:
  """Kinds of voice by the square root of their number: neither drowned nor worn out."""
  return [len(deck.items) ** 0.5 for deck in decks.values()]


def write(
  folder: pathlib.Path,
  *,
  seed: int,
  docs: int,
  takes: int = 1,
  person_takes: int = 5,
  picture_takes: int = 1,
  data: pathlib.Path = unpack.DATA,
) -> tuple[pathlib.Path, pathlib.Path]:
  """Unpacks the data set into folder and writes train.jsonl and heldout.jsonl beside the files.

  docs: number of training documents. Each held-out recording and picture makes one document of
  each direction it is the input of, and each (language, word) one of each direction text starts.
  An extra field "digits" object names direction, digit, language and voice for the evaluation.
  """
  folder = pathlib.Path(folder)
  pictures, clips = unpack.unpack(folder, takes=takes, person_takes=person_takes,
                                  picture_takes=picture_takes, data=data)
  rng = random.Random(seed)
  train = folder / "train.jsonl"
  with train.open("w", encoding="utf-8") as out:
    for line in _training(pictures, clips, docs, rng):
      out.write(json.dumps(line, ensure_ascii=False) + "\n")
  heldout = folder / "heldout.jsonl"
  with heldout.open("w", encoding="utf-8") as out:
    for line in _heldout(pictures, clips, rng):
      out.write(json.dumps(line, ensure_ascii=False) + "\n")
  return train, heldout


def _training(pictures, clips, docs: int, rng: random.Random):
  by_digit = lambda some: {d: _Deck([p for p in some if p.digit == d], rng) for d in range(10)}
  shown = [p for p in pictures if p.split == "train"]
  # Every take is worth seeing or hearing; only originals are worth imitating, of people and of a
  # few voices of the synthesiser that is nearest to them.
  seen, drawn = by_digit(shown), by_digit([p for p in shown if p.take == 0])
  heard = _balanced([c for c in clips if c.split == "train"], rng)
  spoken = _balanced([c for c in clips if c.split == "train" and c.take == 0 and _spoken(c)], rng)
  kinds = _Deck([name for name, share in SHARES.items() for _ in range(round(share * 100))], rng)
  wanted = _Deck([(la, d) for la in LANGUAGES for d in range(10)], rng)
  for i in range(docs):
    direction = kinds.draw()
    language, digit = wanted.draw()
    says = direction.endswith("->speech") or direction == "plain"
    voices = (spoken if says else heard)[language, digit]
    clip = rng.choices(list(voices.values()), _weights(voices))[0].draw()
    picture = (drawn if direction.endswith("->image") else seen)[digit].draw()
    if direction == "plain":
      alone = rng.choice((_text(WORDS[language][digit], "assistant"), None))
      document = [alone or _audio(clip, "assistant")]
    else:
      document = parts(direction, language, picture, clip)
    yield {"id": f"train-{i:06d}", "parts": document, "digits": _about(direction, language, clip)}


def _spoken(clip: unpack.Clip) -> bool:
  return (clip.kind == "person"
          or clip.voice.removeprefix("kokoro-") in KOKORO_SPOKEN[clip.language])


def _about(direction: str, language: str, clip: unpack.Clip) -> dict:
  return {"direction": direction, "digit": clip.digit, "language": language, "voice": clip.voice}


def _heldout(pictures, clips, rng: random.Random):
  shown = [p for p in pictures if p.split == "heldout"]
  heard = [c for c in clips if c.split == "heldout"]
  by_digit = {d: [p for p in shown if p.digit == d] for d in range(10)}
  by_word = {
    (la, d): [c for c in heard if (c.language, c.digit) == (la, d)]
    for la in LANGUAGES
    for d in range(10)
  }
  rows = []
  for clip in heard:
    picture = rng.choice(by_digit[clip.digit])
    rows += [(way, clip.language, picture, clip) for way in ("speech->text", "speech->image")]
  for i, picture in enumerate(shown):
    language = LANGUAGES[i % len(LANGUAGES)]
    clip = rng.choice(by_word[language, picture.digit])
    rows += [(way, language, picture, clip) for way in ("image->text", "image->speech")]
  for (language, digit), group in by_word.items():
    for way in ("text->image", "text->speech"):
      rows.append((way, language, rng.choice(by_digit[digit]), rng.choice(group)))
  for i, (way, language, picture, clip) in enumerate(rows):
    document = parts(way, language, picture, clip)
    yield {"id": f"heldout-{i:05d}", "parts": document, "digits": _about(way, language, clip)}
