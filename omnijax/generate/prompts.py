"""Parts as people give them (text, files, arrays) to prompts in streams.

H, W pixels  h, w codes  C channels  L samples  T frames  Q codebooks
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.data import documents, encode, media
from omnijax.data.documents import Part, Streams
from omnijax.data.sources import Bad, Store

KINDS = {"text": vocab_lib.TEXT, "image": vocab_lib.IMAGE, "audio": vocab_lib.AUDIO}
_OPTIONS = {"role", "transcript"}


class Prompts:
  """The tokenizers of a run, and how its data are laid out.

  Args:
    vocab: of the model.
    data_options: of the training run; its delays say how speech is laid out.
    tokenizers: has `text`, `image` and `audio`; a modality that is never used may be None.
  """

  def __init__(self, vocab: vocab_lib.Vocab, data_options: config_lib.Data, tokenizers: Any):
    self.vocab, self.data, self.tokenizers = vocab, data_options, tokenizers

  def render(self, parts: Sequence[Part]) -> Streams:
    """A prompt, whose final EOS marks where the answer begins."""
    return documents.render(parts, documents.PLAIN, False, self.data, self.vocab)

  def without(self, parts: Sequence[Part]) -> Streams:
    """The same without what is asked, for classifier-free guidance."""
    return self.render([documents.unasked(p) for p in parts])

  def grid(self, image_size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Codes of a picture of so many pixels; None is any size.

    Raises:
      ValueError: the tokenizer can't make it.
    """
    if image_size is None:
      return None
    step = self.tokenizer("image").downsample
    if any(n <= 0 or n % step for n in image_size):
      near = [max(round(n / step), 1) * step for n in image_size]
      raise ValueError(f"image_size is {tuple(image_size)} pixels (height, width); the image "
                       f"tokenizer wants multiples of {step}, such as {tuple(near)}.")
    h, w = (n // step for n in image_size)
    vocab_lib.rows(max(h, w))  # raises when it is too large
    return h, w

  def tokenizer(self, kind: str) -> Any:
    """The tokenizer of a kind.

    Raises:
      ValueError: there is none.
    """
    found = getattr(self.tokenizers, kind)
    if found is None:
      raise ValueError(f"this generator has no {kind} tokenizer; load a run that has one.")
    return found

  def encode(self, prompts: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[Part]]:
    """The parts of each prompt, and an empty one that gives the turn to the assistant.

    Raises:
      ValueError: an unknown part, a missing or unreadable file, an image of a size that the
        tokenizer can't encode, or an empty prompt.
    """
    where = [(i, j) for i, parts in enumerate(prompts) for j in range(len(parts))]
    kinds = {(i, j): _kind(prompts[i][j], f"prompt {i}, part {j}") for i, j in where}
    codes: dict[tuple[int, int], np.ndarray] = {}
    for name, kind in KINDS.items():
      mine = [at for at in where if kinds[at] == kind]
      if mine:
        tok = self.tokenizer(name)
        values = [prompts[i][j][name] for i, j in mine]
        if kind == vocab_lib.TEXT:
          found = [np.asarray(tok.encode(v), np.int32) for v in values]
        elif kind == vocab_lib.IMAGE:
          found = encode.images(tok, [_pixels(v, tok) for v in values])
        else:
          found = encode.audio(tok, [_wave(v, tok) for v in values])
        codes.update(zip(mine, found, strict=True))
    out = []
    for i, parts in enumerate(prompts):
      if not parts:
        raise ValueError(f"prompt {i} is empty; give at least one part, such as "
                         '{"text": "a red bus"}.')
      ready = [self._part(part, kinds[i, j], codes[i, j]) for j, part in enumerate(parts)]
      if any(p.role for p in ready):
        ready.append(Part(vocab_lib.TEXT, documents.ASSISTANT, np.zeros(0, np.int32)))
      out.append(ready)
    return out

  def _part(self, part: Mapping[str, Any], kind: int, codes: np.ndarray) -> Part:
    role = documents.NONE
    if part.get("role", "user") is not None:
      role = documents.ROLES[part.get("role", "user")]
    words = part.get("transcript")
    if words is not None:
      words = np.asarray(self.tokenizer("text").encode(words), np.int32)
    return Part(kind, role, codes, words)


def _kind(part: Mapping[str, Any], where: str) -> int:
  """The kind of a part, which is checked."""
  kinds = [k for k in KINDS if k in part]
  unknown = sorted(set(part) - set(KINDS) - _OPTIONS)
  if unknown or len(kinds) != 1:
    raise ValueError(f"{where} has the keys {sorted(part)}; wanted one of {sorted(KINDS)}, and "
                     "perhaps role or transcript.")
  role = part.get("role", "user")
  if role is not None and role not in documents.ROLES:
    raise ValueError(f"{where} has the role {role!r}; wanted one of {sorted(documents.ROLES)}, or "
                     "None for a document without turns.")
  if kinds == ["text"] and not (isinstance(part["text"], str) and part["text"]):
    raise ValueError(f"{where}: text is {part['text']!r}; wanted a string that isn't empty.")
  return KINDS[kinds[0]]


def _file(value: Any, read: Any) -> np.ndarray:
  """What `read` makes of a path; its complaint is raised."""
  found = read(os.fspath(value))
  if isinstance(found, Bad):
    raise ValueError(f"{found.kind}: {found.detail}; give another file.")
  return found


def _pixels(value: Any, tok: Any) -> np.ndarray:
  """Pixels uint8 [H, W, C] of a path or an array."""
  if not isinstance(value, np.ndarray):
    return _file(value, lambda path: media.decode_image(Store(""), path, tok.channels,
                                                        tok.downsample))
  from PIL import Image
  flat = value[..., 0] if value.ndim == 3 and value.shape[2] == 1 else value
  if flat.dtype != np.uint8 or flat.ndim not in (2, 3) or (flat.ndim == 3 and flat.shape[2] != 3):
    raise ValueError(f"an image array is {value.dtype}{list(value.shape)}; wanted uint8 [H, W], "
                     "[H, W, 1] or [H, W, 3].")
  h, w = flat.shape[:2]
  most = vocab_lib.MAX_GRID * tok.downsample
  if not h * w or h % tok.downsample or w % tok.downsample or max(h, w) > most:
    raise ValueError(f"an image array is {h} high and {w} wide; the tokenizer wants multiples of "
                     f"{tok.downsample}, at most {most}: resize or crop it.")
  image = Image.fromarray(flat).convert("RGB" if tok.channels == 3 else "L")
  return np.asarray(image).reshape(h, w, tok.channels)


def _wave(value: Any, tok: Any) -> np.ndarray:
  """Samples float32 [L] of a path or an array."""
  if not isinstance(value, np.ndarray):
    return _file(value, lambda path: media.decode_audio(Store(""), path, tok.sample_rate))
  if value.ndim != 1 or not value.size or not np.issubdtype(value.dtype, np.floating):
    raise ValueError(f"an audio array is {value.dtype}{list(value.shape)}; wanted float [L] in "
                     f"[-1, 1] at {tok.sample_rate} Hz, one channel, at least one sample.")
  if not np.isfinite(value).all():
    raise ValueError("an audio array has NaN or infinite samples; wanted [-1, 1].")
  return value.astype(np.float32)
