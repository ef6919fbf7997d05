"""How fast documents are planned, read and packed: ours, and Grain's own packing of the same.

The synthetic mixture is that of a large run: half texts of 50 to 800 tokens, a quarter pictures of
256 codes with captions, a quarter recordings of 40 to 1,500 frames.

N documents
"""

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from omnijax import config as config_lib
from omnijax import vocab as vocab_lib
from omnijax.data import ahead, documents, lengths, loader, records
from omnijax.data.plan import Plan

VOCAB = vocab_lib.Vocab(text=32_000, image=1024, audio=1024, codebooks=8)
DATA = config_lib.Data(sources=("synthetic",), rows=8, positions=4096, frames=2048)
_DRAWN = 1 << 21  # documents that are drawn; more are the same again
_SHARD = 1 << 24  # tokens


def parts(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Parts of synthetic documents, offsets left out, and the first part of each document."""
  kind_N = rng.choice(3, size, p=(0.5, 0.25, 0.25))
  starts = np.cumsum(1 + (kind_N == 1)) - 1 - (kind_N == 1)
  out = np.zeros(int(size + (kind_N == 1).sum()), documents.PART)
  out["words"], out["heard_offset"] = -1, -1
  text, image, audio = (starts[kind_N == k] for k in range(3))
  out["length"][text] = rng.integers(50, 801, len(text))
  out["kind"][image], out["rows"][image], out["cols"][image] = vocab_lib.IMAGE, 16, 16
  out["length"][image] = 256
  out["length"][image + 1] = rng.integers(4, 41, len(image))
  out["kind"][audio] = vocab_lib.AUDIO
  out["length"][audio] = rng.integers(40, 1501, len(audio))
  out["words"][audio] = out["length"][audio] // 4
  return out, starts


def synthetic_records(root: Path, size: int) -> None:
  """A directory of records of so many synthetic documents with random tokens."""
  rng = np.random.default_rng(0)
  table, starts = parts(rng, size)
  shards: dict[str, list[int]] = {}
  tokenizers = {"text": {"fingerprint": "-", "size": VOCAB.text},
                "image": {"fingerprint": "-", "codes": VOCAB.image, "downsample": 16},
                "audio": {"fingerprint": "-", "codes": VOCAB.audio, "codebooks": VOCAB.codebooks,
                          "frame_size": 1920, "sample_rate": 24_000}}
  for kind, name in enumerate(vocab_lib.MODALITIES):
    mine = table["kind"] == kind
    words = kind == vocab_lib.TEXT
    need = np.where(mine, table["length"], 0) + np.where(words & (table["words"] > 0),
                                                         table["words"], 0)
    ends, shards[name], at = np.cumsum(need), [], 0
    table["offset" if not words else "words_offset"][mine | words] = (ends - need)[mine | words]
    if words:
      table["offset"][mine] = table["words_offset"][mine]
    while at < len(need):  # a part never crosses a shard
      base = int(ends[at - 1]) if at else 0
      stop = max(at + 1, int(np.searchsorted(ends, base + _SHARD, side="right")))
      n = int(ends[stop - 1]) - base
      width = VOCAB.codebooks if kind == vocab_lib.AUDIO else 1
      most = VOCAB.text if words else tokenizers[name]["codes"]
      codes = rng.integers(0, most, (n, width), dtype=np.uint16)
      records.shard_path(root, kind, len(shards[name])).write_bytes(codes.tobytes())
      shards[name].append(n)
      at = stop
  content = records.write_tables(root, table, starts)
  meta = records.Meta(records.FORMAT, "-", content, tokenizers, shards, {"documents": size}, {})
  records.write_json(root / records.META, vars(meta))


def reading(root: Path, data: config_lib.Data, vocab: vocab_lib.Vocab, *, seconds: float,
            repeats: int) -> dict[str, Any]:
  """Positions a second of one core, from the page cache, ours and Grain's in turn.

  Args:
    root: of records; `data.sources` and the vocabulary are of them.
    data: budgets.
    vocab: of the records.
    seconds: of CPU time that a turn takes at least.
    repeats: turns of each.
  """
  made = loader.Loader(data, vocab, seed=0)
  ours, theirs = _ours(made, data), _grain(made, data, vocab)
  # The page cache, and windows that are planned once for tens of thousands of documents.
  for side in (ours, theirs):
    for _ in range(3):
      next(side)
  speed: dict[str, list[float]] = {"ours": [], "grain": []}
  filled: dict[str, list[tuple[int, int]]] = {"ours": [], "grain": []}
  for _ in range(repeats):
    for name, side in (("ours", ours), ("grain", theirs)):
      begun, positions, room = time.process_time(), 0, 0
      while (took := time.process_time() - begun) < seconds:
        used, of = next(side)
        positions, room = positions + used, room + of
      speed[name].append(positions / took)
      filled[name].append((positions, room))
  fill = {k: sum(a for a, _ in v) / sum(b for _, b in v) for k, v in filled.items()}
  ratios = [a / b for a, b in zip(speed["ours"], speed["grain"], strict=True)]
  return {"positions_per_s_per_core": statistics.median(speed["ours"]),
          "grain_positions_per_s_per_core": statistics.median(speed["grain"]),
          "ratio_to_grain_first_fit": statistics.median(ratios),
          "grain_packing_efficiency": fill["grain"], "turns": repeats}


def _ours(made: loader.Loader, data: config_lib.Data) -> Iterator[tuple[int, int]]:
  """Used and all positions of batch after batch."""
  step = 0
  while True:
    batch = made.batch_at(step)
    yield int((batch["segment"] > 0).sum()), batch["segment"].size
    step += 1


def _grain(made: loader.Loader, data: config_lib.Data, vocab: vocab_lib.Vocab
           ) -> Iterator[tuple[int, int]]:
  """The same documents, rendered by the same code, packed by grain's first fit."""
  import grain
  from grain import experimental

  read = made.records[0]

  def document(index: int) -> dict[str, np.ndarray]:
    streams = documents.render(read.read(index), documents.PLAIN, False, data, vocab)
    return vars(streams)

  # Lengths of what lies beside frames are frames; only `main` needs segments and positions.
  room = {"main": data.positions, "modality": data.positions, "position": data.positions,
          "weight": data.positions, "frame_at": data.frames, "frames": data.frames,
          "frame_weight": data.frames}
  rows = experimental.FirstFitPackIterDataset(
    grain.MapDataset.range(len(read)).shuffle(seed=0).repeat().map(document).to_iter_dataset(
      grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)),
    length_struct=room, num_packing_bins=64,
    meta_features=tuple(name for name in room if name != "main")).batch(data.rows)
  for batch in rows:
    yield int((batch["main_segment_ids"] > 0).sum()), batch["main"].size


def planning(folder: Path, size: int, data: config_lib.Data, processes: int) -> dict[str, Any]:
  """Seconds and memory that planning so many documents takes, and seeking in what is planned.

  Args:
    folder: for the length index of the documents, 16 bytes each.
    size: documents.
    data: budgets; each document once.
    processes: that count.
  """
  rng = np.random.default_rng(0)
  path = folder / "lengths.npy"
  rows = np.lib.format.open_memmap(path, "w+", lengths.ROW, (size,))
  # Drawing a hundred million would take minutes; in what order a plan reads them is its own.
  some = lengths.Lengths.of(documents.counts(*parts(rng, min(_DRAWN, size))))
  for start in range(0, size, _DRAWN):
    rows[start : start + _DRAWN] = some.rows[: size - start]
  rows.flush()
  index = _Index(path, some.forms)
  plan = Plan([index.lengths], data, seed=0, once=True)
  with _memory() as memory:
    begun = time.perf_counter()
    for _ in ahead.count(plan, [index], 1 << 62, processes):
      pass
    took = time.perf_counter() - begun
  windows = [plan.window(i) for i in range(0, len(plan.counted()["ends"]), 401)]
  ahead.keep(plan, folder / "plan.npz", "x")
  step = min(1_000_000, (plan.reached() - 1) // data.rows)
  seek = []
  for _ in range(3):
    fresh = Plan([index.lengths], data, seed=0, once=True)
    begun = time.perf_counter()
    ahead.recall(fresh, folder / "plan.npz", "x")
    fresh.row(step * data.rows)
    seek.append(time.perf_counter() - begun)
  return {"documents": size, "plan_100m_s": took * 100e6 / size, "plan_s": took,
          "plan_peak_gib": memory[0] / 2**30, "seek_step": step, "seek_s": statistics.median(seek),
          "packing_efficiency": sum(w.positions for w in windows) / (
            sum(w.rows for w in windows) * data.positions),
          "frame_efficiency": sum(w.frames for w in windows) / (
            sum(w.rows for w in windows) * data.frames), "processes": processes}


class _Index:
  """A length index on disk; cheap to send to another process."""

  def __init__(self, path: Path, forms: np.ndarray):
    self._path, self._forms = path, forms

  @property
  def lengths(self) -> lengths.Lengths:
    return lengths.Lengths(np.asarray(np.load(self._path, mmap_mode="r")), self._forms)


@contextlib.contextmanager
def _memory() -> Iterator[list[float]]:
  """The most bytes that this process and its children have together, shared pages once."""
  most, stop = [0.0], threading.Event()

  def watch() -> None:
    while not stop.wait(0.1):
      most[0] = max(most[0], sum(map(_pss, [os.getpid(), *_children(os.getpid())])))

  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  try:
    yield most
  finally:
    stop.set()
    thread.join()


def _children(pid: int) -> list[int]:
  """All below a process; those that end meanwhile may be left out."""
  found = list[int]()
  with contextlib.suppress(OSError):
    for task in Path(f"/proc/{pid}/task").iterdir():
      found += [int(x) for x in (task / "children").read_text().split()]
  return found + [x for child in found for x in _children(child)]


def _pss(pid: int) -> float:
  with contextlib.suppress(OSError):
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
      if line.startswith("Pss:"):
        return float(line.split()[1]) * 1024
  return 0.0
