"""The pictures of a row group as they are handed on: chosen rows, and originals that stand in."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.data_file import OpenFile
from ..dataset.rows import layer_column, stream_columns

ROW = "__row_of_the_group"
ORIGINAL = "original"


def read_pictures(
    opened: OpenFile,
    group: int,
    layers: int,
    columns: Sequence[str] = (),
    condition: pc.Expression | None = None,
    named: Sequence[str] = (),
    rows: np.ndarray | None = None,
) -> pa.Table:
    """The pictures of a row group that ``condition`` allows, of ``rows`` if these are given.

    The table has ``columns``, the columns of the stream up to ``layers``, ``original`` and the
    row's number, ``ROW``. ``original`` is the picture's file where that is kept in place of layers
    that are not; elsewhere it is null unless it is one of ``columns``. It is read only if a picture
    has fewer layers. ``named`` are the columns that ``condition`` speaks of. Raises what
    ``OpenFile.read`` raises.
    """
    count = opened.metadata.row_group(group).num_rows
    numbers = np.arange(count, dtype=np.int32) if rows is None else np.sort(rows).astype(np.int32)
    if named and len(numbers):
        found = _rows(opened.read(group, named), numbers).filter(condition)
        numbers = found.column(ROW).to_numpy()
    names = [*dict.fromkeys([*columns, *stream_columns(layers)])]
    if not len(numbers):
        return _empty(opened, names)
    table = _rows(opened.read(group, names), numbers)
    table = table.filter(table.column("header").is_valid())  # the others are no pictures
    if ORIGINAL in columns:
        return table
    originals = pa.nulls(table.num_rows, pa.binary())
    if layers and table.column(layer_column(layers - 1)).null_count:
        kept = opened.read(group, [ORIGINAL]).take(table.column(ROW)).column(ORIGINAL)
        short = table.column(layer_column(layers - 1)).is_null()
        originals = pc.if_else(short, kept, pa.scalar(None, pa.binary()))
    return table.append_column(ORIGINAL, originals)


def _rows(table: pa.Table, numbers: np.ndarray) -> pa.Table:
    chosen = table if len(numbers) == table.num_rows else table.take(pa.array(numbers))
    return chosen.append_column(ROW, pa.array(numbers, pa.int32()))


def _empty(opened: OpenFile, names: Sequence[str]) -> pa.Table:
    columns = pa.schema([opened.metadata.schema.to_arrow_schema().field(name) for name in names])
    table = columns.empty_table().append_column(ROW, pa.array([], pa.int32()))
    if ORIGINAL in names:
        return table
    return table.append_column(ORIGINAL, pa.array([], pa.binary()))
