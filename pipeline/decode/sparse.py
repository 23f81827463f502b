"""A few rows of a row group: their layers one by one, by the index, instead of all of its columns.

A row group has the layers of up to 256 pictures. Where a subset has few of them, requests for just
their bytes read far less; the small columns are read as ever, because they are compressed.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ..dataset.data_file import OpenFile
from ..dataset.rows import STREAM_COLUMNS, layer_column
from ..reader.fetch import fetch
from ..reader.lookup import Lookup
from .layer_rule import Choice

# Rows are few if they are less than a quarter of their row group, and it is large enough for the
# index and some more requests to be worth their while.
FEW = 4
LARGE = 256 << 10  # bytes of layers and originals


def are_few(opened: OpenFile, group: int, rows: int, columns: Sequence[str]) -> bool:
    """Whether to fetch ``rows`` rows of a row group one by one; ``columns`` are what is wanted."""
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
    takes: Sequence[Choice],
    columns: Sequence[str],
) -> tuple[list[dict[str, Any]], int] | None:
    """The rows with their streams, as far as ``takes`` say, and bytes read.

    ``places`` are their numbers in the row group, ``columns`` those of ``SIDE_COLUMNS`` that are
    wanted too. None where the index does not have them: keys may be there twice.
    """
    first = opened.first_row(group)
    pictures = [number for number, row in enumerate(rows) if row["header"] is not None]
    if "original" in columns and len(pictures) < len(rows):
        return None  # originals of samples that are no pictures are in no index
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
    empty = dict.fromkeys([*(layer_column(n) for n in range(most)), *columns])
    complete = [row | empty for row in rows]
    nbytes = 0
    for layers, numbers in alike.items():
        entries = [found[rows[number]["key"]] for number in numbers]
        for number, one in zip(numbers, fetch(lookup, entries, layers, columns), strict=True):
            names = map(layer_column, range(layers))
            complete[number] |= dict(zip(names, one.encoded.layers, strict=False)) | one.extra
            nbytes += sum(map(len, one.encoded.layers))
            nbytes += sum(len(value) for value in one.extra.values() if value is not None)
    return complete, nbytes
