"""Packed batches: the plan's rows, read and assembled through grain, each host its own slice.

B rows of a host's batch  S positions  F frames  P frames with targets  Q codebooks
"""

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import console, progress

from omnijax import config as config_lib
from omnijax import host
from omnijax import vocab as vocab_lib
from omnijax.data import ahead, cut, documents, fit, forecast
from omnijax.data.order import key
from omnijax.data.plan import Plan
from omnijax.data.prompts import Prompts
from omnijax.data.records import Records
from omnijax.job import exits

Batch = dict[str, np.ndarray]
_log = logging.getLogger(__name__)
_FAR = 10_000  # steps ahead that are worth other processes


class Placed(NamedTuple):
  """A document of a row: where it is from, how it is rendered, and what it takes of the row."""

  source: str
  document: int
  piece: bool  # of a document that was too long for a row
  task: str
  dropped: bool  # what asks for a drawing is left out
  positions: int
  frames: int


def empty_row(data: config_lib.Data, vocab: vocab_lib.Vocab, several: bool = False) -> Batch:
  """A row without documents; see DESIGN section 3. `several` sources are told apart, too."""
  S, F, Q = data.positions, data.frames, vocab.codebooks
  P = data.depth_frames or F
  sources = {"source": np.zeros(S, np.int16), "frame_source": np.zeros(P, np.int16)}
  return {**(sources if several else {}),
    "main": np.full(S, vocab_lib.PAD, np.int32), "modality": np.zeros(S, np.int8),
    "segment": np.zeros(S, np.int32), "position": np.zeros((S, 3), np.int32),
    "weight": np.zeros(S, np.float32), "frame_at": np.full(F, S, np.int32),
    "frames": np.full((F, 2 * Q), vocab.no_code, np.int32),
    "frame_weight": np.zeros((P, Q), np.float32)}


def assemble(rendered: Sequence[documents.Streams], data: config_lib.Data, vocab: vocab_lib.Vocab,
             rng: np.random.Generator) -> Batch:
  """One row of the documents given, one after the other as segments 1, 2, ...; see `fill`."""

  def copy(row: documents.Streams, at: int, frame: int, streams: documents.Streams
           ) -> tuple[int, int]:
    n, m = len(streams.main), len(streams.frame_at)
    for name in ("main", "modality", "position", "weight"):
      getattr(row, name)[at : at + n] = getattr(streams, name)
    row.frame_at[frame : frame + m] = streams.frame_at + at
    for name in ("frames", "frame_weight"):
      getattr(row, name)[frame : frame + m] = getattr(streams, name)
    return at + n, frame + m

  return fill([functools.partial(copy, streams=s) for s in rendered], data, vocab, rng)


def fill(writers: Sequence[Callable[[documents.Streams, int, int], tuple[int, int]]],
         data: config_lib.Data, vocab: vocab_lib.Vocab, rng: np.random.Generator,
         sources: Sequence[int] | None = None) -> Batch:
  """One row of documents that write themselves into it, as segments 1, 2, ...

  With `data.depth_frames`, frames with targets come first. `rng` draws which of them keep their
  targets where there are more than that, and what `data.listen_dropout` hides.

  Args:
    writers: each gets the row, the position and the frame to begin at; returns those behind it.
    sources: the number of each one's source, if there are several.
  """
  row = empty_row(data, vocab, sources is not None)
  weight_FQ = (np.zeros((data.frames, vocab.codebooks), np.float32) if data.depth_frames
               else row["frame_weight"])
  streams = documents.Streams(frame_weight=weight_FQ, **{
    name: row[name] for name in ("main", "modality", "position", "weight", "frame_at", "frames")})
  source_F = np.zeros(data.frames, np.int16)
  at = frame = 0
  for segment, write in enumerate(writers, 1):
    start, first = at, frame
    at, frame = write(streams, at, frame)
    row["segment"][start:at] = segment
    if sources is not None:
      row["source"][start:at] = sources[segment - 1]
      source_F[first:frame] = sources[segment - 1]
  if data.depth_frames:
    spoken = np.flatnonzero(weight_FQ.any(1))
    if len(spoken) > data.depth_frames:
      spoken = rng.choice(spoken, data.depth_frames, replace=False)
    first_F = np.isin(np.arange(data.frames), spoken)
    order_F = np.argsort(~first_F, kind="stable")
    weight_FQ = weight_FQ[order_F] * first_F[order_F, None]
    row["frame_at"], row["frames"] = row["frame_at"][order_F], row["frames"][order_F]
    row["frame_weight"][:] = weight_FQ[: len(row["frame_weight"])]
    source_F = source_F[order_F]
  if sources is not None:
    row["frame_source"][:] = source_F[: len(row["frame_source"])]
  if data.listen_dropout:
    heard_FQ = row["frames"][:, vocab.codebooks :]
    heard_FQ[rng.random(heard_FQ.shape) < data.listen_dropout] = vocab.no_code
  return row


class Loader:
  """The batches of a data set; any step of it, at any time, on any number of hosts.

  A batch is a dict of numpy arrays with this host's B rows: main, modality, segment [B, S];
  position [B, S, 3]; weight [B, S]; frame_at [B, F]; frames [B, F, 2Q]; frame_weight [B, P, Q],
  of the first P frames: `data.depth_frames`, or all. Of several sources also source [B, S] and
  frame_source [B, P], their numbers.

  Args:
    data: what to read and how to pack it.
    vocab: of the model; the records must fit it.
    seed: of order, mixture and tasks.
    sources: directories of records, instead of `data.sources`.
    mine: rows of each global batch that this host reads; all of them by default.
    once: one pass over everything; the last batch is filled with empty rows.
    tokenizers: fingerprints by modality that the records must have, if given.
    encode: of the text tokenizer, for `data.prompts`.

  Raises:
    ValueError: records that are not finished, of another vocabulary or other tokenizers, or
      too long for any row.
  """

  def __init__(self, data: config_lib.Data, vocab: vocab_lib.Vocab, *, seed: int,
               sources: tuple[str, ...] | None = None, mine: range | None = None,
               once: bool = False, tokenizers: Mapping[str, str] | None = None,
               encode: Callable[[str], list[int]] | None = None):
    names = data.sources if sources is None else sources
    if not names:
      raise ValueError("no sources: name at least one directory written by `omnijax prepare` in "
                       f"Data.{'heldout' if once else 'sources'}.")
    mine = range(data.rows) if mine is None else mine
    records = [Records(name) for name in names]
    for r in records:
      _check(r, records[0], vocab, tokenizers or {})
    found = [_cut(r, data, name) for r, name in zip(records, names, strict=True)]
    self._data, self._vocab, self._names = data, vocab, names
    self.records = [r for r, _ in found]
    self._left_out = [n for _, n in found]
    self._local = len(mine)
    if encode is None:
      assert not data.prompts
      self._prompts = Prompts()
    else:
      self._prompts = Prompts(data.prompts, encode)
    self._plan = Plan([r.lengths for r in self.records], data, seed=seed, prompts=self._prompts,
                      once=once)
    self._rows = _Rows(self.records, self._plan, data, vocab, seed, mine, once, self._prompts)
    self.fingerprint = config_lib.fingerprint({
      "records": [r.meta.content for r in records], "seed": seed, "once": once,
      "vocab": vocab.fingerprint, **{
        f: dataclasses.asdict(data)[f] for f in (
          "weights", "weights_by", "stages", "epochs", "rows", "positions", "frames",
          "depth_frames", "window", "tasks", "acoustic_delay", "text_delay", "follow_delay",
          "caption_dropout", "listen_dropout", "prompts", "prompt_weight")}})

  @classmethod
  def heldout(cls, data: config_lib.Data, vocab: vocab_lib.Vocab, *, seed: int,
              mine: range | None = None, tokenizers: Mapping[str, str] | None = None,
              encode: Callable[[str], list[int]] | None = None) -> "Loader":
    """One pass over `data.heldout`, in an order that mixes its sources; nothing is left out."""
    data = dataclasses.replace(data, caption_dropout=0.0, listen_dropout=0.0, depth_frames=0)
    return cls(data, vocab, seed=seed, sources=data.heldout, mine=mine, once=True,
               tokenizers=tokenizers, encode=encode)

  @property
  def steps(self) -> int | None:
    """Batches in one pass; None of an endless loader."""
    rows = self._plan.rows
    return None if rows is None else -(-rows // self._data.rows)

  def forecast(self, steps: int) -> str:
    """What so many steps will read, in a sentence.

    Raises:
      ValueError: there are no data for so many steps.
    """
    lengths = [r.lengths for r in self.records]
    return forecast.told(self._names, self._plan.sizes, forecast.forecast(lengths, self._data,
                                                                          steps), steps)

  def recall(self, file: pathlib.Path) -> None:
    """Takes over what `keep` wrote, if it was of the same data."""
    ahead.recall(self._plan, file, self.fingerprint)

  def keep(self, file: pathlib.Path) -> None:
    """Writes which rows are in which windows, as far as that is known."""
    ahead.keep(self._plan, file, self.fingerprint)

  def reach(self, row: int) -> None:
    """Makes a row of the plan known; if it is far on, by all cores and with a bar."""
    found = self._plan.reached()
    if row < found + _FAR * self._data.rows:
      return
    with progress.Progress(console=console.Console(stderr=True)) as bar:
      task = bar.add_task("counting rows of data", total=row)
      for at in ahead.count(self._plan, self.records, row, os.cpu_count() or 1):
        bar.update(task, completed=min(at, row))

  def batch_at(self, step: int) -> Batch:
    """This host's slice of the global batch of a step."""
    rows = [self._rows[step * self._local + i] for i in range(self._local)]
    return _stack(rows)

  def iterate(self, start_step: int, stop_step: int | None = None, row: int | None = None
              ) -> Iterator[Batch]:
    """Batches of the steps from start_step to before stop_step, made ahead in the background.

    The first one begins with the plan's row `start_step * data.rows`, or with the row given.
    Workers, threads and prefetch are those of the config; they never change what is yielded.
    """
    # Here, because grain imports JAX, which planning and reading don't need.
    import grain
    from absl import flags
    from grain import experimental

    # Without this grain 0.2.18 fails in its workers when nobody has parsed absl's flags.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    stop = stop_step if stop_step is not None else self.steps
    size = len(self._rows) if stop is None else stop * self._local
    data = self._data
    shift = 0 if row is None else row - start_step * data.rows
    rows = grain.MapDataset.source(self._rows.shifted(shift))[start_step * self._local : size]
    buffered = data.prefetch if data.read_threads else 0
    batches = rows.batch(self._local, batch_fn=_stack).to_iter_dataset(
      grain.ReadOptions(num_threads=data.read_threads, prefetch_buffer_size=buffered))
    if data.workers:
      each = max(1, data.prefetch // data.workers)
      batches = batches.mp_prefetch(grain.MultiprocessingOptions(
        num_workers=data.workers, per_worker_buffer_size=each), _begin_worker)
    elif data.prefetch and not data.read_threads:
      batches = experimental.ThreadPrefetchIterDataset(
        batches, prefetch_buffer_size=data.prefetch)
    iterator = iter(batches)
    try:
      yield from iterator
    except RuntimeError as error:
      if "terminated unexpectedly" not in str(error):
        raise
      raise exits.Again(f"a data worker is gone: {error}") from error
    finally:
      iterator.close()

  def placed(self, row: int) -> list[Placed]:
    """The documents of a row of the plan, in order, without reading them."""
    out = []
    for source, document, task, dropped, prompt in self._rows.members(row):
      records = self.records[source]
      positions, frames = documents.lengths(records.lengths[document : document + 1], task,
                                            dropped, self._data)
      positions += self._prompts.lengths(np.array([task]), np.array([prompt]))
      out.append(Placed(self._names[source], document, document >= records.whole,
                        documents.TASKS[task], dropped, int(positions[0]), int(frames[0])))
    return out

  def epochs(self, row: int) -> dict[str, tuple[float, float]]:
    """Passes over each source between which the documents of a row of the plan are drawn."""
    ends = (self._plan.epochs(row, begun=begun) for begun in (True, False))
    return dict(zip(self._names, zip(*ends, strict=True), strict=True))

  def stats(self, step: int = 0, row: int | None = None) -> dict[str, Any]:
    """How well the rows around a step are filled, and how far it is through each source.

    The step begins with the plan's row `step * data.rows`, or with the row given.
    """
    data = self._data
    row = step * data.rows if row is None else row
    window = self._plan.window_at(row)
    return {
      "packing_efficiency": window.positions / max(1, window.rows * data.positions),
      "frame_efficiency": window.frames / max(1, window.rows * data.frames),
      "documents_per_row": len(window.document) / max(1, window.rows),
      "documents": dict(zip(self._names, self._plan.sizes, strict=True)),
      "epochs": dict(zip(self._names, self._plan.epochs(row), strict=True)),
      "unfit": dict(zip(self._names, self._left_out, strict=True))}


class _Rows:
  """One host's rows, in the order of its batches, for grain to read at random."""

  def __init__(self, records: list[Records], plan: Plan, data: config_lib.Data,
               vocab: vocab_lib.Vocab, seed: int, mine: range, once: bool,
               prompts: Prompts, shift: int = 0):
    self._records, self._plan, self._data, self._vocab = records, plan, data, vocab
    self._seed, self._mine, self._once, self._shift = seed, mine, once, shift
    self._prompts = prompts

  def shifted(self, rows: int) -> "_Rows":
    """These, so many rows of the plan later."""
    return _Rows(self._records, self._plan, self._data, self._vocab, self._seed, self._mine,
                 self._once, self._prompts, rows)

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._plan.attach([r.lengths for r in self._records])

  def __len__(self) -> int:
    return 1 << 60  # endless; a slice says where to stop

  def members(self, number: int) -> list[tuple[int, int, int, bool, int]]:
    """What `Plan.row` says of a row; nothing behind the end of one pass."""
    try:
      return self._plan.row(number)
    except IndexError as error:
      if self._once:
        return []
      raise ValueError(f"the data run out in step {number // self._data.rows + 1}: all sources "
                       "have been passed over as often as Data.epochs "
                       f"{self._data.epochs} says; raise it, or lower Train.steps.") from error

  def __getitem__(self, index: int) -> Batch:
    step, row = divmod(index, len(self._mine))
    number = self._shift + step * self._data.rows + self._mine[row]
    members = self.members(number)

    def writer(source: int, document: int, task: int, dropped: bool, prompt: int) -> Any:
      parts = self._records[source].read(document)
      return lambda row, at, frame: documents.render_into(
        row, at, frame, parts, task, dropped, self._data, self._vocab,
        self._prompts.of(task, prompt))

    several = [source for source, *_ in members] if len(self._records) > 1 else None
    return fill([writer(*member) for member in members], self._data, self._vocab,
                np.random.default_rng(key(self._seed, number)), several)


def _begin_worker(index: int, count: int) -> None:
  del index, count
  host.die_with_parent()


def _stack(rows: list[Batch]) -> Batch:
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _check(records: Records, first: Records, vocab: vocab_lib.Vocab,
           tokenizers: Mapping[str, str]) -> None:
  """Raises unless records fit the vocabulary, the other records, and the run's tokenizers."""
  told = records.meta.tokenizers
  for name, size in (("text", "size"), ("image", "codes"), ("audio", "codes")):
    if name not in told:
      continue
    have, want = told[name][size], getattr(vocab, name)
    if have != want:
      raise ValueError(f"{records.root} has {name} tokens of a vocabulary of {have}, the model's "
                       f"has {want}; prepare again with the run's {name} tokenizer.")
    for whose, other in (("the run's", tokenizers.get(name)),
                         (f"{first.root}'s", first.meta.tokenizers.get(name, {}).get(
                           "fingerprint"))):
      if other is not None and told[name]["fingerprint"] != other:
        raise ValueError(f"{records.root} was made by the {name} tokenizer "
                         f"{told[name]['fingerprint']}, but {whose} is {other}; prepare again "
                         "with that one.")
  if "audio" in told and told["audio"]["codebooks"] < vocab.codebooks:
    raise ValueError(f"{records.root} has {told['audio']['codebooks']} codebooks, the model wants "
                     f"{vocab.codebooks}; lower Tokenizers.codebooks or prepare again.")


def _cut(records: Records, data: config_lib.Data, name: str) -> tuple[Records, int]:
  """Records with what is too long for a row in pieces, and how many documents fit none at all."""
  long = fit.unfit(records.lengths, data)
  if not len(long):
    return records, 0
  parts, starts, whole = cut.cut(*records.some(long), data)
  lost = long[whole]
  fit.check(records.lengths, lost, data, name)
  if len(starts):
    _log.info("%s: %d documents are longer than a row: cut into %d pieces", name,
              len(long) - len(lost), len(starts))
    records = Records(records.root, (parts, starts))
  if len(lost):
    _log.warning("%s: %d documents fit no row of %d positions and %d frames, and have parts that "
                 "can't be cut: they are left out", name, len(lost), data.positions, data.frames)
  return records, len(lost)
