"""Reads the layers of a few rows of a row group with the index, instead of whole columns.

A row group has the layers of up to 256 pictures. If few of them are wanted, requests for only their
bytes read far less. The small columns are read whole, because they are compressed.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ..dataset.data_file import OpenFile
from ..dataset.rows import STREAM_COLUMNS, layer_column
from ..reader.fetch import fetch
from ..reader.lookup import Lookup
from ..reader.originals import stored_columns
from .layer_rule import LayerChoice

# Rows are few if they are less than a quarter (1 / FEW) of their row group. The group must be
# LARGE: reading a small one whole costs less than the requests for the index and for each row.
FEW = 4
LARGE = 256 << 10  # bytes of layers and originals


def are_few(opened: OpenFile, group: int, rows: int, columns: Sequence[str]) -> bool:
    """Whether to fetch ``columns`` of ``rows`` rows of a row group one by one."""
    metadata = opened.metadata.row_group(group)
    if rows * FEW >= metadata.num_rows or opened.file.index is None:
        return False
    chunks = map(metadata.column, range(metadata.num_columns))
    bulky = {*columns} - {*STREAM_COLUMNS}
    return sum(one.total_compressed_size for one in chunks if one.path_in_schema in bulky) > LARGE


def with_streams(
    lookup: Lookup,
    opened: OpenFile,
    group: int,
    places: Sequence[int],
    rows: Sequence[dict[str, Any]],
    takes: Sequence[LayerChoice],
    columns: Sequence[str],
) -> tuple[list[dict[str, Any]], int] | None:
    """The rows with the layers in ``takes``, and the bytes read.

    ``places`` are the numbers of the rows in the row group; ``columns`` are further columns among
    ``SIDE_COLUMNS``. None if the index has other rows for these keys, which may be duplicates.
    """
    first = opened.first_row(group)
    pictures = [number for number, row in enumerate(rows) if row["header"] is not None]
    if "original" in columns and len(pictures) < len(rows):
        return None  # an index does not have the originals of bad samples
    keys = sorted({rows[number]["key"] for number in pictures})
    found = lookup.find_in_file(opened.file, keys)
    if not lookup.has_index(opened.file):
        return None
    alike: dict[int, list[int]] = defaultdict(list)
    for number in pictures:
        entry = found.get(rows[number]["key"])
        if entry is None or not entry.indexed or entry.row != first + places[number]:
            return None
        alike[takes[number].layers].append(number)
    most = max(alike, default=0)
    further = stored_columns(columns)
    empty = dict.fromkeys([*(layer_column(n) for n in range(most)), *further])
    complete = [row | empty for row in rows]
    nbytes = 0
    for layers, numbers in alike.items():
        entries = [found[rows[number]["key"]] for number in numbers]
        for number, one in zip(numbers, fetch(lookup, entries, layers, columns), strict=True):
            names = map(layer_column, range(layers))
            complete[number] |= dict(zip(names, one.encoded.layers, strict=False)) | one.extra
            nbytes += sum(map(len, one.encoded.layers))
            nbytes += sum(len(one.extra[name] or b"") for name in columns)
    return complete, nbytes
