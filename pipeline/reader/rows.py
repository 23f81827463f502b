"""Reads rows of a row group: those that keys or a filter select, and those at known places."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.data_file import DatasetError, OpenFile, within
from ..dataset.rows import layer_column, schema, stream_columns
from .originals import ORIGINAL, PACKING, stored_columns, with_files

ROW = "__row_of_the_group"  # an added column: the number of a row in its row group


@dataclass(frozen=True)
class RowFilter:
    """An expression that rows must satisfy (None: every row does), and the columns in it."""

    expression: pc.Expression | None = None
    columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, expression: pc.Expression | None, url: str) -> "RowFilter":
        """A filter over metadata columns. If it names none, a small column is read instead.

        Raises DatasetError for other expressions; ``url`` is for the message.
        """
        if expression is None:
            return cls()
        empty = schema(0).empty_table()
        names = [name for name in empty.column_names if name != "header"]
        try:
            empty.select(names).filter(expression)
        except (pa.ArrowException, TypeError) as error:
            raise DatasetError(
                f"{url}: the filter cannot be applied to the columns of metadata "
                f"({', '.join(names)}): {error}"
            ) from error
        # Arrow does not list the columns of an expression, but it fails if one is missing.
        found = [name for name in names if not _applies(expression, empty.drop_columns([name]))]
        return cls(expression, tuple(found or ["index"]))

    def apply(self, table: pa.Table) -> pa.Table:
        return table if self.expression is None else table.filter(self.expression)

    def numbers(
        self, table: pa.Table, keys: Sequence[str] | None = None, among: pa.Array | None = None
    ) -> pa.Array:
        """The numbers of a row group's rows that satisfy the filter, int32.

        ``table`` is the whole row group. With ``keys`` and ``among`` (numbers), only these rows
        are considered.
        """
        table = table.append_column(ROW, pa.array(range(table.num_rows), pa.int32()))
        table = take_rows(table, among)
        if keys is not None:
            wanted = pa.array(keys, pa.string())
            table = table.filter(pc.is_in(table.column("key"), value_set=wanted))
        return self.apply(table).column(ROW).combine_chunks()

    def numbers_in(
        self,
        opened: OpenFile,
        group: int,
        keys: Sequence[str] | None = None,
        among: pa.Array | None = None,
    ) -> pa.Array | None:
        """``numbers`` of a row group. Reads only the columns of the filter and of keys.

        Without filter and keys it reads nothing and returns ``among``.
        """
        columns = sorted({*self.columns, *(["key"] if keys is not None else [])})
        if not columns or (among is not None and not len(among)):
            return among
        return self.numbers(opened.read(group, columns), keys, among)


EVERY_ROW = RowFilter()


def _applies(expression: pc.Expression, empty: pa.Table) -> bool:
    try:
        empty.filter(expression)
    except pa.ArrowException:
        return False
    return True


def take_rows(table: pa.Table, numbers: pa.Array | None) -> pa.Table:
    """The rows with these sorted numbers (None: all)."""
    return table if numbers is None or len(numbers) == table.num_rows else table.take(numbers)


def _pictures(table: pa.Table) -> pa.Table:
    """The rows that have a stream. The others are bad or filtered samples."""
    header = table.column("header")
    return table.filter(header.is_valid()) if header.null_count else table


def batches(
    opened: OpenFile,
    columns: Sequence[str],
    keys: Sequence[str] | None = None,
    where: RowFilter = EVERY_ROW,
) -> Iterator[pa.RecordBatch]:
    """The selected pictures of each row group, with ``columns`` (``header`` among them).

    ``keys`` are sorted. If a row group has no selected picture, only the columns of filter and keys
    are read.
    """
    for group, bounds in enumerate(opened.group_bounds()):
        if keys is not None and not within(keys, bounds):
            continue
        numbers = where.numbers_in(opened, group, keys)
        if numbers is None or len(numbers):
            read = stored_columns(columns)
            table = _pictures(take_rows(opened.read(group, read), numbers))
            table = with_files(table, columns, opened.url)
            yield from table.combine_chunks().to_batches()


def read_pictures(
    opened: OpenFile,
    group: int,
    layers: int,
    columns: Sequence[str] = (),
    where: RowFilter = EVERY_ROW,
    rows: np.ndarray | None = None,
) -> pa.Table:
    """The pictures of a row group that satisfy ``where``; with ``rows``, only those rows.

    The table has ``columns``, the columns of the stream up to ``layers``, ``original`` and ``ROW``.
    ``original`` is read only if a picture has fewer layers, and is null for the others, unless it
    is one of ``columns``. Raises what ``OpenFile.read`` raises.
    """
    among = None if rows is None else pa.array(np.sort(rows), pa.int32())
    numbers = where.numbers_in(opened, group, among=among)
    wanted = [*dict.fromkeys([*columns, *stream_columns(layers)])]
    names = stored_columns(wanted)
    if numbers is not None and not len(numbers):
        fields = opened.metadata.schema.to_arrow_schema()
        table = pa.schema([fields.field(name) for name in names]).empty_table()
    else:
        table = take_rows(opened.read(group, names), numbers)
    if numbers is None:
        numbers = pa.array(range(table.num_rows), pa.int32())
    table = _pictures(table.append_column(ROW, numbers))
    table = with_files(table, [*wanted, ROW], opened.url)
    if ORIGINAL in columns:
        return table
    originals = pa.nulls(table.num_rows, pa.binary())
    if layers and table.column(layer_column(layers - 1)).null_count:
        kept = opened.read(group, ["key", ORIGINAL, PACKING]).take(table.column(ROW))
        short = table.column(layer_column(layers - 1)).is_null()
        for place, name in ((1, ORIGINAL), (2, PACKING)):
            column = kept.column(name)
            column = pc.if_else(short, column, pa.scalar(None, column.type))
            kept = kept.set_column(place, name, column)
        originals = with_files(kept, [ORIGINAL], opened.url).column(ORIGINAL)
    return table.append_column(ORIGINAL, originals)


def rows_at(
    opened: OpenFile, columns: Sequence[str], places: Mapping[int, Sequence[int]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their numbers in the file. ``places`` has the numbers by row group.

    Raises IndexError for a number that the row group does not have.
    """
    for group, rows in places.items():
        first = opened.first_row(group)
        table = opened.read(group, columns).take(pa.array([row - first for row in rows]))
        yield from zip(rows, table.to_pylist(), strict=True)
