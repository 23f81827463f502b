"""Rows of a data file: whole batches by key and by filter, or single rows by their place."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.data_file import DatasetError, OpenFile, within
from ..dataset.rows import schema

_NUMBER = "__row_of_the_group"


def columns_of(condition: pc.Expression | None, url: str) -> list[str]:
    """The metadata columns that a filter speaks of; some small one where it speaks of none.

    Raises DatasetError for a filter that is none, or speaks of anything else.
    """
    if condition is None:
        return []
    empty = schema(0).empty_table()
    names = [name for name in empty.column_names if name != "header"]
    try:
        empty.select(names).filter(condition)
    except (pa.ArrowException, TypeError) as error:
        raise DatasetError(
            f"{url}: the filter cannot be applied to the columns of metadata "
            f"({', '.join(names)}): {error}"
        ) from error
    # Arrow does not tell which columns an expression names, but it misses them.
    found = [name for name in names if not _applies(condition, empty.drop_columns([name]))]
    return found or ["index"]


def _applies(condition: pc.Expression, empty: pa.Table) -> bool:
    try:
        empty.filter(condition)
    except pa.ArrowException:
        return False
    return True


def batches(
    opened: OpenFile,
    columns: Sequence[str],
    keys: Sequence[str] | None = None,
    condition: pc.Expression | None = None,
    named: Sequence[str] = (),
) -> Iterator[pa.RecordBatch]:
    """The pictures of each row group that are asked for, in ``columns``, one group at a time.

    ``keys`` are sorted; ``named`` are the columns that ``condition`` speaks of. Row groups in which
    nothing is asked for cost at most the request for these and the keys. ``header`` must be among
    the columns: samples that are no pictures are left out.
    """
    selecting = sorted({*named, *(["key"] if keys is not None else [])})
    for group, bounds in enumerate(opened.key_bounds()):
        if keys is not None and not within(keys, bounds):
            continue
        chosen: pa.Array | None = None
        if selecting:
            found = opened.read(group, selecting)
            numbers = pa.array(range(found.num_rows), pa.int32())
            found = found.append_column(_NUMBER, numbers)
            if keys is not None:
                wanted = pa.array(keys, pa.string())
                found = found.filter(pc.is_in(found.column("key"), value_set=wanted))
            if condition is not None:
                found = found.filter(condition)
            if not found.num_rows:
                continue
            if found.num_rows < len(numbers):
                chosen = found.column(_NUMBER)
        table = opened.read(group, columns)
        if chosen is not None:
            table = table.take(chosen)
        if table.column("header").null_count:
            table = table.filter(table.column("header").is_valid())
        yield from table.combine_chunks().to_batches()


def rows_at(
    opened: OpenFile, columns: Sequence[str], places: Mapping[int, Sequence[int]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows by their numbers in the file; ``places`` names them by row group.

    Raises IndexError for a place that there is not.
    """
    for group, rows in places.items():
        first = opened.first_row(group)
        table = opened.read(group, columns).take(pa.array([row - first for row in rows]))
        yield from zip(rows, table.to_pylist(), strict=True)
