"""Raw documents to records: decode in parallel processes, tokenise in batches, skip what is bad.

Work is cut into units, each written whole; what is already there is kept, so that killing it at
any moment and running it again gives the same bytes. A picture or a recording is known by its
name: it is decoded and tokenised once, however many documents show it.
"""

import dataclasses
import itertools
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import rich.console
import rich.progress

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.data import encode, local, merge, records, sources, tokenise
from omnijax.data.sources import Bad
from omnijax.data.tokenise import DocumentsUnit, MediaUnit, Medium, Place, Work

# Documents, pictures and recordings to a unit: what a crash can lose of each.
SHARD = {vocab_lib.TEXT: 8192, vocab_lib.IMAGE: 2048, vocab_lib.AUDIO: 512}
HELDOUT = "heldout"  # the directory of records held out, in that of all
_STARTED = "started.json"
_NAMES = vocab_lib.MODALITIES


class Engine(Protocol):
  """Does units, in any order, each in one place; yields the items of each as it is done."""

  def media(self, units: list[MediaUnit]) -> Iterator[int]: ...
  def documents(self, units: Iterator[DocumentsUnit]) -> Iterator[int]: ...


@dataclasses.dataclass(frozen=True)
class Choices:
  """What else decides the content of records.

  Args:
    image_size: pixels of the longer side that larger pictures are scaled down to; 0 takes none
      that doesn't fit as it is.
    heldout: share of the documents, by a hash of their groups, that goes into OUT/heldout.
    dedup: leaves out documents that say exactly what another has said.
  """

  image_size: int = 0
  heldout: float = 0.0
  dedup: bool = False

  def __post_init__(self) -> None:
    if not 0 <= self.heldout < 1:
      raise ValueError(f"--heldout is {self.heldout}; wanted a share of the documents, 0 <= x < 1.")
    if self.image_size < 0:
      raise ValueError(f"--image-size is {self.image_size}; wanted pixels, or 0 for no scaling.")


@dataclasses.dataclass(frozen=True)
class _Job:
  """What every stage needs."""

  source: sources.Source
  work: Work
  tokenizers: encode.Tokenizers
  choices: Choices
  shard: Mapping[int, int]
  strict: bool
  bar: rich.progress.Progress

  def refuse(self, line: int, name: str, why: object) -> None:
    if self.strict:
      raise ValueError(f"{self.source.path} line {line} ({name}): {why}; repair or remove "
                       "it, or prepare without --strict to skip what is bad.")


def prepare(source: str | os.PathLike[str], out: pathlib.Path, *, tokenizers: encode.Tokenizers,
            choices: Choices = Choices(), strict: bool = False, engine: Any = local.Local,
            processes: int | None = None, shard: Mapping[int, int] = SHARD, progress: bool = True
            ) -> records.Meta:
  """Tokenises the documents of a source into a directory of records; resumes what was begun.

  Args:
    source: JSON lines, texts, WebDataset shards, Parquet tables or a folder; see `data.sources`.
    out: directory, made if need be.
    tokenizers: for each modality in the source.
    choices: what else decides what comes out.
    strict: raises on the first bad item instead of counting and naming it.
    engine: `local.Local`, or `ray_engine.Ray`: called with the work, tokenizers and processes, it
      is a context manager of an `Engine`.
    processes: at work at the same time; None leaves it to the engine.
    shard: items to a unit, by modality (for text: documents).
    progress: shows a bar with rate and time left, and a summary.

  Returns:
    The meta data of the finished directory; `rejects.jsonl` in it names what was skipped.

  Raises:
    ValueError: there is no such source, the directory holds other inputs (both fingerprints are
      named), a tokenizer is missing, no document is usable, or, if strict, an item is bad.
  """
  found, out = sources.find(source), pathlib.Path(out)
  if found.path == found.root and out.resolve().is_relative_to(pathlib.Path(found.root).resolve()):
    raise ValueError(f"{out} lies within the source {found.path}, and would be read as part of it; "
                     "name a directory outside.")
  inputs = {"source": found.fingerprint(), "tokenizers": tokenizers.describe(),
            "choices": dataclasses.asdict(choices),
            "shard": {_NAMES[k]: shard[k] for k in sorted(shard)}, "format": records.FORMAT}
  console = rich.console.Console(stderr=True, quiet=not progress)
  work = Work(found.store, out, choices.image_size)
  begun = engine(work, tokenizers, processes)
  _begin(out, inputs)
  meta = records.Meta.read(out)
  if meta is None:
    with _bar(console) as bar:
      job = _Job(found, work, tokenizers, choices, shard, strict, bar)
      scanned, items = _scan(job)
      with begun as working:
        places, shards = {}, {}
        for kind, names in scanned.items():
          places[kind], shards[_NAMES[kind]] = _media(job, kind, names, working)
        _documents(job, places, items, working)
      meta = _finish(job, shards, items, inputs)
  elif strict and meta.rejects:
    first = json.loads((out / records.REJECTS).read_text("utf-8").splitlines()[0])
    raise ValueError(f"{out} was prepared without {sum(meta.rejects.values())} bad items, the "
                     f"first at line {first['line']} ({first['id']}): {first['reason']}; repair "
                     "the source and prepare into another directory, or leave out --strict.")
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
  a, b = config_lib.flat(before), config_lib.flat(now)
  keys = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]
  return "; ".join(f"{k} was {a.get(k)}, is now {b.get(k)}" for k in keys)


def _scan(job: _Job) -> tuple[dict[int, dict[Medium, tuple[int, str]]], int]:
  """All media in order of first mention, each with the line and id that does, by kind; and the
  number of items."""
  found: dict[int, dict[str, tuple[bool, int, str]]] = {vocab_lib.IMAGE: {}, vocab_lib.AUDIO: {}}
  items = 0
  task = job.bar.add_task("items", total=None)
  for item in job.source.items():
    items += 1
    job.bar.advance(task)
    if isinstance(item.parts, Bad):
      job.refuse(item.line, item.id, item.parts)
      continue
    for part in item.parts:
      for name in part.media:
        quiet, *first = found[part.kind].get(name, (True, item.line, item.id))
        found[part.kind][name] = (quiet and name == part.listen, *first)
  job.bar.update(task, total=items)
  for kind in list(found):
    if getattr(job.tokenizers, _NAMES[kind]) is None:
      if found[kind]:
        _, line, name = next(iter(found[kind].values()))
        raise ValueError(f"{job.source.path} line {line} has {_NAMES[kind]}, but there is no "
                         f"{_NAMES[kind]} tokenizer; give one.")
      del found[kind]
  return {kind: {Medium(name, quiet): (line, first) for name, (quiet, line, first) in some.items()}
          for kind, some in found.items()}, items


def _media(job: _Job, kind: int, found: Mapping[Medium, tuple[int, str]], engine: Engine
           ) -> tuple[dict[str, Place | Bad], list[int]]:
  """Has the units of one kind of medium done that are missing.

  Returns:
    Where each medium's codes are, or what is wrong with it; and the tokens in each shard.
  """
  all_of, n, out = list(found), job.shard[kind], job.work.out
  units = [MediaUnit(kind, i // n, all_of[i : i + n]) for i in range(0, len(all_of), n)]
  missing = [unit for unit in units if not unit.table(out).exists()]
  task = job.bar.add_task(f"{_NAMES[kind]} files", total=len(all_of))
  job.bar.advance(task, len(all_of) - sum(len(unit.media) for unit in missing))
  for done in engine.media(missing):
    job.bar.advance(task, done)
  places: dict[str, Place | Bad] = {}
  shards, offset = [], 0
  for unit in units:
    start = offset
    some, offset = tokenise.places(unit, out, offset)
    places |= some
    shards.append(offset - start)
  if job.strict:
    for medium, (line, name) in found.items():
      if isinstance(bad := places[medium.name], Bad):
        job.refuse(line, name, bad)
  return places, shards


def _documents(job: _Job, places: Mapping[int, Mapping[str, Place | Bad]], items: int,
               engine: Engine) -> None:
  """Has the missing units of documents done."""
  task = job.bar.add_task("documents", total=items)

  def units() -> Iterator[DocumentsUnit]:
    stream, n = job.source.items(), job.shard[vocab_lib.TEXT]
    for number in range(-(-items // n)):
      some = list(itertools.islice(stream, n))
      mine = {kind: {name: of[name] for item in some if not isinstance(item.parts, Bad)
                     for part in item.parts if part.kind == kind for name in part.media}
              for kind, of in places.items()}
      unit = DocumentsUnit(number, some, mine)
      if unit.table(job.work.out).exists():
        job.bar.advance(task, len(some))
      else:
        yield unit

  for done in engine.documents(units()):
    job.bar.advance(task, done)


def _finish(job: _Job, shards: dict[str, list[int]], items: int, inputs: dict[str, Any]
            ) -> records.Meta:
  """Writes the tables over all units of documents, and the mark of completion."""
  merged = merge.Merged.of(job.work.out, -(-items // job.shard[vocab_lib.TEXT]), job.choices.dedup)
  for entry in merged.rejects:
    job.refuse(entry["line"], entry["id"], entry["reason"])
  out = job.work.out
  lines = "".join(json.dumps(r, ensure_ascii=False, sort_keys=True) + "\n" for r in merged.rejects)
  records.write(out / records.REJECTS, lines.encode())
  if not len(merged.sizes):
    examples = "".join(f"\n  line {r['line']} ({r['id']}): {r['reason']}"
                       for r in merged.rejects[:3])
    raise ValueError(f"{job.source.path} has no usable document: {items} items, "
                     f"{len(merged.rejects)} of them bad; see {out / records.REJECTS}.{examples}")
  shards = {"text": merged.text, **shards}
  held_N = merged.held(job.choices.heldout)
  if job.choices.heldout:
    meta = _tables(job, merged, held_N, shards, items, inputs, out / HELDOUT)
    records.write_json(out / HELDOUT / records.META, dataclasses.asdict(meta))
  meta = _tables(job, merged, ~held_N, shards, items, inputs, out)
  for path in merged.files:
    path.unlink()
  records.write_json(out / records.META, dataclasses.asdict(meta))
  return meta


def _tables(job: _Job, merged: merge.Merged, mine_N: np.ndarray, shards: Mapping[str, list[int]],
            items: int, inputs: dict[str, Any], out: pathlib.Path) -> records.Meta:
  """Writes the tables of some of the documents; the codes lie in the directory of all of them."""
  if not mine_N.any():
    raise ValueError(f"--heldout {job.choices.heldout} leaves no document for {out}: there are "
                     f"{len(mine_N)}; hold out another share.")
  out.mkdir(exist_ok=True)
  table, size = merged.some(mine_N)
  content = records.write_tables(out, table, np.cumsum(size) - size)
  counts = {"items": items, "documents": len(size), **{
    f"{name} parts": int((table["kind"] == kind).sum()) for kind, name in enumerate(_NAMES)}}
  counts |= {f"{_NAMES[kind]} {what}": int(table["length"][table["kind"] == kind].sum())
             for kind, what in enumerate(("tokens", "tokens", "frames"))}
  whole = out == job.work.out
  rejects = Counter(r["reason"].split(":")[0] for r in merged.rejects) if whole else {}
  return records.Meta(
    records.FORMAT, config_lib.fingerprint(inputs), config_lib.fingerprint([inputs, content]),
    inputs["tokenizers"], shards, counts, dict(sorted(rejects.items())), "." if whole else "..")


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
