"""The length index of a source: 16 bytes a document, so that a hundred million fit in memory.

What few documents have alike (positions, frames, ids of text) is in a row of its own; everything
else that lengths depend on is one of few forms.

N documents
"""

from typing import Any

import numpy as np

from omnijax.data import documents

ROW = np.dtype([("positions", "<i4"), ("frames", "<i4"), ("text", "<i4"), ("form", "<u4")])
FORM = np.dtype([(name, documents.COUNTS[name]) for name in documents.COUNTS.names or ()
                 if name not in (*(ROW.names or ()), "parts")])


class Lengths:
  """Rows of `documents.COUNTS` by another layout: indexed by documents, or by the name of a field.

  Args:
    rows: of `ROW`, [N].
    forms: of `FORM`.
  """

  def __init__(self, rows: np.ndarray, forms: np.ndarray):
    self.rows, self.forms = rows, forms
    self._columns = {name: np.ascontiguousarray(forms[name]) for name in FORM.names or ()}

  @classmethod
  def of(cls, counts_N: np.ndarray) -> "Lengths":
    """The index of rows of `documents.COUNTS`."""
    form_N = np.empty(len(counts_N), FORM)
    for name in FORM.names or ():
      form_N[name] = counts_N[name]
    forms, which_N = np.unique(form_N, return_inverse=True)
    rows = np.empty(len(counts_N), ROW)
    for name in ("positions", "frames", "text"):
      rows[name] = counts_N[name]
    rows["form"] = which_N
    return cls(rows, forms)

  @property
  def shape(self) -> tuple[int, ...]:
    return self.rows.shape

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, key: Any) -> Any:
    if not isinstance(key, str):
      out = object.__new__(Lengths)
      out.rows, out.forms, out._columns = self.rows[key], self.forms, self._columns
      return out
    if key in self._columns:
      return self._columns[key][self.rows["form"]]
    return self.rows[key]

  @classmethod
  def join(cls, some: "list[Lengths]") -> "Lengths":
    """One index of the documents of several."""
    start = np.cumsum([0, *(len(x.forms) for x in some)])
    rows = np.concatenate([x.rows for x in some])
    rows["form"] += np.repeat(start[:-1], [len(x) for x in some]).astype(np.uint32)
    return cls(rows, np.concatenate([x.forms for x in some]))
