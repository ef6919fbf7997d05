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
from typing import Any

import numpy as np

from omnijax import vocab as vocab_lib
from omnijax.data.sources import Bad

CHUNK = 16  # files sent to a process at a time
_AHEAD = 4  # chunks decoded ahead, for each process
_LOUDEST = 16.0  # a little over full scale happens; far over is another unit, or damage

Decode = Callable[[str], np.ndarray | Bad]
Pool = Callable[[Sequence[str], Decode], Iterator[np.ndarray | Bad]]


@contextlib.contextmanager
def pool(processes: int) -> Iterator[Pool]:
  """What decodes many files, in their order, in that many processes; 0 is in this one."""
  if not processes:
    yield lambda names, decode: map(decode, names)
    return
  # Spawned: JAX may be running threads here, which a fork would break.
  context = multiprocessing.get_context("spawn")
  executor = concurrent.futures.ProcessPoolExecutor(processes, context, initializer=_start)
  try:
    yield functools.partial(_decoded, executor, _AHEAD * processes)
  finally:
    executor.shutdown(wait=True, cancel_futures=True)


def _decoded(executor: concurrent.futures.Executor, ahead: int, names: Sequence[str],
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
      raise ValueError("a decoding process was killed, perhaps for memory, at or soon after one "
                       f"of {', '.join(chunk)}; decode with fewer processes, or remove the file "
                       "that it can't survive.") from error
    waiting.extend(map(submit, itertools.islice(chunks, 1)))
    yield from arrays


def _decode_chunk(decode: Decode, names: Sequence[str]) -> list[np.ndarray | Bad]:
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


def decode_image(root: str, path: str, channels: int, downsample: int) -> np.ndarray | Bad:
  """Pixels uint8 [h, w, channels] of root/path, laid on white; sides must divide."""
  import PIL.Image
  import PIL.ImageOps
  try:
    _check_file(root, path)
    with warnings.catch_warnings():
      warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
      with PIL.Image.open(os.path.join(root, path)) as file:
        w, h = file.size
        turned = PIL.ImageOps.exif_transpose(file)
        pixels = _pixels(turned if turned is not None else file, channels)
  except Bad as bad:
    return bad
  except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
    return Bad("image too large", f"{path}: {error}")
  except Exception as error:  # Pillow's plug-ins raise nearly anything on corrupt files.
    return Bad("unreadable image", f"{path}: {_short(error, root)}")
  h, w = pixels.shape[:2]
  if h % downsample or w % downsample or max(h, w) > vocab_lib.MAX_GRID * downsample:
    return Bad("image size", f"{path} is {w} x {h} pixels; the tokenizer wants multiples of "
               f"{downsample}, at most {vocab_lib.MAX_GRID * downsample}: resize or crop it")
  return pixels


def _pixels(image: Any, channels: int) -> np.ndarray:
  import PIL.Image
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


def decode_audio(root: str, path: str, sample_rate: int) -> np.ndarray | Bad:
  """The sound of root/path as float32 [samples], mixed down and resampled to `sample_rate`."""
  import soundfile
  import soxr
  try:
    _check_file(root, path)
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      wave, rate = soundfile.read(os.path.join(root, path), dtype="float32", always_2d=True)
    if not len(wave):
      raise Bad("empty audio", f"{path} has no samples")
    if not np.isfinite(wave).all():
      raise Bad("audio not finite", f"{path} has NaN or infinite samples")
    if np.abs(wave).max() > _LOUDEST:
      raise Bad("audio out of range", f"{path} has samples up to {np.abs(wave).max():.3g}; full "
                "scale is 1: divide it")
    mono = wave.mean(1)
    if rate != sample_rate:
      mono = soxr.resample(mono, rate, sample_rate)
    if not len(mono):
      raise Bad("empty audio", f"{path} is shorter than one sample at {sample_rate} Hz")
    return np.ascontiguousarray(mono, np.float32)
  except Bad as bad:
    return bad
  except Exception as error:  # libsndfile and soxr raise their own kinds.
    return Bad("unreadable audio", f"{path}: {_short(error, root)}")


def _check_file(root: str, path: str) -> None:
  full = os.path.join(root, path)
  try:
    size = os.stat(full).st_size
  except OSError as error:
    raise Bad("missing file", f"{path}: {error.strerror}") from None
  if not os.path.isfile(full):
    raise Bad("missing file", f"{path} is not a file")
  if not size:
    raise Bad("empty file", f"{path} has 0 bytes")


def _short(error: Exception, root: str) -> str:
  """The first line of an error, without the folder, which differs between machines."""
  text = f"{type(error).__name__}: {error}".replace(os.path.join(root, ""), "")
  return text.splitlines()[0][:200]
