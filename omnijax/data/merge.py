"""The documents of all units as one table, duplicates and what is held out told apart.

N documents  P parts
"""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from omnijax import vocab as vocab_lib
from omnijax.data import documents, tokenise

_HELD = 1 << 32  # the first half of a group's hash is compared with a share of this


@dataclasses.dataclass(frozen=True)
class Merged:
  """Everything that units of documents wrote."""

  files: list[pathlib.Path]
  parts: np.ndarray  # [P] rows of documents.PART
  sizes: np.ndarray  # [N] parts of each
  about: np.ndarray  # [N] rows of tokenise.ABOUT
  text: list[int]  # ids in each shard of text
  rejects: list[dict[str, Any]]

  @classmethod
  def of(cls, out: pathlib.Path, units: int, dedup: bool) -> "Merged":
    """Reads so many units of a directory.

    Of documents with one id only the first stays; so it is, if `dedup`, of those that say the same.
    """
    files = [out / f"documents-{number:05d}.npz" for number in range(units)]
    parts, sizes, about, text, rejects = [], [], [], list[int](), list[dict[str, Any]]()
    for path in files:
      with np.load(path) as value:
        table = value["parts"]
        table["offset"] += np.where(table["kind"] == vocab_lib.TEXT, sum(text), 0)
        table["words_offset"] += sum(text)
        parts.append(table)
        sizes.append(value["sizes"])
        about.append(value["about"])
        text.append(int(value["text"]))
        rejects += json.loads(str(value["rejects"]))
    none = [np.zeros(0, documents.PART)], [np.zeros(0, np.int32)], [np.zeros(0, tokenise.ABOUT)]
    all_of = [np.concatenate(x or n) for x, n in zip((parts, sizes, about), none, strict=True)]
    merged = cls(files, all_of[0], all_of[1].astype(np.int64), all_of[2], text, rejects)
    for field, kind in (("id", "duplicate id"), *((("content", "duplicate"),) if dedup else ())):
      merged = merged._once(field, kind)
    merged.rejects.sort(key=lambda r: r["line"])
    return merged

  def _once(self, field: str, kind: str) -> "Merged":
    """Without documents that have a hash in common with an earlier one."""
    _, first_N, which_N = np.unique(self.about[field], return_index=True, return_inverse=True)
    again = np.flatnonzero(first_N[which_N] != np.arange(len(which_N)))
    if not len(again):
      return self
    before = self.about["line"][first_N[which_N[again]]].tolist()
    lines = self.about["line"][again].tolist()
    names = self._ids(set(lines))
    why = ("has the id" if field == "id" else "says all") + " of line"
    new = [{"line": line, "id": names[line], "reason": f"{kind}: {why} {earlier}"}
           for line, earlier in zip(lines, before, strict=True)]
    keep_N = np.ones(len(self.sizes), bool)
    keep_N[again] = False
    parts, sizes = self.some(keep_N)
    return dataclasses.replace(self, parts=parts, sizes=sizes, about=self.about[keep_N],
                               rejects=self.rejects + new)

  def _ids(self, lines: set[int]) -> dict[int, str]:
    """The ids of documents by their lines, from the units that have them."""
    found = {}
    for path in self.files:
      with np.load(path) as value:
        of_lines = value["about"]["line"].tolist()
        if lines.intersection(of_lines):
          found |= dict(zip(of_lines, json.loads(str(value["ids"])), strict=True))
    return found

  def some(self, mine_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Parts and sizes of some documents."""
    return self.parts[np.repeat(mine_N, self.sizes)], self.sizes[mine_N]

  def held(self, share: float) -> np.ndarray:
    """Which documents are held out, whatever else there is; all or none of a group: bool [N]."""
    first_N = np.frombuffer(self.about["group"].tobytes(), "<u4")[::4]
    return first_N < share * _HELD


def held_out(group: str, share: float) -> bool:
  """Whether the documents of a group are held out, as `Merged.held` decides."""
  return int.from_bytes(tokenise.digest_of(group)[:4], "little") < share * _HELD
