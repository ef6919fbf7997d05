"""What is in a directory of records: report.json for programs, report.html for people.

Keys of report.json:
  source, items, documents, heldout, rejected: items = documents + heldout + rejected. Those held
    out have a report of their own, without `heldout`, `rejected` and `rejects`.
  parts: {text, image, audio}, of all documents together.
  tokens: {text, transcripts, image, audio}: ids of texts and of transcripts, codes of pictures, and
    codes of sound, which are its frames times its codebooks, both sides of a dialogue included.
  audio: {frames, hours, other_side_hours, stored_hours}: as often as documents have them; what is
    heard meanwhile, in dialogues; and every recording once, also those of documents that are
    rejected or held out. Without a tokenizer of audio there is no such key.
  images: {codes, megapixels, stored_megapixels}: likewise.
  positions, frames: of the plain rendering without delays: {total, least, median, mean, most,
    edges, counts}; counts[i] documents have edges[i] <= n < edges[i + 1].
  tasks: documents that allow each.
  rejects: [{reason, count, examples: [{id, line, reason}]}], most first.
  tokenizers: fingerprints and sizes of those that made the records.
  examples: numbers of the documents that the page shows.

N documents  P parts  T frames
"""

import collections
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from omnijax import vocab as vocab_lib
from omnijax.data import documents, prepare
from omnijax.data import records as records_lib
from omnijax.evals import source_page

EXAMPLES = 12
_EACH = 5  # examples of a reason to reject
_CHUNK = 1 << 20  # rows of a table looked at together
_NAMES = vocab_lib.MODALITIES
# Two bins to each doubling: 0, 1, 2, 3, 4, 6, 8, 12, 16, ...
_EDGES = np.array([0, 1, *(n << k for k in range(29) for n in (2, 3))], np.int64)


def write(out: Path, tokenizers: Any, source: str) -> dict[str, Any]:
  """Writes both files into a directory of records, and of what is held out into its own.

  Args:
    out: finished records.
    tokenizers: that made them: text, image and audio, with `decode`.
    source: its name, for the page.

  Returns:
    What is in report.json.
  """
  held = out / prepare.HELDOUT
  held_out = records_lib.Records(held) if (held / records_lib.META).exists() else None
  if held_out is not None:
    _write(held_out, tokenizers, {"source": source, **_figures(held_out)})
  records = records_lib.Records(out)
  rejects = _rejects(out)
  values = {"source": source, **_figures(records), "heldout": len(held_out or ()),
            "rejected": sum(r["count"] for r in rejects), "rejects": rejects}
  assert values["items"] == values["documents"] + values["heldout"] + values["rejected"], values
  _write(records, tokenizers, values)
  return values


def _write(records: records_lib.Records, tokenizers: Any, values: dict[str, Any]) -> None:
  page = source_page.page(records, tokenizers, values)
  records_lib.write(records.root / "report.html", page.encode())
  records_lib.write_json(records.root / "report.json", values)


def _figures(records: records_lib.Records) -> dict[str, Any]:
  """What follows from the tables and the meta data."""
  meta = records.meta
  sums = _parts(records.table, meta.tokenizers.get("audio", {}).get("codebooks", 0))
  out: dict[str, Any] = {
    "items": meta.counts["items"], "documents": len(records), "parts": sums["parts"],
    "tokens": sums["tokens"]}
  stored = {name: sum(meta.shards.get(name, ())) for name in ("image", "audio")}
  if (audio := meta.tokenizers.get("audio")) is not None:
    hours = lambda frames: frames * audio["frame_size"] / audio["sample_rate"] / 3600
    out["audio"] = {
      "frames": sums["frames"], "hours": hours(sums["frames"]),
      "other_side_hours": hours(sums["heard"]), "stored_hours": hours(stored["audio"])}
  if (image := meta.tokenizers.get("image")) is not None:
    size = image["downsample"] ** 2 / 1e6
    out["images"] = {"codes": sums["tokens"]["image"],
                     "megapixels": sums["tokens"]["image"] * size,
                     "stored_megapixels": stored["image"] * size}
  for field in ("positions", "frames"):
    out[field] = _lengths(records.lengths[field])
  allowed_T = sum(documents.allowed(chunk).sum(0) for chunk in _chunks(records.lengths))
  out["tasks"] = dict(zip(documents.TASKS, np.asarray(allowed_T).tolist(), strict=True))
  return out | {"tokenizers": meta.tokenizers, "examples": chosen(records.lengths)}


def _chunks(table: Any) -> Iterator[Any]:
  for start in range(0, len(table), _CHUNK):
    yield table[start : start + _CHUNK]


def _parts(parts_P: np.ndarray, codebooks: int) -> dict[str, Any]:
  """Sums over all parts."""
  n = collections.Counter[str]()
  for p in _chunks(parts_P):
    for kind, name in enumerate(_NAMES):
      mine = p["kind"] == kind
      n[f"{name} parts"] += int(mine.sum())
      n[name] += int(p["length"][mine].sum())
    n["transcripts"] += int(np.maximum(p["words"], 0)[p["kind"] == vocab_lib.AUDIO].sum())
    n["heard"] += int(p["length"][(p["kind"] == vocab_lib.AUDIO) & (p["heard_offset"] >= 0)].sum())
  return {"parts": {name: n[f"{name} parts"] for name in _NAMES},
          "tokens": {"text": n["text"], "transcripts": n["transcripts"], "image": n["image"],
                     "audio": (n["audio"] + n["heard"]) * codebooks},
          "frames": n["audio"], "heard": n["heard"]}


def _lengths(x_N: np.ndarray) -> dict[str, Any]:
  """A histogram with bins that grow with the length, and what it is summed up by."""
  last = int(np.searchsorted(_EDGES, x_N.max(), side="right"))
  edges = _EDGES[: last + 1]
  counts = sum(np.histogram(chunk, edges)[0] for chunk in _chunks(x_N))
  return {"total": int(x_N.sum(dtype=np.int64)), "least": int(x_N.min()),
          "median": float(np.median(x_N)), "mean": float(x_N.mean(dtype=np.float64)),
          "most": int(x_N.max()), "edges": edges.tolist(), "counts": np.asarray(counts).tolist()}


def _rejects(out: Path) -> list[dict[str, Any]]:
  """By reason, most first, the first few of each."""
  found: dict[str, dict[str, Any]] = {}
  with (out / records_lib.REJECTS).open(encoding="utf-8") as lines:
    for line in lines:
      item = json.loads(line)
      kind = item["reason"].split(":")[0]
      entry = found.setdefault(kind, {"reason": kind, "count": 0, "examples": []})
      entry["count"] += 1
      if entry["count"] <= _EACH:
        entry["examples"].append(item)
  return sorted(found.values(), key=lambda entry: (-entry["count"], entry["reason"]))


def chosen(counts_N: Any) -> list[int]:
  """Documents to show: of each kind in turn, spread over all of that kind.

  Kinds are told apart by whether there are pictures, sounds and words, and by the tasks allowed.
  """
  kind_N = counts_N["allows"].astype(np.int64)
  for field in ("images", "audio", "monologues", "asked_positions"):
    kind_N = kind_N * 2 + (counts_N[field] > 0)
  of_kind = sorted((np.flatnonzero(kind_N == kind) for kind in np.unique(kind_N)), key=len)
  out = list[int]()
  for i, mine in enumerate(of_kind):  # what a kind is short of, those with more of it make up for
    n = min(len(mine), -(-(EXAMPLES - len(out)) // (len(of_kind) - i)))
    out += mine[np.linspace(0, len(mine) - 1, n).astype(int)].tolist()
  return sorted(out)
