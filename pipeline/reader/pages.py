"""Pages of pictures in the order of a dataset; the cost of a page does not grow with the dataset.

A page reads the small columns of row groups, from where the last page ended. A search for a part of
the key first reads the keys in the indexes (one small file for each data file), some files at once,
and then only row groups with a match. After ``PAGE_SECONDS`` a page ends with what it has found.
"""

import base64
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.data_file import CursorError, DataFile, DatasetError, OpenFile
from ..dataset.index import BrokenIndexError
from .blocks import IndexBlocks
from .lookup import Lookup
from .rows import RowFilter

MAX_LIMIT = 1000
PAGE_SECONDS = 2.0  # after these a page ends, unless it has read nothing yet
_SHOWN = ["layers", "cumulative_bytes", "psnr", "key", "width", "height"]
_AHEAD = 8  # indexes searched at once
_ROW = "__row"  # of the file, beside the columns


def page(
    lookup: Lookup,
    after: str | None,
    limit: int,
    search: str,
    filter: pc.Expression | None,
    on_damage: Callable[[DatasetError], None] | None = None,
) -> tuple[list[dict[str, Any]], str | None]:
    """``Dataset.page``. ``on_damage`` gets errors of damaged files, which are then left out."""
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"a page has 1 to {MAX_LIMIT} pictures, not {limit}")
    where = RowFilter.of(filter, lookup.store.url)
    position, row = _parse(lookup, after)
    deadline = time.monotonic() + PAGE_SECONDS
    items: list[dict[str, Any]] = []

    def damaged(error: DatasetError) -> None:
        if on_damage is None or error.passing:
            raise error
        on_damage(error)

    groups = _groups(lookup, position, row, search, deadline, damaged)
    for number, file, opened, group, first in groups:
        if opened is None:  # out of time
            return items, _cursor(number, first)
        try:
            table = _shown(opened, group, first, where.columns)
            table = _selected(table, row if number == position else 0, search, where)
            table = table.slice(0, limit - len(items))
            items += list(_items(lookup, opened, group, table))
        except DatasetError as error:
            damaged(error)
            continue
        if len(items) == limit:
            following = table.column(_ROW)[-1].as_py() + 1
            at_end = following == file.rows and number == len(lookup.files) - 1
            return items, None if at_end else _cursor(number, following)
    return items, None


def _groups(
    lookup: Lookup,
    position: int,
    row: int,
    search: str,
    deadline: float,
    damaged: Callable[[DatasetError], None],
) -> Iterator[tuple[int, DataFile, OpenFile | None, int, int]]:
    """Row groups to read: number of the file, the file, opened, the group and its first row.

    Begins with the ``row`` of the file at ``position``. After the deadline it ends with one that is
    not opened, where the next page begins. Errors of a footer go to ``damaged``.
    """
    looked = False
    for start in range(position, len(lookup.files), _AHEAD):
        files = lookup.files[start : start + _AHEAD]
        if looked and time.monotonic() > deadline:
            yield start, files[0], None, 0, 0
            return
        for number, (file, hits) in enumerate(_hits(lookup, files, search), start):
            if not file.ok or hits == set():
                looked = looked or bool(search)
                continue
            with OpenFile(lookup.store, file, lookup.cache) as opened:
                first = 0
                try:
                    footer = opened.metadata
                except DatasetError as error:
                    damaged(error)
                    looked = True
                    continue
                for group in range(footer.num_row_groups):
                    end = first + footer.row_group(group).num_rows
                    begun = row if number == position else 0
                    if begun < end and (hits is None or group in hits):
                        if looked and time.monotonic() > deadline:
                            yield number, file, None, group, max(first, begun)
                            return
                        looked = True
                        yield number, file, opened, group, first
                    first = end


def _hits(
    lookup: Lookup, files: Sequence[DataFile], search: str
) -> Iterator[tuple[DataFile, set[int] | None]]:
    """Each file, and its row groups with matching keys; None if they are not known."""
    if not search:
        yield from ((file, None) for file in files)
        return

    def hits(file: DataFile) -> set[int] | None:
        if not lookup.has_index(file):
            return None
        blocks = IndexBlocks(lookup.store, file, lookup.cache)
        try:
            tables = (one.table for one in blocks.get(range(len(blocks.bounds()))))
            return {
                group
                for table in tables
                for group in table.filter(_has(table, search)).column("row_group").to_pylist()
            }
        except BrokenIndexError as error:
            lookup.ignore(file, str(error))
            return None

    with ThreadPoolExecutor(_AHEAD) as pool:
        yield from zip(files, pool.map(hits, files), strict=True)


def _has(table: pa.Table, search: str) -> pa.ChunkedArray:
    return pc.match_substring(table.column("key"), search, ignore_case=True)


def _shown(opened: OpenFile, group: int, first: int, named: Sequence[str]) -> pa.Table:
    """The small columns of a row group, with the number of each row in the file."""

    def read() -> pa.Table:
        table = opened.read(group, names)
        numbers = pa.array(range(first, first + table.num_rows), pa.int64())
        return table.append_column(_ROW, numbers)

    names = list(dict.fromkeys([*_SHOWN, *named]))
    return opened.cached(("page", group, *names), read, lambda table: table.nbytes)


def _selected(table: pa.Table, row: int, search: str, where: RowFilter) -> pa.Table:
    wanted = pc.greater_equal(table.column(_ROW), row)
    for side in ("width", "height"):  # null where there is no picture, 0 in a damaged row
        wanted = pc.and_(wanted, pc.fill_null(pc.greater(table.column(side), 0), False))
    wanted = pc.and_(wanted, table.column("key").is_valid())
    if search:
        wanted = pc.and_(wanted, _has(table, search))
    return where.apply(table.filter(wanted))


def _items(
    lookup: Lookup, opened: OpenFile, group: int, table: pa.Table
) -> Iterator[dict[str, Any]]:
    if not table.num_rows:
        return
    kept = _kept(lookup, opened, group, table)
    for row, has_original in zip(table.select(_SHOWN).to_pylist(), kept, strict=True):
        yield {**row, "has_original": has_original}


def _kept(lookup: Lookup, opened: OpenFile, group: int, table: pa.Table) -> list[bool]:
    """Whether the original of each row is kept."""
    file = opened.file
    if file.record.get("kept") == 0:
        return [False] * table.num_rows
    keys = table.column("key").to_pylist()
    entries = lookup.find_in_file(file, sorted(set(keys)))
    if all(key in entries and entries[key].indexed for key in keys):
        return [entries[key].original is not None for key in keys]
    # without an index, this takes the whole column of originals
    there = opened.read(group, ["original"]).column("original").is_valid().to_pylist()
    first = opened.first_row(group)
    return [there[row - first] for row in table.column(_ROW).to_pylist()]


def _cursor(position: int, row: int) -> str:
    packed = json.dumps([position, row], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def _parse(lookup: Lookup, cursor: str | None) -> tuple[int, int]:
    if cursor is None:
        return 0, 0
    try:
        packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        position, row = json.loads(packed)
        if 0 <= position < len(lookup.files) and 0 <= row <= lookup.files[position].rows:
            return int(position), int(row)
    except (ValueError, TypeError, RecursionError):
        pass
    raise CursorError(f"{lookup.store.url}: {cursor!r:.80} is no cursor of this dataset")
