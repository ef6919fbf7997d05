"""Raw clips for the digits data set: what each synthesiser says, and where people's files lie.

Each function returns (wave, rate). They need the programs espeak-ng, flite, festival and ffmpeg,
the package py-nanotts (SVOX Pico) and the Kokoro model; see SOURCES.md. Settings vary with the
voice by a hash of its name, so that a second build gives the same clips.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import subprocess
import tempfile

import numpy as np
import soundfile

from experiments.digits import voices


def fraction(*names: object) -> float:
  """A number in [0, 1) that depends only on the names."""
  text = "/".join(map(str, names)).encode()
  return int.from_bytes(hashlib.sha256(text).digest()[:6], "big") / 2**48


def read(path: pathlib.Path) -> tuple[np.ndarray, int]:
  """A recording of a person, decoded to mono at 16 kHz; raw g722 and gsm files included."""
  kind = {".g722": ["-f", "g722"], ".gsm": ["-f", "gsm"]}.get(path.suffix, [])
  command = ["ffmpeg", "-loglevel", "error", *kind, "-i", str(path), "-ac", "1", "-ar", "16000"]
  raw = subprocess.run([*command, "-f", "s16le", "-"], check=True, capture_output=True).stdout
  return np.frombuffer(raw, np.int16).astype(np.float32) / 32768, 16000


def _wav_from(command: list[str], text: str | None = None) -> tuple[np.ndarray, int]:
  with tempfile.TemporaryDirectory() as folder:
    out = f"{folder}/out.wav"
    command = [part.replace("OUT", out) for part in command]
    subprocess.run(command, check=True, input=text, text=True, capture_output=True)
    return soundfile.read(out, dtype="float32")


def espeak(language: str, variant: str, digit: int) -> tuple[np.ndarray, int]:
  """espeak-ng: the variant decides accent, pitch and rate."""
  rate = 120 + int(60 * fraction("rate", language, variant, digit))
  return espeak_text(language, variant, voices.WORDS[language][digit], rate)


def espeak_text(language: str, variant: str, text: str, rate: int) -> tuple[np.ndarray, int]:
  """Any text by the same voices; rate in words a minute."""
  accents = voices.ESPEAK_ACCENTS[language]
  accent = accents[int(fraction("accent", language, variant) * len(accents))]
  pitch = 35 + int(40 * fraction("pitch", language, variant))
  command = ["espeak-ng", "-v", f"{accent}+{variant}", "-p", str(pitch), "-s", str(rate)]
  return _wav_from([*command, "-w", "OUT", text])


def flite(voice: str, digit: int) -> tuple[np.ndarray, int]:
  """flite: 16 kHz English voices."""
  stretch = 0.9 + 0.4 * fraction("flite", voice, digit)
  return flite_text(voice, voices.WORDS["en"][digit], stretch)


def flite_text(voice: str, text: str, stretch: float) -> tuple[np.ndarray, int]:
  """Any English text; stretch is how many times as long as usual."""
  setting = ["--setf", f"duration_stretch={stretch:.2f}"]
  return _wav_from(["flite", "-voice", voice, *setting, "-t", text, "-o", "OUT"])


def festival(language: str, voice: str, digit: int) -> tuple[np.ndarray, int]:
  """Festival, which reads each language in an 8-bit coding of its own."""
  return festival_text(voice, voices.WORDS[language][digit])


def festival_text(voice: str, text: str) -> tuple[np.ndarray, int]:
  """Any text in the voice's language."""
  script = f'(voice_{voice})(utt.save.wave (utt.synth (Utterance Text "{text}")) "OUT")'
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder)
    # The Russian voice wants KOI8-free UTF-8 text; the Italian and English words are ASCII.
    (out / "say.scm").write_text(script.replace("OUT", f"{folder}/out.wav"), encoding="utf-8")
    command = ["festival", "--batch", str(out / "say.scm")]
    subprocess.run(command, check=True, capture_output=True)
    return soundfile.read(out / "out.wav", dtype="float32")


def pico(voice: str, language: str, digit: int, take: int) -> tuple[np.ndarray, int]:
  """SVOX Pico through py-nanotts; a take differs in rate and pitch."""
  return pico_text(voice, voices.WORDS[language][digit] + ".", take)


def pico_text(voice: str, text: str, take: int) -> tuple[np.ndarray, int]:
  """Any text in the voice's language."""
  import py_nanotts

  speed, pitch = ((1.0, 1.0), (0.85, 0.9), (1.15, 1.1))[take]
  pcm = py_nanotts.NanoTTS().speak(text, voice=voice, speed=speed, pitch=pitch)
  return np.frombuffer(pcm, np.int16).astype(np.float32) / 32768, 16000


class Kokoro:
  """Kokoro-82M (int8 ONNX) with the voices of the kokoro-js package.

  folder holds kokoro.onnx, vocab.json and voices/NAME.bin ([length, 256] float32 styles).
  """

  def __init__(self, folder: pathlib.Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = str(folder / "kokoro.onnx")
    self.session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    self.vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))["vocab"]
    self.folder = folder

  def say(self, language: str, voice: str, digit: int) -> tuple[np.ndarray, int]:
    """One digit in the words of a language; the rate varies by 20 % between clips."""
    phones = voices.KOKORO_IPA[language].split()[digit] + "."
    speed = 0.9 + 0.25 * fraction("kokoro", voice, language, digit)
    return self.speak(phones, self.styles(voice), speed)

  def blend(self, language: str, number: int, digit: int) -> tuple[np.ndarray, int]:
    """One digit by a voice between training voices: timbre of some, melody of others."""
    seed = voices.LANGUAGES.index(language)
    styles = self.blended(language, number)
    usual = voices.KOKORO_IPA[language].split()[digit]
    ways = voices.KOKORO_OTHER_IPA[language].get(digit, usual).split()
    rng = np.random.default_rng([number, digit, seed])
    phones = ways[number % len(ways)] + rng.choice([".", "!", "?", ",", "."])
    return self.speak(phones, styles, rng.uniform(0.8, 1.2))

  def blended(self, language: str, number: int) -> np.ndarray:
    """The styles of a voice between a language's training voices."""
    who = np.random.default_rng([number, 77, voices.LANGUAGES.index(language)])
    names = voices.KOKORO_TRAIN[language]

    def mixed() -> np.ndarray:
      count = who.integers(2, 4)
      chosen = who.choice(len(names), count, replace=False)
      shares = who.dirichlet(np.ones(count))
      return sum(s * self.styles(names[i]) for s, i in zip(shares, chosen, strict=True))

    timbre, melody = mixed(), mixed()
    return np.concatenate([timbre[:, :128], melody[:, 128:]], 1).astype(np.float32)

  def styles(self, voice: str) -> np.ndarray:
    """The voice's styles [longest, 256] by number of phonemes."""
    return np.fromfile(self.folder / "voices" / f"{voice}.bin", np.float32).reshape(-1, 256)

  def speak(self, phones: str, styles: np.ndarray, speed: float) -> tuple[np.ndarray, int]:
    """Any phonemes, in IPA as Kokoro writes it; speed 1 is the usual rate."""
    tokens = [self.vocab[c] for c in phones if c in self.vocab]
    inputs = {
      "tokens": np.array([[0, *tokens, 0]], np.int64),
      "style": styles[len(tokens) - 1][None],
      "speed": np.array([speed], np.float32),
    }
    return self.session.run(None, inputs)[0].ravel(), 24000
