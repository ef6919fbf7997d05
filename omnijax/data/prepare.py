"""Raw documents to records: decode in parallel processes, tokenise in batches, skip what is bad.

Work is cut into shards, each written whole; what is already there is kept, so that killing it at
any moment and running it again gives the same bytes. An image or a recording is known by its
path: it is decoded and tokenised once, however many documents show it.
"""

import dataclasses
import functools
import io
import itertools
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import rich.console
import rich.progress

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.data import documents, encode, media, records, sources
from omnijax.data.sources import Bad

# Documents, images and recordings to a shard: what a crash can lose of each.
SHARD = {vocab_lib.TEXT: 8192, vocab_lib.IMAGE: 2048, vocab_lib.AUDIO: 512}
_STARTED = "started.json"
_NAMES = vocab_lib.MODALITIES

_Media = dict[int, dict[str, sources.Item]]  # kind -> path -> the item that mentions it first


@dataclasses.dataclass(frozen=True)
class _Place:
  """Where the codes of a medium lie, and their sides (rows, cols; frames, codebooks)."""

  offset: int
  sides: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _Job:
  """What every stage needs."""

  manifest: pathlib.Path
  out: pathlib.Path
  tokenizers: encode.Tokenizers
  shard: Mapping[int, int]
  strict: bool
  bar: rich.progress.Progress

  def refuse(self, item: sources.Item, bad: Bad) -> None:
    if self.strict:
      raise ValueError(f"{self.manifest} line {item.line} ({item.id}): {bad}; repair or remove "
                       "it, or prepare without --strict to skip what is bad.")


def prepare(manifest: pathlib.Path, out: pathlib.Path, *, tokenizers: encode.Tokenizers,
            strict: bool = False, processes: int | None = None,
            shard: Mapping[int, int] = SHARD, progress: bool = True) -> records.Meta:
  """Tokenises a manifest's documents into a directory of records; resumes what was begun.

  Args:
    manifest: JSONL; each line {"id"?, "parts": [{"text"} | {"image"} | {"audio",
      "transcript"?}, ...]}, each part perhaps with a "role" of user or assistant; paths are
      relative to the manifest's folder.
    out: directory, made if need be.
    tokenizers: for each modality in the manifest.
    strict: raises on the first bad item instead of counting and naming it.
    processes: that decode; 0 decodes in this one, None chooses by cores and work.
    shard: items to a shard, by modality (for text: documents).
    progress: shows a bar with rate and time left, and a summary.

  Returns:
    The meta data of the finished directory; `rejects.jsonl` in it names what was skipped.

  Raises:
    ValueError: the directory holds other inputs (both fingerprints are named), a tokenizer is
      missing, no document is usable, or, if strict, an item is bad.
  """
  manifest, out = pathlib.Path(manifest), pathlib.Path(out)
  if not manifest.is_file():
    raise ValueError(f"the manifest {manifest} is not a file; wanted JSONL, one document a line.")
  inputs = {"manifest": sources.manifest_hash(manifest), "tokenizers": tokenizers.describe(),
            "shard": {_NAMES[k]: shard[k] for k in sorted(shard)}, "format": records.FORMAT}
  console = rich.console.Console(stderr=True, quiet=not progress)
  _begin(out, inputs)
  meta = records.Meta.read(out)
  if meta is None:
    with _bar(console) as bar:
      job = _Job(manifest, out, tokenizers, shard, strict, bar)
      found, items = _scan(job)
      if processes is None:
        few = sum(map(len, found.values())) <= 4 * media.CHUNK
        processes = 0 if few else max(1, min((os.cpu_count() or 2) - 1, 16))
      with media.pool(processes) as pool:
        places, shards = {}, {}
        for kind, paths in found.items():
          places[kind], shards[_NAMES[kind]] = _tokenise(job, kind, paths, pool)
      meta = _finish(job, places, shards, items, inputs)
  elif strict and meta.rejects:
    first = json.loads((out / records.REJECTS).read_text("utf-8").splitlines()[0])
    raise ValueError(f"{out} was prepared without {sum(meta.rejects.values())} bad items, the "
                     f"first at line {first['line']} ({first['id']}): {first['reason']}; repair "
                     "the manifest and prepare into another directory, or leave out --strict.")
  console.print(_summary(out, meta), highlight=False, markup=False)
  return meta


def _begin(out: pathlib.Path, inputs: dict[str, Any]) -> None:
  """Makes the directory, or checks that it was begun with the same inputs."""
  try:
    out.mkdir(parents=True, exist_ok=True)
    if (out / _STARTED).exists():
      before = json.loads((out / _STARTED).read_text("utf-8"))
      if before != inputs:
        raise ValueError(f"{out} holds records of other inputs: {_difference(before, inputs)}; "
                         "prepare into another directory, or delete this one.")
    elif any(p for p in out.iterdir() if not p.name.endswith(".tmp")):
      raise ValueError(f"{out} is not empty and not a directory of records; name another.")
    else:
      records.write_json(out / _STARTED, inputs)
  except OSError as error:
    raise ValueError(f"can't write records into {out}: {error.strerror}; name a directory that "
                     "can be written.") from error


def _difference(before: Any, now: Any) -> str:
  """Which inputs changed, each with its value before and now."""
  a, b = _flat(before), _flat(now)
  keys = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]
  return "; ".join(f"{k} was {a.get(k)}, is now {b.get(k)}" for k in keys)


def _flat(value: Any, at: str = "") -> dict[str, Any]:
  if not isinstance(value, dict):
    return {at[1:]: value}
  return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{at}.{key}").items()}


def _scan(job: _Job) -> tuple[_Media, int]:
  """All media in order of first mention, and the number of items."""
  found: _Media = {vocab_lib.IMAGE: {}, vocab_lib.AUDIO: {}}
  items = 0
  for item in sources.read_manifest(job.manifest):
    items += 1
    if isinstance(item.parts, Bad):
      job.refuse(item, item.parts)
      continue
    for part in item.parts:
      if part.kind in found:
        found[part.kind].setdefault(part.value, item)
  for kind in list(found):
    if getattr(job.tokenizers, _NAMES[kind]) is None:
      if found[kind]:
        first = next(iter(found[kind].values()))
        raise ValueError(f"{job.manifest} line {first.line} has {_NAMES[kind]}, but there is no "
                         f"{_NAMES[kind]} tokenizer; give one.")
      del found[kind]
  return found, items


def _tokenise(job: _Job, kind: int, found: Mapping[str, sources.Item], pool: media.Pool
              ) -> tuple[dict[str, _Place | Bad], list[int]]:
  """Writes the shards of one kind of medium that are missing.

  Returns:
    Where each path's codes are, or what is wrong with it; and the tokens in each shard.
  """
  paths, n = list(found), job.shard[kind]
  chunks = [paths[i : i + n] for i in range(0, len(paths), n)]
  table = lambda number: records.shard_path(job.out, kind, number).with_suffix(".json")
  missing = [i for i in range(len(chunks)) if not table(i).exists()]
  task = job.bar.add_task(f"{_NAMES[kind]} files", total=len(paths))
  job.bar.advance(task, sum(len(c) for i, c in enumerate(chunks) if i not in missing))
  stream = _advancing(job, task, pool([p for i in missing for p in chunks[i]],
                                      _decoder(job, kind)))
  places: dict[str, _Place | Bad] = {}
  shards, offset = [], 0
  for i, chunk in enumerate(chunks):
    if not table(i).exists():
      _write_media(job, kind, i, itertools.islice(stream, len(chunk)), table(i))
    value = json.loads(table(i).read_text("utf-8"))
    start = offset
    for path, entry in zip(chunk, value, strict=True):
      if isinstance(entry[0], str):
        places[path] = bad = Bad(*entry)
        job.refuse(found[path], bad)
      else:
        places[path] = _Place(offset, tuple(entry))
        offset += entry[0] * (entry[1] if kind == vocab_lib.IMAGE else 1)
    shards.append(offset - start)
  return places, shards


def _decoder(job: _Job, kind: int) -> media.Decode:
  root = str(job.manifest.parent)
  image, audio = job.tokenizers.image, job.tokenizers.audio
  if kind == vocab_lib.IMAGE:
    assert image is not None
    return functools.partial(media.decode_image, root, channels=image.channels,
                             downsample=image.downsample)
  assert audio is not None
  return functools.partial(media.decode_audio, root, sample_rate=audio.sample_rate)


def _advancing(job: _Job, task: Any, stream: Iterable[Any]) -> Iterator[Any]:
  for item in stream:
    job.bar.advance(task)
    yield item


def _write_media(job: _Job, kind: int, number: int, stream: Iterable[Any],
                 table: pathlib.Path) -> None:
  """Tokenises one shard; its table, written last, marks it as done."""
  tok = getattr(job.tokenizers, _NAMES[kind])
  codes = (encode.images if kind == vocab_lib.IMAGE else encode.audio)(tok, stream)
  good = [c for c in codes if not isinstance(c, Bad)]
  for c in good:
    if c.size and not 0 <= c.min() <= c.max() < tok.codes:
      raise ValueError(f"the {_NAMES[kind]} tokenizer gave codes {c.min()} to {c.max()}; it says "
                       f"it has {tok.codes}.")
  flat = [c.astype(records.token_type(tok.codes)).tobytes() for c in good]
  records.write(records.shard_path(job.out, kind, number), b"".join(flat))
  records.write_json(table, [[c.kind, c.detail] if isinstance(c, Bad) else list(c.shape)
                             for c in codes])


def _finish(job: _Job, places: Mapping[int, Mapping[str, _Place | Bad]],
            shards: dict[str, list[int]], items: int, inputs: dict[str, Any]) -> records.Meta:
  """Writes the documents' shards, the tables over all of them, and the mark of completion."""
  task = job.bar.add_task("documents", total=items)
  stream = _advancing(job, task, sources.read_manifest(job.manifest))
  parts, sizes, rejects, temporary = [], [], [], []
  texts: list[int] = []
  for number in range(-(-items // job.shard[vocab_lib.TEXT])):
    path = job.out / f"documents-{number:05d}.npz"
    chunk = list(itertools.islice(stream, job.shard[vocab_lib.TEXT]))
    if not path.exists():
      _write_documents(job, number, chunk, places, path)
    with np.load(path) as value:
      table = value["parts"]
      table["offset"] += np.where(table["kind"] == vocab_lib.TEXT, sum(texts), 0)
      table["words_offset"] += sum(texts)
      parts.append(table)
      sizes.append(value["sizes"])
      texts.append(int(value["text"]))
      rejects += json.loads(str(value["rejects"]))
    temporary.append(path)
  lines = "".join(json.dumps(r, ensure_ascii=False, sort_keys=True) + "\n" for r in rejects)
  records.write(job.out / records.REJECTS, lines.encode())
  if not sum(map(len, sizes)):
    examples = "".join(f"\n  line {r['line']} ({r['id']}): {r['reason']}" for r in rejects[:3])
    raise ValueError(f"{job.manifest} has no usable document: {items} items, {len(rejects)} of "
                     f"them bad; see {job.out / records.REJECTS}.{examples}")
  table, size = np.concatenate(parts), np.concatenate(sizes).astype(np.int64)
  content = records.write_tables(job.out, table, np.cumsum(size) - size)
  for path in temporary:
    path.unlink()
  shards = {"text": texts, **shards}
  counts = {"items": items, "documents": len(size), **{
    f"{name} parts": int((table["kind"] == kind).sum()) for kind, name in enumerate(_NAMES)}}
  counts |= {f"{k} tokens" if k != "audio" else "audio frames": sum(v) for k, v in shards.items()}
  meta = records.Meta(
    records.FORMAT, config_lib.fingerprint(inputs), config_lib.fingerprint([inputs, content]),
    inputs["tokenizers"], shards, counts, dict(sorted(Counter(
      r["reason"].split(":")[0] for r in rejects).items())))
  records.write_json(job.out / records.META, dataclasses.asdict(meta))
  return meta


def _write_documents(job: _Job, number: int, chunk: list[sources.Item],
                     places: Mapping[int, Mapping[str, _Place | Bad]],
                     path: pathlib.Path) -> None:
  """Tokenises the text of one shard of documents; offsets into text are its own."""
  text: list[int] = []
  parts, sizes, rejects = [], [], []
  for item in chunk:
    words: list[int] = []
    try:
      if isinstance(item.parts, Bad):
        raise item.parts
      rows = [_part(job, part, places, words, len(text)) for part in item.parts]
    except Bad as bad:
      job.refuse(item, bad)
      rejects.append({"line": item.line, "id": item.id, "reason": str(bad)})
      continue
    text += words
    parts += rows
    sizes.append(len(rows))
  size = job.tokenizers.text.size
  if text and not 0 <= min(text) <= max(text) < size:
    raise ValueError(f"the text tokenizer gave ids {min(text)} to {max(text)}; it says it has "
                     f"{size}.")
  flat = np.array(text, records.token_type(size))
  records.write(records.shard_path(job.out, vocab_lib.TEXT, number), flat.tobytes())
  buffer = io.BytesIO()
  np.savez(buffer, parts=np.array(parts, documents.PART), sizes=np.array(sizes, np.int32),
           text=len(text), rejects=json.dumps(rejects))
  records.write(path, buffer.getvalue())


def _part(job: _Job, part: sources.RawPart, places: Mapping[int, Mapping[str, _Place | Bad]],
          words: list[int], base: int) -> tuple[int, ...]:
  """One row of `documents.PART`; ids of its text are appended to `words`."""
  start = base + len(words)
  if part.kind == vocab_lib.TEXT:
    words += job.tokenizers.text.encode(part.value)
    length = base + len(words) - start
    if not length:
      raise Bad("empty document", f"the text {part.value!r} has no tokens")
    return part.kind, part.role, 0, 0, length, -1, start, 0
  place = places[part.kind][part.value]
  if isinstance(place, Bad):
    raise place
  rows, cols = place.sides
  if part.kind == vocab_lib.IMAGE:
    return part.kind, part.role, rows, cols, rows * cols, -1, place.offset, 0
  if part.transcript is None:
    return part.kind, part.role, 0, 0, rows, -1, place.offset, 0
  ids = job.tokenizers.text.encode(part.transcript)
  # What is only listened to carries no words in its frames, so any length will do.
  if len(ids) > rows and part.role != documents.USER:
    raise Bad("transcript does not fit", f"{part.value} has {rows} frames for the {len(ids)} "
              f"pieces of {part.transcript!r}; at most one piece a frame")
  words += ids
  return part.kind, part.role, 0, 0, rows, len(ids), place.offset, start


def _bar(console: rich.console.Console) -> rich.progress.Progress:
  return rich.progress.Progress(
    rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(),
    rich.progress.MofNCompleteColumn(), _Rate(), rich.progress.TimeRemainingColumn(),
    console=console)


class _Rate(rich.progress.ProgressColumn):
  """Items a second."""

  def render(self, task: rich.progress.Task) -> str:
    return f"{task.finished_speed or task.speed or 0:.0f}/s"


def _summary(out: pathlib.Path, meta: records.Meta) -> str:
  counts = ", ".join(f"{n:,} {name}" for name, n in meta.counts.items() if name != "items")
  if not meta.rejects:
    return f"{out}: {counts}; nothing rejected."
  why = ", ".join(f"{n} {kind}" for kind, n in meta.rejects.items())
  return (f"{out}: {counts}; rejected {sum(meta.rejects.values())} of {meta.counts['items']} "
          f"({why}), each named in {out / records.REJECTS}.")
