"""Units of the work of preparing: one shard of media, or one of documents.

Each is written whole and marks itself as done, by a file written last. What comes out depends on
the unit alone: not on who does it, nor after what.

Q codebooks  T frames
"""

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from omnijax import vocab as vocab_lib
from omnijax.data import documents, encode, media, records, sources
from omnijax.data.sources import Bad

_NAMES = vocab_lib.MODALITIES


class Place(NamedTuple):
  """Where the codes of a medium lie, their sides (rows, cols; frames, codebooks), and its hash."""

  offset: int
  sides: tuple[int, int]
  content: str


class Medium(NamedTuple):
  """A name for the store, and whether silence is good."""

  name: str
  quiet: bool = False


@dataclasses.dataclass(frozen=True)
class Work:
  """What every unit needs to know; cheap to send to another process."""

  store: sources.Store
  out: pathlib.Path
  image_size: int = 0


@dataclasses.dataclass(frozen=True)
class MediaUnit:
  """Pictures or recordings of one shard."""

  kind: int
  number: int
  media: Sequence[Medium]

  def table(self, out: pathlib.Path) -> pathlib.Path:
    """What says what became of each; written last."""
    return records.shard_path(out, self.kind, self.number).with_suffix(".json")


@dataclasses.dataclass(frozen=True)
class DocumentsUnit:
  """Items of one shard, and where the media that they name lie, by kind."""

  number: int
  items: Sequence[sources.Item]
  places: Mapping[int, Mapping[str, Place | Bad]]

  def table(self, out: pathlib.Path) -> pathlib.Path:
    """Their parts, sizes, hashes and rejects; written last."""
    return out / f"documents-{self.number:05d}.npz"


def decoder(work: Work, tokenizers: encode.Tokenizers, kind: int) -> media.Decode:
  """What makes an array of a medium."""
  if kind == vocab_lib.IMAGE:
    image = tokenizers.image
    assert image is not None
    return functools.partial(_image, work.store, image.channels, image.downsample, work.image_size)
  assert tokenizers.audio is not None
  return functools.partial(_audio, work.store, tokenizers.audio.sample_rate)


def _image(store: sources.Store, channels: int, downsample: int, size: int, medium: Medium
           ) -> np.ndarray | Bad:
  return media.decode_image(store, medium.name, channels, downsample, size)


def _audio(store: sources.Store, sample_rate: int, medium: Medium) -> np.ndarray | Bad:
  return media.decode_audio(store, medium.name, sample_rate, medium.quiet)


def tokenise_media(work: Work, tokenizers: encode.Tokenizers, unit: MediaUnit,
                   stream: Iterable[np.ndarray | Bad]) -> None:
  """Writes the codes of one shard of media.

  Args:
    work: where.
    tokenizers: of all modalities.
    unit: what.
    stream: the decoded media of the unit, in order.
  """
  tok = getattr(tokenizers, _NAMES[unit.kind])
  hashes: list[str] = []

  def hashed() -> Iterable[np.ndarray | Bad]:
    for array in stream:
      hashes.append("" if isinstance(array, Bad) else
                    hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest())
      yield array

  codes = (encode.images if unit.kind == vocab_lib.IMAGE else encode.audio)(tok, hashed())
  good = [c for c in codes if not isinstance(c, Bad)]
  for c in good:
    if c.size and not 0 <= c.min() <= c.max() < tok.codes:
      raise ValueError(f"the {_NAMES[unit.kind]} tokenizer gave codes {c.min()} to {c.max()}; it "
                       f"says it has {tok.codes}.")
  flat = [c.astype(records.token_type(tok.codes)).tobytes() for c in good]
  records.write(records.shard_path(work.out, unit.kind, unit.number), b"".join(flat))
  records.write_json(unit.table(work.out), [
    [c.kind, c.detail] if isinstance(c, Bad) else [*c.shape, digest]
    for c, digest in zip(codes, hashes, strict=True)])


def places(unit: MediaUnit, out: pathlib.Path, offset: int
           ) -> tuple[dict[str, Place | Bad], int]:
  """Where the media of a finished unit lie, or what is wrong, and the offset behind the last."""
  found: dict[str, Place | Bad] = {}
  value = json.loads(unit.table(out).read_text("utf-8"))
  for medium, entry in zip(unit.media, value, strict=True):
    if isinstance(entry[0], str):
      found[medium.name] = Bad(*entry)
    else:
      rows, cols, digest = entry
      found[medium.name] = Place(offset, (rows, cols), digest)
      offset += rows * (cols if unit.kind == vocab_lib.IMAGE else 1)
  return found, offset


def tokenise_documents(work: Work, tokenizer: encode.Text, frame_rate: float,
                       unit: DocumentsUnit) -> None:
  """Writes the text of one shard of documents, and its tables; offsets into text are its own.

  Args:
    work: where.
    tokenizer: of text.
    frame_rate: of audio, in Hz.
    unit: what.
  """
  text: list[int] = []
  parts, sizes, about, ids, rejects = [], [], [], [], []
  for item in unit.items:
    words: list[int] = []
    try:
      if isinstance(item.parts, Bad):
        raise item.parts
      rows = [_part(tokenizer, frame_rate, part, unit.places, words, len(text))
              for part in item.parts]
    except Bad as bad:
      rejects.append({"line": item.line, "id": item.id, "reason": str(bad)})
      continue
    text += words
    parts += rows
    sizes.append(len(rows))
    ids.append(item.id)
    about.append((item.line, digest_of(item.id), digest_of(item.group or item.id),
                  digest_of(*_content(item.parts, unit.places))))
  size = tokenizer.size
  if text and not 0 <= min(text) <= max(text) <= size:
    raise ValueError(f"the text tokenizer gave ids {min(text)} to {max(text)}; it says it has "
                     f"{size}.")
  flat = np.array(text, records.token_type(size + 1))
  records.write(records.shard_path(work.out, vocab_lib.TEXT, unit.number), flat.tobytes())
  buffer = io.BytesIO()
  np.savez(buffer, parts=np.array(parts, documents.PART), sizes=np.array(sizes, np.int32),
           about=np.array(about, ABOUT), text=len(text), ids=json.dumps(ids),
           rejects=json.dumps(rejects))
  records.write(unit.table(work.out), buffer.getvalue())


# Of each good document: its line, and hashes of its id, of its group, and of all that is in it.
ABOUT = np.dtype([("line", "<i8"), ("id", "V16"), ("group", "V16"), ("content", "V16")])


def digest_of(*what: str) -> bytes:
  """16 bytes that tell texts apart."""
  digest = hashlib.blake2b(digest_size=16)
  for text in what:
    content = text.encode()
    digest.update(len(content).to_bytes(8, "little") + content)
  return digest.digest()


def _content(parts: Sequence[sources.RawPart], found: Mapping[int, Mapping[str, Place | Bad]]
             ) -> Iterable[str]:
  """What two documents have in common that say the same."""
  for part in parts:
    yield f"{part.kind} {part.role} {part.transcript} {part.timed}"
    for name in part.media:
      place = found[part.kind][name]
      yield place.content if isinstance(place, Place) else ""
    if not part.media:
      yield part.value


def _part(text: encode.Text, frame_rate: float, part: sources.RawPart,
          found: Mapping[int, Mapping[str, Place | Bad]], words: list[int], base: int
          ) -> tuple[int, ...]:
  """One row of `documents.PART`; ids of its text are appended to `words`."""
  start = base + len(words)
  if part.kind == vocab_lib.TEXT:
    words += text.encode(part.value)
    length = base + len(words) - start
    if not length:
      raise Bad("empty document", f"the text {part.value!r} has no tokens")
    return part.kind, part.role, 0, 0, length, -1, 0, start, 0, -1
  (rows, cols), offset = _place(part, part.value, found)
  if part.kind == vocab_lib.IMAGE:
    return part.kind, part.role, rows, cols, rows * cols, -1, 0, offset, 0, -1
  heard = -1
  if part.listen is not None:
    (others, _), heard = _place(part, part.listen, found)
    if abs(others - rows) > 1:
      raise Bad("sides of unequal length", f"{part.value} has {rows} frames, {part.listen} has "
                f"{others}; wanted two recordings of the same time")
    rows = min(rows, others)
  if part.transcript is None:
    return part.kind, part.role, 0, 0, rows, -1, 0, offset, 0, heard
  if part.timed is not None:
    at_T, count = _placed(part, text, frame_rate, rows)
    words += at_T
    return part.kind, part.role, 0, 0, rows, count, 1, offset, start, heard
  ids = text.encode(part.transcript)
  # What is only listened to carries no words in its frames, so any length will do.
  if len(ids) > rows and part.role != documents.USER:
    raise Bad("transcript does not fit", f"{part.value} has {rows} frames for the {len(ids)} "
              f"pieces of {part.transcript!r}; at most one piece a frame")
  words += ids
  return part.kind, part.role, 0, 0, rows, len(ids), 0, offset, start, heard


def _place(part: sources.RawPart, name: str, found: Mapping[int, Mapping[str, Place | Bad]]
           ) -> tuple[tuple[int, int], int]:
  place = found[part.kind][name]
  if isinstance(place, Bad):
    raise place
  return place.sides, place.offset


def _placed(part: sources.RawPart, text: encode.Text, frame_rate: float, frames: int
            ) -> tuple[list[int], int]:
  """The pieces of timed words at the frames where they begin, else at the next free one.

  In a dialogue, where answers are short and each frame counts, a piece that is nothing but the
  space before a word is left out where a gap in time says as much.

  Returns:
    ids [T], `text.size` where there is none, and the number of pieces.
  """
  assert part.timed is not None
  at_T = [text.size] * frames
  free, count = 0, 0
  for i, (start, word) in enumerate(part.timed):
    pieces = text.encode(f" {word}" if i else word)
    begin = int(start * frame_rate)
    if part.listen is not None and i and begin > free and pieces[:1] == text.encode(" "):
      pieces = pieces[1:]
    free = max(free, begin)
    if free + len(pieces) > frames:
      raise Bad("transcript does not fit", f"{part.value} has {frames} frames; {word!r} at "
                f"{start:.2f} s would end at frame {free + len(pieces)}")
    at_T[free : free + len(pieces)] = pieces
    free += len(pieces)
    count += len(pieces)
  return at_T, count
