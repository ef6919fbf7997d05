"""Text, pictures and sound in, text, pictures and sound out.

H, W pixels  h, w codes  C channels  L samples  T frames  Q codebooks
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.data.documents import Part
from omnijax.generate import parse
from omnijax.generate.engine import Engine
from omnijax.generate.prompts import Prompts
from omnijax.generate.sample import Sampling
from omnijax.generate.turns import Goal, To
from omnijax.model.transformer import Omni


@dataclasses.dataclass(frozen=True)
class Output:
  """What the model wrote in its turn; None where there is none of a kind, the first of several."""

  text: str | None
  image: np.ndarray | None  # uint8 [H, W, C]
  audio: np.ndarray | None  # float32 [L], at the audio tokenizer's sample rate
  monologue: str | None  # the text that goes with the speech
  codes: tuple[Part, ...]  # everything, in order, before the tokenizers


class Generator(Prompts):
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
    super().__init__(vocab, data_options, tokenizers)
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
    goal = Goal(to=to, grid=self.grid(image_size), max_new=max_new)
    said = self.encode(prompts)
    without = None
    if guidance != 1 and to in ("image", "any"):
      without = [self.without(parts) for parts in said]
    streams = self.engine.write([self.render(parts) for parts in said], [goal] * len(said),
                                sampling=sampling, seed=seed, guidance=guidance, without=without)
    return self.decode([parse.parts(s, self.engine.layout) for s in streams])

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
      return np.round(np.asarray(self.tokenizer("image").decode(codes)) * 255).astype(np.uint8)

    def sound(codes: np.ndarray) -> np.ndarray:
      return np.asarray(self.tokenizer("audio").decode(codes), np.float32)

    images, waves = media(vocab_lib.IMAGE, pixels), media(vocab_lib.AUDIO, sound)

    def text(ids: list[np.ndarray]) -> str | None:
      whole = np.concatenate(ids).tolist() if ids else None
      return None if whole is None else self.tokenizer("text").decode(whole)

    return [Output(text([p.codes for p in parts if p.kind == vocab_lib.TEXT]), images.get(i),
                   waves.get(i), text([p.words for p in parts if p.words is not None]),
                   tuple(parts)) for i, parts in enumerate(turns)]
