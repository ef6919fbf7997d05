"""Does what goes in by one modality come out right by another? Judged by who never saw the model.

A case is a prompt with one right digit and language; an answer is what the model said, wrote or
drew, and what an independent judge made of it. Answers of a direction are kept in a file with
their pictures and sounds beside it, so that an interrupted evaluation goes on where it was and
anybody can look and listen.
"""

import collections
import dataclasses
import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile
import soxr
from PIL import Image

from omnijax import config as config_lib
from omnijax.evals import judges as judges_lib

DIRECTIONS = ("speech->text", "image->text", "text->image", "text->speech", "image->speech",
              "speech->image")
# What `Generator.generate` is asked for, by the end of a direction's name.
_TO = {"text": "text", "image": "image", "speech": "audio"}
DIGITS = 10
OTHER = DIGITS  # the column of a confusion matrix for "no digit at all"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """One question: the parts said to the model (paths absolute) and what is right."""

  direction: str
  prompt: tuple[dict[str, str], ...]
  digit: int
  language: str
  kind: str = ""  # of the voice in the prompt: "person" or a synthesiser
  voice: str = ""

  def __post_init__(self) -> None:
    if self.direction not in DIRECTIONS:
      raise ValueError(f"a case of direction {self.direction!r}; wanted one of "
                       f"{', '.join(DIRECTIONS)}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
  """What the model gave, and what the judge made of it; None where it made nothing."""

  case: Case
  text: str | None = None  # what it wrote: the answer, before a picture, along with speech
  file: str | None = None  # picture or sound, beside the file of answers
  digit: int | None
  language: str | None

  @property
  def digit_right(self) -> bool:
    return self.digit == self.case.digit

  @property
  def right(self) -> bool:
    """The right digit, and in text and speech the right language too."""
    return self.digit_right and self.language == self.case.language


class Generator(Protocol):
  """What is needed of `omnijax.generate.decode.Generator`."""

  def generate(self, prompts: Any, *, to: str, sampling: Any, seed: int,
               image_size: tuple[int, int]) -> Sequence[Any]: ...


@dataclasses.dataclass(frozen=True)
class Judges:
  """Who decides: words are compared exactly, pictures and sounds are classified."""

  image: judges_lib.ImageJudge
  speech: judges_lib.SpeechJudge
  words: Mapping[str, Sequence[str]]  # by language, the word for each digit
  rate: int  # of the sounds that the model gives, samples per second

  def of_texts(self, texts: Sequence[str], cases: Sequence[Case]
               ) -> list[tuple[str | None, int | None]]:
    """Language and digit that each text is a word of, the wanted language first."""
    out: list[tuple[str | None, int | None]] = []
    for text, case in zip(texts, cases, strict=True):
      said = unicodedata.normalize("NFC", text.strip())
      found = [(language, words.index(said)) for language, words in self._by_wish(case.language)
               if said in words]
      out.append(found[0] if found else (None, None))
    return out

  def of_images(self, pixels: Sequence[np.ndarray], cases: Sequence[Case]
                ) -> list[tuple[str | None, int | None]]:
    """The digit in each picture, uint8 [H, W, C]; a picture has no language to be wrong in."""
    digits = self.image.predict(np.stack([grey(p) for p in pixels]))
    return [(case.language, int(d)) for case, d in zip(cases, digits, strict=True)]

  def of_sounds(self, waves: Sequence[np.ndarray]) -> list[tuple[str | None, int | None]]:
    """Language and digit of each wave [T]; what is empty or silent says nothing."""
    heard = [i for i, w in enumerate(waves) if len(w) and np.abs(w).max() > 1e-4]
    waves = [soxr.resample(w, self.rate, judges_lib.RATE) if self.rate != judges_lib.RATE else w
             for w in waves]
    languages, digits = self.speech.predict([waves[i] for i in heard])
    out: list[tuple[str | None, int | None]] = [(None, None)] * len(waves)
    for i, language, digit in zip(heard, languages, digits, strict=True):
      out[i] = str(language), int(digit)
    return out

  def _by_wish(self, language: str) -> list[tuple[str, list[str]]]:
    names = [language, *(name for name in self.words if name != language)]
    return [(name, [unicodedata.normalize("NFC", w) for w in self.words[name]])
            for name in names]


def grey(pixels_HWC: np.ndarray) -> np.ndarray:
  """A picture uint8 [H, W, C] as the judge wants it: float [H, W] in [0, 1]."""
  return np.asarray(pixels_HWC, np.float32).mean(2) / 255


def choose(cases: Sequence[Case], n: int, *, seed: int) -> dict[str, list[Case]]:
  """About n cases of each direction, drawn evenly over languages and digits.

  Where the prompt is only words there are few different ones: those are asked repeatedly, until
  there are n answers. Other prompts are never repeated.
  """
  out = {}
  for direction in DIRECTIONS:
    cells = collections.defaultdict(list)
    for case in cases:
      if case.direction == direction:
        cells[case.language, case.digit].append(case)
    rng = np.random.default_rng([seed, DIRECTIONS.index(direction)])
    drawn = [[cells[c][i] for i in rng.permutation(len(cells[c]))] for c in sorted(cells)]
    rounds = [drawn[c][i] for i in range(max(map(len, drawn), default=0))
              for c in rng.permutation(len(drawn)) if i < len(drawn[c])]
    if rounds and direction.startswith("text->"):
      rounds *= -(-n // len(rounds))
    out[direction] = rounds[:n]
  return out


def evaluate(generator: Generator, judges: Judges, cases: Mapping[str, Sequence[Case]],
             out: Path, *, sampling: Any, seed: int, batch: int,
             advance: Callable[[str, int], None] = lambda direction, n: None
             ) -> dict[str, list[Answer]]:
  """Answers to all cases; those of directions already in `out` are read instead.

  Args:
    generator: gives text, pictures and sounds.
    judges: decide what they are.
    cases: by direction, see `choose`.
    out: directory of answers, made if need be; of one checkpoint only.
    sampling: of the generator; part of what makes kept answers valid.
    seed: of the draws.
    batch: prompts generated together; every batch has this size, so that it compiles once.
    advance: is told of progress, (direction, cases just done); 0 when it begins.
  """
  answers = {}
  for number, direction in enumerate(DIRECTIONS):
    mine = list(cases.get(direction, ()))
    if not mine:
      continue
    key = config_lib.fingerprint([[dataclasses.asdict(c) for c in mine], repr(sampling), seed])
    path = out / f"{direction.replace('->', '_to_')}.jsonl"
    kept = _read(path, key)
    if kept is None:
      media = path.with_suffix("")
      media.mkdir(parents=True, exist_ok=True)
      kept = []
      advance(direction, 0)
      for start in range(0, len(mine), batch):
        part = mine[start : start + batch]
        kept += _answer(generator, judges, part, media, start, batch=batch, sampling=sampling,
                        seed=seed * 1_000_003 + number * 10_007 + start)
        advance(direction, len(part))
      _write(path, key, kept)
    else:
      advance(direction, len(mine))
    answers[direction] = kept
  return answers


def _answer(generator: Generator, judges: Judges, cases: list[Case], media: Path, start: int, *,
            batch: int, sampling: Any, seed: int) -> list[Answer]:
  """Generates and judges one batch, and keeps its pictures and sounds."""
  to = _TO[cases[0].direction.split("->")[1]]
  full = (cases * batch)[:batch]
  outputs = generator.generate([[dict(p) for p in c.prompt] for c in full], to=to,
                               sampling=sampling, seed=seed,
                               image_size=(judges_lib.SIDE, judges_lib.SIDE))[: len(cases)]
  texts: list[str | None]
  files: list[str | None] = [None] * len(cases)
  if to == "text":
    texts = [o.text or "" for o in outputs]
    verdicts = judges.of_texts([o.text or "" for o in outputs], cases)
  elif to == "image":
    texts = [o.text for o in outputs]
    verdicts = judges.of_images([o.image for o in outputs], cases)
    files = [f"{media.name}/{start + i:05d}.png" for i in range(len(cases))]
    for output, file in zip(outputs, files, strict=True):
      pixels = output.image[..., 0] if output.image.shape[2] == 1 else output.image
      Image.fromarray(pixels).save(media.parent / str(file))
  else:
    texts = [o.monologue for o in outputs]
    verdicts = judges.of_sounds([o.audio for o in outputs])
    files = [f"{media.name}/{start + i:05d}.flac" for i in range(len(cases))]
    for output, file in zip(outputs, files, strict=True):
      soundfile.write(media.parent / str(file), np.clip(output.audio, -1, 1), judges.rate)
  return [Answer(case=c, text=t, file=f, digit=digit, language=language)
          for c, t, f, (language, digit) in zip(cases, texts, files, verdicts, strict=True)]


def _write(path: Path, key: str, answers: Sequence[Answer]) -> None:
  lines = [{"key": key}, *map(dataclasses.asdict, answers)]
  part = path.with_suffix(".part")
  part.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
  part.replace(path)


def _read(path: Path, key: str) -> list[Answer] | None:
  """The answers that were kept under this key."""
  if not path.exists():
    return None
  head, *rest = (json.loads(line) for line in path.read_text("utf-8").splitlines())
  if head["key"] != key:
    return None
  out = []
  for line in rest:
    case = Case(**line["case"] | {"prompt": tuple(line["case"]["prompt"])})
    out.append(Answer(**line | {"case": case}))
  return out


def score(answers: Sequence[Answer]) -> dict[str, Any]:
  """Accuracy of a direction: whole, of the digit alone, and by language and kind of voice."""
  def of(some: Sequence[Answer]) -> dict[str, Any]:
    return {"accuracy": float(np.mean([a.right for a in some])), "n": len(some),
            "digit_accuracy": float(np.mean([a.digit_right for a in some]))}

  def by(get: Callable[[Answer], str]) -> dict[str, dict[str, Any]]:
    names = sorted({get(a) for a in answers})
    return {n: of([a for a in answers if get(a) == n]) for n in names}

  prompts = {json.dumps(a.case.prompt, sort_keys=True) for a in answers}
  out = of(answers) | {"prompts": len(prompts),
                       "by_language": by(lambda a: a.case.language)}
  if answers[0].case.direction.startswith("speech"):
    out["by_voice"] = by(lambda a: a.case.kind)
  return out


def confusion(answers: Sequence[Answer]) -> np.ndarray:
  """Counts [10, 11]: right digit by judged digit; the last column is no digit at all."""
  out = np.zeros((DIGITS, DIGITS + 1), np.int64)
  for a in answers:
    out[a.case.digit, OTHER if a.digit is None else a.digit] += 1
  return out


def judge_figures(judges: Judges, cases: Sequence[Case]) -> dict[str, Any]:
  """The judges' own accuracy on the real pictures and recordings that the cases show.

  Speech counts as in the directions (digit and language); "digit_accuracy" is the digit alone.
  """
  shown, heard = files(cases, "image"), files(cases, "audio")
  pictures = [np.asarray(Image.open(p).convert("RGB")) for p in shown]
  seen = [d for _, d in judges.of_images(pictures, list(shown.values()))]
  sounds = []
  for path in heard:
    wave_T, rate = soundfile.read(path, dtype="float32")
    sounds.append(wave_T if rate == judges.rate else soxr.resample(wave_T, rate, judges.rate))
  answers = [Answer(case=c, digit=d, language=la) for c, (la, d) in
             zip(heard.values(), judges.of_sounds(sounds), strict=True)]
  whole = score(answers)
  return {
    "image": judges_lib.accuracy(seen, [c.digit for c in shown.values()]),
    "speech": {k: whole[k] for k in ("accuracy", "digit_accuracy", "n", "by_language",
                                     "by_voice")}}


def files(cases: Sequence[Case], kind: str) -> dict[str, Case]:
  """Each file of a kind, "image" or "audio", that is an input, with a case that is about it."""
  starts = {"image": "image->", "audio": "speech->"}[kind]
  return {part[kind]: c for c in cases if c.direction.startswith(starts) for part in c.prompt
          if kind in part}
