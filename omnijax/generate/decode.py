"""Text, pictures and sound in, text, pictures and sound out.

H, W pixels  h, w codes  C channels  L samples  T frames  Q codebooks
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.data import documents, encode, media
from omnijax.data.documents import Part
from omnijax.data.sources import Bad, Store
from omnijax.generate import parse
from omnijax.generate.engine import Engine, Goal, To
from omnijax.generate.sample import Sampling
from omnijax.model.transformer import Omni

_KINDS = {"text": vocab_lib.TEXT, "image": vocab_lib.IMAGE, "audio": vocab_lib.AUDIO}
_OPTIONS = {"role", "transcript"}


@dataclasses.dataclass(frozen=True)
class Output:
  """What the model wrote in its turn; None where there is none of a kind, the first of several."""

  text: str | None
  image: np.ndarray | None  # uint8 [H, W, C]
  audio: np.ndarray | None  # float32 [L], at the audio tokenizer's sample rate
  monologue: str | None  # the text that goes with the speech
  codes: tuple[Part, ...]  # everything, in order, before the tokenizers


class Generator:
  """A trained model with its tokenizers.

  Args:
    model: the weights, on the devices where it shall run.
    vocab: must be the model's.
    data_options: of the training run; its delays say how speech is laid out.
    tokenizers: has `text`, `image` and `audio`; a modality that is never used may be None.
    max_positions: most positions of a prompt and its output together.
    max_batch: prompts that are run together.
  """

  def __init__(self, model: Omni, vocab: vocab_lib.Vocab, data_options: config_lib.Data,
               tokenizers: Any, *, max_positions: int = 512, max_batch: int = 64):
    if vocab != model.vocab:
      raise ValueError(f"vocabulary {vocab} is not the model's, {model.vocab}; load both from one "
                       "run.")
    self.vocab, self.data, self.tokenizers = vocab, data_options, tokenizers
    self.engine = Engine(model, data_options, max_positions=max_positions, max_batch=max_batch)

  @classmethod
  def load(cls, run_dir: Path, *, max_positions: int = 512, max_batch: int = 64) -> "Generator":
    """The newest checkpoint of a run."""
    # Here, so that generation from a model in memory needs no orbax.
    from omnijax import checkpoint
    run, vocab, model, tokenizers = checkpoint.load_for_inference(run_dir)
    return cls(model, vocab, run.data, tokenizers, max_positions=max_positions,
               max_batch=max_batch)

  def generate(self, prompts: Sequence[Sequence[Mapping[str, Any]]], *, to: To,
               sampling: Sampling = Sampling(), seed: int = 0,
               image_size: tuple[int, int] | None = None, max_new: int = 256,
               guidance: float = 1.0) -> list[Output]:
    """Answers each prompt in one modality.

    Args:
      prompts: each a list of parts as in a manifest: {"text": str}, {"image": path or array} or
        {"audio": path or array, "transcript": str}, with a "role" of "user" (without it), or
        "assistant", or None for a document that has no turns and is just continued. Pixels are
        uint8 [H, W] or [H, W, C], samples float [L] at the tokenizer's rate.
      to: text, image or audio: one output of that kind, words of the model's choice before an
        image and along with speech. any: what the model likes.
      sampling: how tokens are drawn.
      seed: output i depends on (seed, i), its prompt and the settings, not on the other prompts.
      image_size: height and width in pixels; None leaves it to the model.
      max_new: most positions of text or speech (one is 80 ms).
      guidance: for images, how much more what the user says counts than in training: logits are
        u + guidance * (c - u), u without any text and speech (Ho and Salimans, 2022).

    Raises:
      ValueError: an unknown part, a missing or unreadable file, an image of a size that the
        tokenizer can't encode, an empty prompt, or one that doesn't fit max_positions.
    """
    goal = Goal(to=to, grid=self._grid(image_size), max_new=max_new)
    said = self._encode(prompts)
    render = lambda parts: documents.render(parts, documents.PLAIN, False, self.data, self.vocab)
    without = None
    if guidance != 1 and to in ("image", "any"):
      without = [render([documents.unasked(p) for p in parts]) for parts in said]
    streams = self.engine.write([render(parts) for parts in said], [goal] * len(said),
                                sampling=sampling, seed=seed, guidance=guidance, without=without)
    return self.decode([parse.parts(s, self.engine.layout) for s in streams])

  def _grid(self, image_size: tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
      return None
    step = self._tokenizer("image").downsample
    if any(n <= 0 or n % step for n in image_size):
      near = [max(round(n / step), 1) * step for n in image_size]
      raise ValueError(f"image_size is {tuple(image_size)} pixels (height, width); the image "
                       f"tokenizer wants multiples of {step}, such as {tuple(near)}.")
    h, w = (n // step for n in image_size)
    vocab_lib.rows(max(h, w))  # raises when it is too large
    return h, w

  def _tokenizer(self, kind: str) -> Any:
    found = getattr(self.tokenizers, kind)
    if found is None:
      raise ValueError(f"this generator has no {kind} tokenizer; load a run that has one.")
    return found

  def _encode(self, prompts: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[Part]]:
    """The parts of each prompt, and an empty one that gives the turn to the assistant."""
    where = [(i, j) for i, parts in enumerate(prompts) for j in range(len(parts))]
    kinds = {(i, j): _kind(prompts[i][j], f"prompt {i}, part {j}") for i, j in where}
    codes: dict[tuple[int, int], np.ndarray] = {}
    for name, kind in _KINDS.items():
      mine = [at for at in where if kinds[at] == kind]
      if mine:
        tok = self._tokenizer(name)
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
      words = np.asarray(self._tokenizer("text").encode(words), np.int32)
    return Part(kind, role, codes, words)

  def decode(self, turns: list[list[Part]]) -> list[Output]:
    """The first picture and sound of each turn, equal shapes decoded together, and all text."""
    def media(kind: int, decode: Any) -> dict[int, np.ndarray]:
      first = {i: next((p.codes for p in parts if p.kind == kind), None)
               for i, parts in enumerate(turns)}
      found: dict[int, np.ndarray] = {}
      for shape in sorted({c.shape for c in first.values() if c is not None}):
        mine = [i for i, c in first.items() if c is not None and c.shape == shape]
        found.update(zip(mine, decode(np.stack([first[i] for i in mine])), strict=True))
      return found

    def pixels(codes: np.ndarray) -> np.ndarray:
      return np.round(np.asarray(self._tokenizer("image").decode(codes)) * 255).astype(np.uint8)

    def sound(codes: np.ndarray) -> np.ndarray:
      return np.asarray(self._tokenizer("audio").decode(codes), np.float32)

    images, waves = media(vocab_lib.IMAGE, pixels), media(vocab_lib.AUDIO, sound)

    def text(ids: list[np.ndarray]) -> str | None:
      whole = np.concatenate(ids).tolist() if ids else None
      return None if whole is None else self._tokenizer("text").decode(whole)

    return [Output(text([p.codes for p in parts if p.kind == vocab_lib.TEXT]), images.get(i),
                   waves.get(i), text([p.words for p in parts if p.words is not None]),
                   tuple(parts)) for i, parts in enumerate(turns)]


def _kind(part: Mapping[str, Any], where: str) -> int:
  """The kind of a part, which is checked."""
  kinds = [k for k in _KINDS if k in part]
  unknown = sorted(set(part) - set(_KINDS) - _OPTIONS)
  if unknown or len(kinds) != 1:
    raise ValueError(f"{where} has the keys {sorted(part)}; wanted one of {sorted(_KINDS)}, and "
                     "perhaps role or transcript.")
  role = part.get("role", "user")
  if role is not None and role not in documents.ROLES:
    raise ValueError(f"{where} has the role {role!r}; wanted one of {sorted(documents.ROLES)}, or "
                     "None for a document without turns.")
  if kinds == ["text"] and not (isinstance(part["text"], str) and part["text"]):
    raise ValueError(f"{where}: text is {part['text']!r}; wanted a string that isn't empty.")
  return _KINDS[kinds[0]]


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
