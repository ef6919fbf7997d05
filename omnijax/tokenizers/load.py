"""The three tokenizers of a run, and the id space that they span."""

from pathlib import Path
from typing import NamedTuple

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.tokenizers import audio, image, text


class Tokenizers(NamedTuple):
  """One tokenizer for each modality."""

  text: text.TextTokenizer
  image: image.ImageTokenizer
  audio: audio.AudioTokenizer


def load_all(cfg: config_lib.Tokenizers) -> Tokenizers:
  """Loads the tokenizers that a run names, by directory or the packaged ones.

  Raises:
    ValueError: a directory is missing (the command that makes one is named) or damaged.
  """
  return Tokenizers(text=text.load(directory("text", cfg.text)),
                    image=image.load(directory("image", cfg.image)),
                    audio=audio.load(directory("audio", cfg.audio)))


def directory(kind: str, given: str | Path) -> Path:
  """The directory of a tokenizer: the given one, or the one that ships with omnijax.

  Raises:
    ValueError: there is none; it says how to get one.
  """
  shipped = {"text": text.DEFAULT, "image": image.DEFAULT, "audio": audio.DEFAULT}[kind]
  packaged = str(given) == config_lib.PACKAGED
  path = shipped if packaged else Path(given)
  if not (path / "config.json").is_file():
    raise ValueError(f"there is no {kind} tokenizer in {path} (no config.json); name the directory "
                     f'of one, "{config_lib.PACKAGED}" for the one that ships with omnijax, or '
                     f"train one: omnijax tokenizer train {kind} --data FILE --out "
                     f"{'DIR' if packaged else path}")
  return path


def vocab_of(tokenizers: Tokenizers, cfg: config_lib.Tokenizers) -> vocab_lib.Vocab:
  """The id space of a model that uses the first `cfg.codebooks` codebooks of the codec.

  Raises:
    ValueError: the codec has fewer, or a tokenizer another size than the run says.
  """
  if cfg.codebooks > tokenizers.audio.codebooks:
    raise ValueError(f"tokenizers.codebooks is {cfg.codebooks}, but the audio tokenizer has "
                     f"{tokenizers.audio.codebooks}; use at most that many.")
  sizes = {"text": tokenizers.text.size, "image": tokenizers.image.codes,
           "audio": tokenizers.audio.codes}
  for kind, said in _said(cfg).items():
    if said not in (0, sizes[kind]):
      raise ValueError(f"tokenizers.{kind}_size is {said}, but the {kind} tokenizer has "
                       f"{sizes[kind]}; train one of that size, or set tokenizers.{kind}_size to "
                       "0.")
  return vocab_lib.Vocab(**sizes, codebooks=cfg.codebooks,
                         image_dim=tokenizers.image.vectors().shape[-1],
                         code_dim=tokenizers.audio.vectors(1).shape[-1])


def planned_vocab(cfg: config_lib.Tokenizers) -> vocab_lib.Vocab:
  """The id space of a run whose tokenizers may not exist yet: from the sizes it says, or theirs.

  Raises:
    ValueError: it says some sizes only, or none and there are no tokenizers.
  """
  sizes = _said(cfg)
  if not any(sizes.values()):
    return vocab_of(load_all(cfg), cfg)
  if not all(sizes.values()):
    raise ValueError(f"tokenizers.text_size, image_size and audio_size are {sizes}; give all three "
                     "or none.")
  return vocab_lib.Vocab(**sizes, codebooks=cfg.codebooks)


def _said(cfg: config_lib.Tokenizers) -> dict[str, int]:
  return {"text": cfg.text_size, "image": cfg.image_size, "audio": cfg.audio_size}


def vectors_of(tokenizers: Tokenizers, vocab: vocab_lib.Vocab) -> vocab_lib.Vectors:
  """What the codes of the vocabulary stand for."""
  return vocab_lib.Vectors(image_KA=tokenizers.image.vectors(),
                           audio_QCA=tokenizers.audio.vectors(vocab.codebooks))
