"""A small run that never happened, for the tests of what is made of runs: cases, answers, a report.

Pictures of digits are their number of bright pixels, sounds are tones whose pitch says the digit
and whose length says the language; the fake judges read them back.
"""

import json

import numpy as np
import soundfile
from PIL import Image

from omnijax import config
from omnijax import vocab as vocab_lib
from omnijax.data import documents, loader
from omnijax.evals import directions, report

RATE = 16_000
LANGUAGES = ("en", "fr")
WORDS = {
  "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
  "fr": ("z\u00e9ro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"),
}
VOCAB = vocab_lib.Vocab(text=256, image=240, audio=64, codebooks=4)


def draw(digit):
  """A picture of a digit, uint8 [32, 32, 3]."""
  pixels = np.zeros((32, 32, 3), np.uint8)
  pixels[4 : 5 + 2 * digit, 8:24] = 255
  return pixels


def speak(digit, language):
  """A sound of a digit, float32 [T]."""
  t = np.arange(RATE // (2 if language == "en" else 4)) / RATE
  return (0.3 * np.sin(2 * np.pi * (200 + 100 * digit) * t)).astype(np.float32)


class ImageJudge:
  def predict(self, pixels_BHW):
    return ((pixels_BHW[:, :, 16] > 0.5).sum(1) - 1) // 2


class SpeechJudge:
  def predict(self, waves):
    hertz = [np.abs(np.fft.rfft(w)).argmax() * RATE / len(w) for w in waves]
    languages = ["en" if len(w) == RATE // 2 else "fr" for w in waves]
    return np.array(languages), np.round((np.array(hertz) - 200) / 100).astype(int)


JUDGES = directions.Judges(ImageJudge(), SpeechJudge(), WORDS, RATE)


class Output:
  def __init__(self, text=None, image=None, audio=None, monologue=None):
    self.text, self.image, self.audio, self.monologue = text, image, audio, monologue


class Generator:
  """Answers right, except that it takes every `wrong` for one more."""

  def __init__(self, wrong=None):
    self.wrong, self.calls = wrong, []

  def generate(self, prompts, *, to, sampling, seed, image_size):
    assert image_size == (32, 32)
    self.calls.append((to, len(prompts), sampling, seed))
    return [self._one(prompt, to) for prompt in prompts]

  def _one(self, prompt, to):
    digit, language = _read(prompt)
    digit = digit + 1 if digit == self.wrong else digit
    word = WORDS[language][digit]
    if to == "text":
      return Output(text=word)
    if to == "image":
      return Output(image=draw(digit))
    return Output(audio=speak(digit, language), monologue=word)


def _read(prompt):
  language, digit = "en", None
  for part in prompt:
    if "image" in part:
      pixels = np.asarray(Image.open(part["image"]))
      digit = int(ImageJudge().predict(directions.grey(pixels)[None])[0])
    elif "audio" in part:
      languages, digits = SpeechJudge().predict([soundfile.read(part["audio"])[0]])
      language, digit = str(languages[0]), int(digits[0])
    elif part["text"] in WORDS:
      language = part["text"]
    else:
      language = next(la for la in (language, *LANGUAGES) if part["text"] in WORDS[la])
      digit = WORDS[language].index(part["text"])
  return digit, language


def cases(folder):
  """One case for each direction, language and digit, with their files in a folder."""
  out = []
  folder.mkdir(parents=True, exist_ok=True)
  for language in LANGUAGES:
    for digit in range(10):
      image, audio = folder / f"{digit}.png", folder / f"{digit}{language}.wav"
      Image.fromarray(draw(digit)).save(image)
      soundfile.write(audio, speak(digit, language), RATE)
      said = {"text": language, "role": "user"}
      word = {"text": WORDS[language][digit], "role": "user"}
      shown, heard = {"image": str(image), "role": "user"}, {"audio": str(audio), "role": "user"}
      prompts = {"speech->text": (heard,), "image->text": (said, shown), "text->image": (word,),
                 "text->speech": (said, word), "image->speech": (said, shown),
                 "speech->image": (heard,)}
      out += [directions.Case(direction=name, prompt=prompts[name], digit=digit,
                              language=language, kind="person" if digit % 2 else "robot",
                              voice="anna") for name in directions.DIRECTIONS]
  return out


def batch():
  """Two packed rows with documents of every kind."""
  rng = np.random.default_rng(0)
  data = config.Data(sources=("x",), rows=2, positions=96, frames=32)
  text = lambda s, role: documents.Part(vocab_lib.TEXT, role, np.array(list(s.encode())))
  image = lambda role: documents.Part(vocab_lib.IMAGE, role, rng.integers(0, 240, (4, 4)))
  audio = lambda role: documents.Part(vocab_lib.AUDIO, role, rng.integers(0, 64, (8, 4)),
                                      np.array([115, 105, 120]))
  user, answer = documents.USER, documents.ASSISTANT
  docs = [[audio(user), text("six", answer)], [text("fr", user), image(user), audio(answer)],
          [text("two", user), image(answer)]]
  rows = []
  for some in (docs, docs[1:]):
    streams = [documents.render(d, documents.PLAIN, False, data, VOCAB) for d in some]
    rows.append(loader.assemble(streams, data, VOCAB, rng))
  return {k: np.stack([r[k] for r in rows]) for k in rows[0]}


def metrics(steps=300):
  """Lines as training writes them."""
  rng = np.random.default_rng(0)
  for step in range(steps):
    fall = np.exp(-step / 60) + 0.05 * rng.normal()
    yield {"step": step, "loss": 2 + 4 * fall, "loss/text": 0.3 + 5 * fall,
           "loss/image": 2 + 3 * fall, "loss/audio": 3 + 3 * fall,
           "loss/first_codebook": 2 + 4 * fall, "bits_per_byte": 0.4 + fall,
           "bits_per_pixel": 0.1 + fall / 10, "bits_per_second": 400 + 100 * fall,
           "data_wait_s": 0.001, "step_s": 0.5 + 0.05 * rng.random(), "mfu": 0.3,
           "tokens_per_s": 4000 + 200 * rng.normal()}
    if step % 100 == 99:
      yield {"step": step, "eval/loss/text": 0.5, "eval/loss/image": 2.2, "eval/loss/audio": 3.2}


def material(folder, wrong=7):
  """What a report is made from; the generator takes every `wrong` for one more."""
  chosen = directions.choose(cases(folder / "inputs"), 20, seed=0)
  answers = directions.evaluate(Generator(wrong), JUDGES, chosen, folder / "answers",
                                sampling="greedy", seed=0, batch=8)
  lines = json.loads(json.dumps(list(metrics())))
  rng = np.random.default_rng(0)
  return report.Material(
    title="Digits", judges=directions.judge_figures(JUDGES, cases(folder / "inputs")),
    tokenizers={"image": {"psnr": 30.0, "codes": {"used": 0.97}}, "audio": {"mel_distance": 0.4,
                "stoi": "not measured: pystoi is not installed"}, "text": {"bytes_per_piece": 2.5}},
    train={"seconds": 400.0, "steps": 300, "parameters": 5_000_000, "peak_memory_gib": 2.5,
           **report.learning(lines)},
    stages={"data": 12.0, "prepare": 40.0, "train": 400.0, "evaluate": 60.0},
    metrics=lines, answers=answers, answers_dir=folder / "answers", rate=RATE, batch=batch(),
    vocab=VOCAB, piece=chr, image_use=rng.integers(0, 50, 240),
    audio_use=rng.integers(0, 9, (4, 64)),
    pictures=[report.Picture(f"a {d}", draw(d), draw(d) // 2) for d in range(3)],
    sounds=[report.Sound(f"{d} in fr", speak(d, "fr"), speak(d, "fr") / 2) for d in range(3)],
    sources="# Where\n\nFrom `here`.\n\n## People\n\n| who | licence |\n|---|---|\n| A & B | MIT |")
