"""Speech clips for the training of the codec: decoded once, augmented, batched by length.

Shapes: B clips, L samples, T codec frames, U characters of a transcript.
"""

import json
import unicodedata
from pathlib import Path

import numpy as np
import soundfile
import soxr
from rich.console import Console
from rich.progress import track

ALPHABET = "-abcdefghijklmnopqrstuvwxyz '"  # CTC symbols; "-" is the blank
_SPEED = 0.18  # augmentation changes a clip's speed and pitch by up to this, in log
_SLOWEST = np.exp(_SPEED) + 0.01  # how much longer that makes it
# Without letters that are another with a mark: those are taken apart first.
_CYRILLIC = dict(zip("абвгдежзиклмнопрстуфхцчшщъыьэюя",
                     "a b v g d e zh z i k l m n o p r s t u f kh ts ch sh shch ' y ' e yu ya"
                     .split(), strict=True))


def letters(transcript: str) -> str:
  """The transcript in CTC's alphabet, Cyrillic as it sounds; empty if something has no letters."""
  text = unicodedata.normalize("NFKD", transcript.lower().replace("\u2019", "'"))
  text = "".join(_CYRILLIC.get(c, c) for c in text if not unicodedata.combining(c))
  if any(c.isalnum() and c not in ALPHABET for c in text):
    return ""
  text = "".join(c if c in ALPHABET[1:] else " " for c in text)
  return " ".join(text.split())


def listed(manifest: Path) -> list[dict]:
  """The recordings of a manifest: {"audio": path} with the other keys that stand beside it.

  Lines are {"audio": path, "transcript"?: text, "semantic_weight"?: how often the semantic part of
  the training draws it, ...} or documents {"parts": [...]} of them; paths are relative to the
  manifest.
  """
  items = [json.loads(line) for line in manifest.read_text("utf-8").splitlines() if line.strip()]
  parts = [part for item in items for part in item.get("parts", [item]) if "audio" in part]
  return [part | {"audio": str(manifest.parent / part["audio"])} for part in parts]


def pack(
  manifest: Path, cache: Path, sample_rate: int, console: Console
) -> tuple[np.ndarray, list[dict]]:
  """Decodes a manifest's clips once: int16 samples, and {start, length, chars, ...} of each.

  Clips that cannot be read or hold under 0.1 s are left out and counted.
  """
  index, data = cache / "clips.jsonl", cache / "clips.i16"
  if not index.exists():
    cache.mkdir(parents=True, exist_ok=True)
    items = listed(manifest)
    clips, start, failed = [], 0, []
    with data.open("wb") as out:
      for item in track(items, "decode clips", console=console):
        try:
          wave, rate = soundfile.read(item["audio"], dtype="float32", always_2d=True)
        except (OSError, soundfile.LibsndfileError):
          failed.append(item["audio"])
          continue
        wave = soxr.resample(wave.mean(1), rate, sample_rate)
        if len(wave) < sample_rate // 10 or np.abs(wave).max() < 1e-3:
          failed.append(item["audio"])
          continue
        wave = wave * min(1.0, 0.99 / np.abs(wave).max())
        out.write((wave * 32767).astype("<i2").tobytes())
        chars = letters(item.get("transcript", ""))
        clips.append({"start": start, "length": len(wave), "chars": chars,
                      "semantic_weight": float(item.get("semantic_weight", 1.0))})
        start += len(wave)
    hours = start / sample_rate / 3600
    console.print(f"{len(clips)} clips, {hours:.2f} h; {len(failed)} left out {failed[:3]}")
    if not clips:
      raise ValueError(f"{manifest} names no clip of at least 0.1 s that can be read")
    part = index.with_suffix(".part")
    part.write_text("\n".join(json.dumps(c) for c in clips) + "\n")
    part.rename(index)
  clips = [json.loads(line) for line in index.read_text().splitlines()]
  return np.memmap(data, "<i2", "r"), clips


def augment(wave: np.ndarray, rng: np.random.Generator, shift: int) -> np.ndarray:
  """Another speaker, microphone and place: speed with pitch, equaliser, band, gain, shift, noise.

  The shift is less than `shift` samples.
  """
  wave = disguise(wave, rng)
  level = rng.uniform(0.03, 0.15) / max(np.sqrt(np.mean(wave**2)), 1e-3)
  wave = wave * min(level, 0.98 / max(np.abs(wave).max(), 1e-3))
  wave = np.concatenate([np.zeros(rng.integers(0, shift)), wave])
  noise = 10 ** rng.uniform(-4.5, -2.5) if rng.random() < 0.5 else 1e-5
  return (wave + noise * rng.standard_normal(len(wave))).astype(np.float32)


def disguise(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Another speaker and microphone: speed with pitch, equaliser, band; the same for the same rng.
  """
  rate = np.exp(rng.uniform(-_SPEED, _SPEED)) if rng.random() < 0.8 else 1.0
  wave = np.interp(np.arange(0, len(wave) - 1, rate), np.arange(len(wave)), wave)
  return _equalised(wave, rng) if rng.random() < 0.6 else wave


def _equalised(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """A smooth random gain over frequency, and at times the band of a telephone."""
  size = 1 << (len(wave) - 1).bit_length()
  spectrum = np.fft.rfft(wave, size)
  share = np.linspace(0, 1, len(spectrum))  # of half the sample rate
  gain = np.interp(share, np.linspace(0, 1, 8) ** 2, rng.normal(0, 4, 8))
  if rng.random() < 0.25:
    gain -= 40 * np.clip((share - rng.uniform(0.4, 0.8)) / 0.1, 0, 1)
  return np.fft.irfft(spectrum * 10 ** (gain / 20), size)[: len(wave)]


def room_of(bucket: int, frame_size: int) -> int:
  """Samples that a clip may have to fit a bucket of so many frames, however it is augmented."""
  return int((bucket - 1.5) * frame_size / _SLOWEST)


class Batches:
  """Batch t is a pure function of (seed, t)."""

  def __init__(
    self,
    data: np.ndarray,
    clips: list[dict],
    *,
    frame_size: int,
    buckets: tuple[int, ...],
    batch_frames: int,
    seed: int,
  ):
    self.data, self.clips, self.size = data, clips, frame_size
    self.buckets, self.batch_frames, self.seed = buckets, batch_frames, seed
    frames = np.array([clip["length"] / frame_size for clip in clips])
    need = frames * _SLOWEST + 1.5  # the shift by up to a frame must fit too
    self.bucket = np.searchsorted(buckets, need).clip(max=len(buckets) - 1)
    # by the square root of duration: neither words nor sentences drown the others
    self.weight = np.sqrt(np.minimum(frames, max(buckets)))
    self.weight *= np.array([clip.get("weight", 1.0) for clip in clips])
    mass = np.array([self.weight[self.bucket == b].sum() for b in range(len(buckets))])
    self.share = mass * buckets / np.sum(mass * buckets)

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    """wave [B, L], frames [B] to learn from, chars and char_padding [B, U] as optax's CTC wants.

    Also word [B], of clips that have one; -1 is none.
    """
    rng = np.random.default_rng((self.seed, step))
    b = rng.choice(len(self.buckets), p=self.share)
    T, size = self.buckets[b], self.size
    B, U = self.batch_frames // T, 3 * T
    members = np.flatnonzero(self.bucket == b)
    p = self.weight[members] / self.weight[members].sum()
    wave_BL, frames_B = np.zeros((B, T * size), np.float32), np.zeros(B, np.int32)
    chars_BU, padding_BU = np.zeros((B, U), np.int32), np.ones((B, U), np.float32)
    word_B = np.full(B, -1, np.int32)
    for i, m in enumerate(rng.choice(members, B, p=p)):
      wave, text = self._clip(self.clips[m], T, rng)
      wave = augment(wave, rng, size)[: T * size]
      wave_BL[i, : len(wave)] = wave
      # two frames of the silence after the end are worth learning, the rest is not
      frames_B[i] = min(T, -(-len(wave) // size) + 2)
      if len(text) <= U:
        chars_BU[i, : len(text)] = [ALPHABET.index(c) for c in text]
        padding_BU[i, : len(text)] = 0.0
        word_B[i] = self.clips[m].get("word", -1) if text else -1
    return {"wave": wave_BL, "frames": frames_B, "chars": chars_BU, "char_padding": padding_BU,
            "word": word_B}

  def _clip(self, clip: dict, T: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Samples and characters; what is too long is cut, and then has no characters."""
    start, length, text = clip["start"], clip["length"], clip["chars"]
    room = room_of(T, self.size)
    if length > room:
      start, length, text = start + rng.integers(0, length - room), room, ""
    return self.data[start : start + length].astype(np.float32) / 32768, text
