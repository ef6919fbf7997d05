"""What a quickstart tells of its tokenizers: figures on held-out files, examples, use of codes.

H W C picture  T samples  Q codebooks
"""

from collections.abc import Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr
from PIL import Image

from omnijax import vocab as vocab_lib
from omnijax.data import records as records_lib
from omnijax.evals import codec, images, text
from omnijax.evals.directions import Case, files
from omnijax.evals.report import Picture, Sound
from omnijax.tokenizers import audio as audio_lib
from omnijax.tokenizers import image as image_lib
from omnijax.tokenizers import load as tokenizers_lib

_TOGETHER = 16  # clips coded together
_DOCUMENTS = 20_000  # looked at for the use of codes


class Examples(NamedTuple):
  """Held-out pictures and sounds with what their codes keep."""

  pictures: list[Picture]
  sounds: list[Sound]


class Use(NamedTuple):
  """How often each code occurs in records: [codes], and [Q, codes]."""

  image_use: np.ndarray
  audio_use: np.ndarray


def figures(tokenizers: tokenizers_lib.Tokenizers, cases: Sequence[Case],
            words: Mapping[str, Sequence[str]], codebooks: int, *, clips: int, pictures: int
            ) -> dict[str, Any]:
  """Figures of each tokenizer on the words, held-out pictures and held-out voices of the cases.

  codebooks: of the codec that the model uses. clips, pictures: at most so many are measured.
  """
  shown, heard = list(files(cases, "image")), list(files(cases, "audio"))
  return {
    "text": text.evaluate(tokenizers.text, [w for some in words.values() for w in some]),
    "image": images.evaluate(tokenizers.image, [Path(p) for p in _some(shown, pictures)]),
    "audio": _audio(tokenizers.audio, _some(heard, clips), codebooks),
  }


def _audio(tok: audio_lib.AudioTokenizer, paths: Sequence[str], codebooks: int) -> dict[str, Any]:
  """Mel distance, STOI, SI-SDR, use of codes and bits per second, of the first codebooks."""
  waves = [_read(p, tok.sample_rate) for p in paths]
  codes, decoded = _coded(tok, waves, codebooks)
  # As one sound: a mean over all spectra, whatever the lengths of the clips.
  whole, whole_decoded = np.concatenate(waves), np.concatenate(decoded)
  out: dict[str, Any] = {
    "n": len(waves), "codebooks": codebooks,
    "bits_per_second": float(codebooks * np.log2(tok.codes) * tok.frame_rate),
    "mel_distance_db": codec.mel_distance(whole, whole_decoded, tok.config.stft),
    "si_sdr_db": float(np.mean([codec.si_sdr(a, b) for a, b in zip(waves, decoded, strict=True)])),
  }
  if util.find_spec("pystoi") is None:
    out["stoi"] = "not measured: pystoi is not installed (pip install omnijax[eval])"
  else:
    import pystoi
    # Words are shorter than the stretches of 0.4 s that it compares, so they follow each other.
    out["stoi"] = float(pystoi.stoi(whole, whole_decoded, tok.sample_rate))
  flat = np.concatenate(codes)
  use = [images.code_usage(flat[:, q], tok.codes) for q in range(codebooks)]
  return out | {"codes": {k: [round(u[k], 3) for u in use] for k in ("used", "perplexity")}}


def _coded(tok: audio_lib.AudioTokenizer, waves: Sequence[np.ndarray], codebooks: int
           ) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """Codes [T, Q] of each wave, and what they sound like, of the wave's length."""
  codes, decoded = [], []
  for i in range(0, len(waves), _TOGETHER):
    part = waves[i : i + _TOGETHER]
    longest = max(map(len, part))
    codes_BTQ = tok.encode(np.stack([np.pad(w, (0, longest - len(w))) for w in part]))
    codes_BTQ = codes_BTQ[..., :codebooks]
    wave_BL = tok.decode(codes_BTQ)
    for wave, codes_TQ, out in zip(part, codes_BTQ, wave_BL, strict=True):
      codes.append(codes_TQ[: -(-len(wave) // tok.frame_size)])
      decoded.append(out[: len(wave)])
  return codes, decoded


def examples(tokenizers: tokenizers_lib.Tokenizers, cases: Sequence[Case], codebooks: int
             ) -> Examples:
  """A few held-out pictures, and a recording of a person or a voice of each language."""
  shown: dict[int, str] = {}
  for path, case in files(cases, "image").items():
    shown.setdefault(case.digit, path)
  paths = [shown[d] for d in sorted(shown)][::2]
  pictures = []
  for path, (original, decoded) in zip(paths, _drawn(tokenizers.image, paths), strict=True):
    pictures.append(Picture(f"handwritten {Path(path).name[0]}", original, decoded))
  heard: dict[str, tuple[str, Case]] = {}
  every = files(cases, "audio")
  for i, language in enumerate(sorted({case.language for case in every.values()})):
    # Not all the same word.
    strange = lambda item, digit=(2 * i + 1) % 10: (item[1].kind != "person",
                                                    item[1].digit != digit)
    heard[language] = min((x for x in every.items() if x[1].language == language), key=strange)
  tok = tokenizers.audio
  waves = [_read(path, tok.sample_rate) for path, _ in heard.values()]
  _, sounds = _coded(tok, waves, codebooks)
  return Examples(pictures, [
    Sound(f"{case.digit} in {language}, {case.voice}", wave, decoded)
    for (language, (_, case)), wave, decoded in zip(heard.items(), waves, sounds, strict=True)])


def _drawn(tok: image_lib.ImageTokenizer, paths: Sequence[str]
           ) -> list[tuple[np.ndarray, np.ndarray]]:
  mode = "RGB" if tok.channels == 3 else "L"
  out = []
  for path in paths:
    pixels = np.asarray(Image.open(path).convert(mode)).reshape(1, *Image.open(path).size[::-1], -1)
    decoded = tok.decode(tok.encode(pixels.astype(np.float32) / 255))
    out.append((pixels[0], np.round(decoded[0] * 255).astype(np.uint8)))
  return out


def use(root: Path, vocab: vocab_lib.Vocab) -> Use:
  """Counts the codes in the first documents of a directory of records, each as often as shown."""
  records = records_lib.Records(root)
  image, audio = np.zeros(vocab.image, np.int64), np.zeros((vocab.codebooks, vocab.audio), np.int64)
  for i in range(min(len(records), _DOCUMENTS)):
    for part in records.read(i):
      if part.kind == vocab_lib.IMAGE:
        np.add.at(image, part.codes.reshape(-1), 1)
      elif part.kind == vocab_lib.AUDIO:
        for q in range(vocab.codebooks):
          np.add.at(audio[q], part.codes[:, q], 1)
  return Use(image, audio)


def _some(items: Sequence[str], n: int) -> Sequence[str]:
  """At most n of the items, spread evenly: neighbours are of one kind."""
  return [items[i] for i in np.linspace(0, len(items) - 1, min(n, len(items))).astype(int)]


def _read(path: str, rate: int) -> np.ndarray:
  wave_T, had = soundfile.read(path, dtype="float32")
  return wave_T if had == rate else soxr.resample(wave_T, had, rate)
