"""Media files to arrays, in parallel processes.

C channels  L samples
"""

import collections
import concurrent.futures.process
import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from omnijax import vocab as vocab_lib
from omnijax.data.sources import Bad, Store
from omnijax.data.sources import store as store_lib

CHUNK = 16  # files sent to a process at a time
_AHEAD = 4  # chunks decoded ahead, for each process
_LOUDEST = 16.0  # a little over full scale happens; far over is another unit, or damage
_SILENT = 1e-4  # of full scale, -80 dB: nothing that anybody hears
_LONGEST_S = 4 * 3600.0
_BLOCK_S = 60.0  # read and resampled at a time
_BY_AV = ("g722", "m4a", "mp4", "aac", "webm", "mkv", "mov")

Decode = Callable[[Any], np.ndarray | Bad]  # of whatever says which file
Pool = Callable[[Sequence[Any], Decode], Iterator[np.ndarray | Bad]]


@contextlib.contextmanager
def pool(processes: int) -> Iterator[Pool]:
  """What decodes many files, in their order, in that many processes; 0 is in this one."""
  if not processes:
    yield lambda names, decode: map(decode, names)
    return
  with spawned(processes) as executor:
    yield functools.partial(_decoded, executor, _AHEAD * processes)


@contextlib.contextmanager
def spawned(processes: int) -> Iterator[concurrent.futures.Executor]:
  """Processes that end when this one does, however it ends."""
  # Spawned: JAX may be running threads here, which a fork would break.
  context = multiprocessing.get_context("spawn")
  executor = concurrent.futures.ProcessPoolExecutor(processes, context, initializer=_start)
  try:
    yield executor
  finally:
    executor.shutdown(wait=True, cancel_futures=True)


def _decoded(executor: concurrent.futures.Executor, ahead: int, names: Sequence[Any],
             decode: Decode) -> Iterator[np.ndarray | Bad]:
  """Arrays in the order of their names, a bounded number of chunks decoded ahead."""
  chunks = (names[i : i + CHUNK] for i in range(0, len(names), CHUNK))
  submit = lambda chunk: (chunk, executor.submit(_decode_chunk, decode, chunk))
  waiting = collections.deque(map(submit, itertools.islice(chunks, ahead)))
  while waiting:
    chunk, future = waiting.popleft()
    try:
      arrays = future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
      named = ", ".join(map(str, chunk))
      raise ValueError("a decoding process was killed, perhaps for memory, at or soon after one "
                       f"of {named}; decode with fewer processes, or remove the file that it "
                       "can't survive.") from error
    waiting.extend(map(submit, itertools.islice(chunks, 1)))
    yield from arrays


def _decode_chunk(decode: Decode, names: Sequence[Any]) -> list[np.ndarray | Bad]:
  return [decode(name) for name in names]


def _start() -> None:
  """Ends this process when its parent is killed: the pool's queue would wait for ever."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
  parent = multiprocessing.parent_process()
  assert parent is not None

  def wait() -> None:
    parent.join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


def decode_image(store: Store, name: str, channels: int, downsample: int, size: int = 0
                 ) -> np.ndarray | Bad:
  """Pixels uint8 [h, w, channels] of a file, laid on white, its first picture if it moves.

  Args:
    store: opens it.
    name: of the file.
    channels: 1 or 3.
    downsample: what both sides must be multiples of.
    size: pixels of the longer side that it is scaled down to, if it is larger, sides rounded to
      multiples; 0 refuses what doesn't fit as it is.
  """
  import PIL.Image
  import PIL.ImageOps
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
      with store.open(name) as opened, PIL.Image.open(opened) as file:
        w, h = file.size
        turned = PIL.ImageOps.exif_transpose(file)
        pixels = _pixels(turned if turned is not None else file, channels, downsample, size)
  except Bad as bad:
    return bad
  except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
    return Bad("image too large", f"{name}: {error}")
  except Exception as error:  # Pillow's plug-ins raise nearly anything on corrupt files.
    return Bad("unreadable image", f"{name}: {_short(error, store)}")
  h, w = pixels.shape[:2]
  if h % downsample or w % downsample or max(h, w) > vocab_lib.MAX_GRID * downsample:
    return Bad("image size", f"{name} is {w} x {h} pixels; the tokenizer wants multiples of "
               f"{downsample}, at most {vocab_lib.MAX_GRID * downsample}: resize or crop it, or "
               "give --image-size")
  return pixels


def _pixels(image: Any, channels: int, downsample: int, size: int) -> np.ndarray:
  import PIL.Image
  if size:
    scale = min(1.0, size / max(image.size))
    sides = [max(1, round(n * scale / downsample)) * downsample for n in image.size]
    if tuple(sides) != image.size:
      if image.mode in ("P", "1"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
      image = image.resize(sides, PIL.Image.Resampling.LANCZOS)
  if image.mode.startswith("I") or image.mode == "F":
    deep = np.asarray(image, np.float32)
    deep = deep / 257.0 if image.mode != "F" else deep * 255.0
    image = PIL.Image.fromarray(np.clip(np.round(deep), 0, 255).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = PIL.Image.new("RGBA", image.size, "white")
    image = PIL.Image.alpha_composite(white, image)
  image = image.convert("RGB" if channels == 3 else "L")
  return np.asarray(image).reshape(image.height, image.width, channels)


def decode_audio(store: Store, name: str, sample_rate: int, quiet: bool = True
                 ) -> np.ndarray | Bad:
  """The sound of a file as float32 [samples] at `sample_rate`, one channel or all of them mixed.

  Args:
    store: opens it.
    name: of the file, perhaps with a channel.
    sample_rate: Hz.
    quiet: silence is good; else it is refused.
  """
  try:
    blocks = list(_resampled(store, name, sample_rate))
    wave = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not len(wave):
      raise Bad("empty audio", f"{name} has no samples, or less than one at {sample_rate} Hz")
    if not quiet and np.abs(wave).max() < _SILENT:
      raise Bad("silent audio", f"{name} has samples up to {np.abs(wave).max():.1g} of full scale")
    return np.ascontiguousarray(wave, np.float32)
  except Bad as bad:
    return bad
  except Exception as error:  # libsndfile, soxr and PyAV raise their own kinds.
    return Bad("unreadable audio", f"{name}: {_short(error, store)}")


def _resampled(store: Store, name: str, sample_rate: int) -> Iterator[np.ndarray]:
  """One channel of a sound, in blocks if it is long: samples float32."""
  import soxr
  _, channel = store_lib.channel_of(name)
  with store.open(name) as opened, _sound(opened, name) as sound:
    rate, seconds = sound.samplerate, sound.frames / sound.samplerate
    if seconds > _LONGEST_S:
      raise Bad("audio too long", f"{name} is {seconds / 3600:.1f} h long; at most "
                f"{_LONGEST_S / 3600:.0f} h: cut it")
    if channel is not None and channel >= sound.channels:
      raise Bad("no such channel", f"{name}: there are {sound.channels}, from 0")
    stream = None
    if rate != sample_rate and (seconds > _BLOCK_S or not sound.frames):
      stream = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
    while True:
      wave = sound.read(int(rate * _BLOCK_S), dtype="float32", always_2d=True)
      last = len(wave) < int(rate * _BLOCK_S)
      if not np.isfinite(wave).all():
        raise Bad("audio not finite", f"{name} has NaN or infinite samples")
      if len(wave) and np.abs(wave).max() > _LOUDEST:
        raise Bad("audio out of range", f"{name} has samples up to {np.abs(wave).max():.3g}; full "
                  "scale is 1: divide it")
      mono = wave.mean(1) if channel is None else wave[:, channel]
      if stream is not None:
        mono = stream.resample_chunk(np.ascontiguousarray(mono), last=last)
      elif rate != sample_rate and len(mono):
        mono = soxr.resample(mono, rate, sample_rate)
      if len(mono):
        yield mono
      if last:
        return


def _sound(opened: BinaryIO, name: str) -> Any:
  """A sound to be read: by libsndfile, or what it can't read by PyAV, if that is installed."""
  import soundfile
  kind = store_lib.extension(name)
  if kind not in _BY_AV:
    try:
      return soundfile.SoundFile(opened)
    except soundfile.LibsndfileError:
      opened.seek(0)
      if opened.read(12)[4:8] != b"ftyp":  # MP4 under another name
        raise
      opened.seek(0)
  from omnijax.data import av_sound
  return av_sound.AvSound(opened, kind, name)


def _short(error: Exception, store: Store) -> str:
  """The first line of an error, without the folder, which differs between machines."""
  text = f"{type(error).__name__}: {error}"
  if store.root:
    text = text.replace(os.path.join(store.root, ""), "")
  return text.splitlines()[0][:200]
