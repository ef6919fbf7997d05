"""Text tokenizer: SentencePiece pieces with byte fallback, exact on any Unicode string.

A directory holds `tokenizer.model` (SentencePiece) and `config.json` (kind, size, fingerprint).
Nothing is normalised and no space is added or removed, so decode(encode(s)) == s for every string
that can be written as UTF-8: leading and repeated spaces, newlines, NUL and U+2581 included.
Lone surrogates are no Unicode text and raise.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import sentencepiece

DEFAULT = Path(__file__).parent / "pretrained" / "text"
_SPACE = "\u2581"  # how SentencePiece writes a space inside a piece
_BYTES = 256


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
  """A loaded tokenizer; make one with `load`."""

  processor: sentencepiece.SentencePieceProcessor
  fingerprint: str  # hex, of the model's bytes
  bytes_of: tuple[bytes, ...]  # what each piece stands for
  id_of_byte: tuple[int, ...]

  @property
  def size(self) -> int:
    """Number of pieces; ids are 0 .. size - 1."""
    return len(self.bytes_of)

  def encode(self, text: str) -> list[int]:
    """Ids of a string.

    Raises:
      ValueError: the string holds a lone surrogate, so it has no UTF-8 form.
    """
    try:
      text.encode()
    except UnicodeEncodeError as e:
      raise ValueError(
        f"text holds {text[e.start]!r} at {e.start}, which is no Unicode character; want text "
        'without lone surrogates, such as text.encode("utf-8", "replace").decode()'
      ) from None
    # SentencePiece can't tell the character U+2581 from a space: spell it in bytes
    ids: list[int] = []
    for i, part in enumerate(text.split(_SPACE)):
      ids += [self.id_of_byte[b] for b in _SPACE.encode()] if i else []
      ids += self.processor.EncodeAsIds(part)
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """The string of ids; bytes that form no UTF-8 (a cut character) become U+FFFD.

    Raises:
      ValueError: an id is outside 0 .. size - 1.
    """
    bad = [i for i in ids if not 0 <= i < self.size]
    if bad:
      raise ValueError(f"id {bad[0]} is no piece; want ids in 0..{self.size - 1}")
    return b"".join(self.bytes_of[i] for i in ids).decode("utf-8", "replace")


def load(path: Path | str = DEFAULT) -> TextTokenizer:
  """Loads a tokenizer's directory.

  Raises:
    ValueError: a file is missing, or the model is not the one that `config.json` describes.
  """
  path = Path(path)
  config_file, model_file = path / "config.json", path / "tokenizer.model"
  for file in (config_file, model_file):
    if not file.is_file():
      raise ValueError(f"{path} is no text tokenizer: {file.name} is missing; train one with "
                       "`omnijax tokenizer train text`, or use the packaged one")
  config = json.loads(config_file.read_text())
  model = model_file.read_bytes()
  fingerprint = hashlib.sha256(model).hexdigest()[:16]
  if fingerprint != config.get("fingerprint"):
    raise ValueError(f"{model_file} has fingerprint {fingerprint}, but {config_file} says "
                     f"{config.get('fingerprint')}; restore the file, or train again")
  return _build(model, fingerprint)


def train(
  files: Sequence[Path],
  out: Path,
  *,
  size: int,
  kind: Literal["unigram", "bpe"] = "unigram",
) -> TextTokenizer:
  """Trains on the lines of UTF-8 files and writes the tokenizer's directory.

  Args:
    files: text files; a line is one sentence, its spaces count, empty lines are skipped.
    out: directory to write, over an older tokenizer if there is one.
    size: number of pieces, of which 257 are the bytes and the unknown piece.
    kind: unigram language model (Kudo 2018) or byte-pair encoding.

  Raises:
    ValueError: no text, a size the text can't fill, or an unknown kind.
  """
  if kind not in ("unigram", "bpe"):
    raise ValueError(f"kind={kind!r}; want 'unigram' or 'bpe'")
  if size <= _BYTES + 1:
    raise ValueError(f"size={size}; want more than {_BYTES + 1}: the bytes and the unknown piece "
                     "take that many")
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.Train(
      sentence_iterator=_lines(files),
      model_writer=model,
      vocab_size=size,
      model_type=kind,
      byte_fallback=True,
      split_digits=True,
      normalization_rule_name="identity",
      remove_extra_whitespaces=False,
      add_dummy_prefix=False,
      character_coverage=0.999,  # rarer characters are spelt in bytes
      bos_id=-1,
      eos_id=-1,
      pad_id=-1,
      num_threads=4,  # a fixed number: the sums, and so the pieces, depend on it
      minloglevel=2,
    )
  except (RuntimeError, OSError) as e:
    reason = str(e).strip().splitlines()[-1] if str(e).strip() else "no reason given"
    raise ValueError(f"no tokenizer of size={size}, kind={kind!r} from {len(files)} files: "
                     f"{reason}; give more text, or another size") from e
  out = Path(out)
  out.mkdir(parents=True, exist_ok=True)
  data = model.getvalue()
  fingerprint = hashlib.sha256(data).hexdigest()[:16]
  (out / "config.json").unlink(missing_ok=True)  # whole or invisible: this file is written last
  (out / "tokenizer.model").write_bytes(data)
  config = {"kind": kind, "size": size, "fingerprint": fingerprint}
  (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
  return _build(data, fingerprint)


def _lines(files: Sequence[Path]) -> Iterator[str]:
  found = False
  for file in files:
    try:
      for line in Path(file).read_text("utf-8").split("\n"):
        if line.strip():
          found = True
          yield line
    except (OSError, UnicodeDecodeError) as e:
      raise ValueError(f"{file}: {e}; want a file of UTF-8 text") from e
  if not found:
    raise ValueError(f"{len(files)} files without a line of text; want at least one sentence")


def _build(model: bytes, fingerprint: str) -> TextTokenizer:
  processor = sentencepiece.SentencePieceProcessor()
  processor.LoadFromSerializedProto(model)
  bytes_of: list[bytes] = []
  id_of_byte = [-1] * _BYTES
  for i in range(processor.GetPieceSize()):
    piece = processor.IdToPiece(i)
    if processor.IsByte(i):
      value = int(piece[3:5], 16)  # "<0xE2>"
      id_of_byte[value] = i
      bytes_of.append(bytes([value]))
    elif processor.IsUnknown(i) or processor.IsControl(i):
      bytes_of.append(b"")
    else:
      bytes_of.append(piece.replace(_SPACE, " ").encode())
  if -1 in id_of_byte:
    raise ValueError(f"the model has no piece for byte {id_of_byte.index(-1)}; train it with "
                     "byte_fallback, so that any text has an encoding")
  return TextTokenizer(processor, fingerprint, tuple(bytes_of), tuple(id_of_byte))
