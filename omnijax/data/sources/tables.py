"""Parquet tables as Hugging Face lays them out: text, and pictures and sounds as bytes in cells.

A picture is a column of bytes, or of {"bytes", "path"}, or of lists of these; a path without bytes
is a file beside the table. Needs the extra `parquet`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from omnijax.data.sources import rows, store
from omnijax.data.sources.item import Bad, Item

_TOGETHER = 1024  # rows read at a time


def tables(root: str, names: Sequence[str]) -> Iterator[Item]:
  """The rows of tables, one after another; of a broken one, a bad item."""
  number = 0
  for name in names:
    path = store.Store(root).path(name)
    library = store.parquet(path)
    count = 0
    try:
      with store.open_file(path) as file:
        table = library.parquet.ParquetFile(file)
        for where, row in _rows(table, name):
          number, count = number + 1, count + 1
          yield rows.item(number, where, row)
      bad = None if count else Bad("empty table", f"{name} has no rows")
    except (OSError, library.ArrowException) as error:
      bad = store.unreadable(name, error)
    if bad is not None:
      number += 1
      yield rows.item(number, name, bad)


def _rows(table: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """Id and content of each row; what is bytes is replaced by the name of its cell."""
  schema = table.schema_arrow
  for group in range(table.num_row_groups):
    read, left = list[str](), set[str]()
    for i in range(table.metadata.num_columns):
      path = table.schema.column(i).path
      if _heavy(table.schema.column(i), table.metadata.row_group(group).column(i)):
        left.add(path.split(".")[0])
      else:
        read.append(path)
    some = ((row for batch in table.iter_batches(_TOGETHER, [group], read)
             for row in batch.to_pylist()) if read
            else ({} for _ in range(table.metadata.row_group(group).num_rows)))
    for at, row in enumerate(some):
      for field in schema:
        value = row.get(field.name)
        if field.name in left and value is None:
          value = {} if str(field.type).startswith("struct") else b"left"
        found = _media(value, store.cell(name, group, at, field.name))
        if found is not None:
          row[field.name] = found
      yield f"{name}@{group}:{at}", row


def _heavy(leaf: Any, chunk: Any) -> bool:
  """Whether a leaf is bytes that need not be read to know that they are there."""
  path = leaf.path.split(".")
  return (leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type == "NONE"
          and chunk.statistics is not None and chunk.statistics.null_count == 0
          and (len(path) == 1 or len(path) == 2 and path[-1] == "bytes"))


def _media(value: Any, cell: str) -> Any:
  """What stands for a value that is bytes, or has some; None if it is no medium."""
  if isinstance(value, bytes):
    return cell
  if isinstance(value, dict) and set(value) <= {"bytes", "path", "sampling_rate"}:
    return value.get("path") if value.get("bytes", b"") is None else f"{cell}.bytes"
  if isinstance(value, list):
    found = [_media(v, f"{cell}.{i}") for i, v in enumerate(value)]
    return found if found and all(f is not None or v is None for f, v in
                                  zip(found, value, strict=True)) and any(found) else None
  return None
