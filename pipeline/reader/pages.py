"""Pages of pictures in the order of a dataset. The cost of a page does not grow with the dataset.

A page reads the small columns of row groups, from where the last page ended. A search for a part of
the key first reads the keys in the indexes (one small file for each data file), and then only row
groups with a match. Indexes have no captions, so a search for captions reads the side fields of all
row groups, in files that have captions. After ``PAGE_SECONDS`` a page ends with what it has found.
"""

import base64
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..dataset.data_file import CursorError, DataFile, DatasetError, OpenFile
from ..dataset.index import BrokenIndexError, IndexEntry
from .blocks import IndexBlocks
from .captions import captions_of
from .lookup import Lookup
from .rows import RowFilter

T = TypeVar("T")

MAX_LIMIT = 1000
PAGE_SECONDS = 2.0  # a page ends after this time, unless it has read nothing yet
_SHOWN = ["layers", "cumulative_bytes", "psnr", "key", "width", "height"]
_CAPTIONS = ["caption", "label"]
_AHEAD = 8  # indexes, or row groups, searched at once
_ROW = "__row"  # an added column: the number of the row in the file


@dataclass(frozen=True)
class PageQuery:
    """At most ``limit`` pictures after the cursor ``after`` (None: from the start).

    ``search`` is a part of the key, in upper or lower case; ``filter`` is an expression over
    columns of metadata. With ``captions`` pictures have caption and label, and these are searched
    as well. ``backwards`` reverses the order (and None is the end).
    """

    after: str | None = None
    limit: int = 100
    search: str = ""
    filter: pc.Expression | None = None
    captions: bool = False
    backwards: bool = False


@dataclass
class Page:
    """``next`` is the cursor of the next page, None on the last one.

    ``unread`` counts the pictures whose captions were not searched, because their side fields are
    too large.
    """

    items: list[dict[str, Any]] = field(default_factory=list)
    next: str | None = None
    unread: int = 0


@dataclass(frozen=True)
class _Group:
    """Rows ``first`` to ``end`` of a file, in one row group, that earlier pages have not shown.

    ``group`` is None if the time is over and the next page begins here. With ``searched``, it is
    not known yet whether captions match.
    """

    number: int
    file: DataFile
    group: int | None
    first: int
    end: int
    searched: bool = False


def page(
    lookup: Lookup, query: PageQuery, on_damage: Callable[[DatasetError], None] | None = None
) -> Page:
    """See ``Dataset.page``. ``on_damage`` is called with errors of damaged files, which are left
    out.
    """
    if not 1 <= query.limit <= MAX_LIMIT:
        raise ValueError(f"a page has 1 to {MAX_LIMIT} pictures, not {query.limit}")
    where = RowFilter.of(query.filter, lookup.store.url)
    deadline = time.monotonic() + PAGE_SECONDS
    found = Page()

    def damaged(error: DatasetError) -> None:
        if on_damage is None or error.passing:
            raise error
        on_damage(error)

    def edge(group: _Group) -> str:
        return _cursor(group.number, group.end if query.backwards else group.first)

    def search(group: _Group) -> tuple[bool, int]:
        """Whether the group may have matches, and how many pictures' captions are too large."""
        if group.group is None or not group.searched:
            return True, 0
        with OpenFile(lookup.store, group.file, lookup.cache) as opened:
            table = _shown(opened, group.group, [])
            table, unread = _with_captions(table, opened, group.group)
        return bool(pc.any(_has(table, query.search)).as_py()), unread

    has_read = False
    groups = _groups(lookup, query, deadline, damaged)
    for group, result in _ahead(search, groups, _AHEAD if query.search and query.captions else 1):
        if group.group is None or (has_read and time.monotonic() > deadline):
            found.next = edge(group)
            break
        has_read = True
        try:
            hit, unread = result()
            found.unread += unread
            if not hit:
                continue
            with OpenFile(lookup.store, group.file, lookup.cache) as opened:
                table = _shown(opened, group.group, where.columns)
                if query.captions:
                    table, _ = _with_captions(table, opened, group.group)
                table = _selected(table, group, query.search, where)
                if query.backwards:
                    table = table.take(pa.array(range(table.num_rows - 1, -1, -1), pa.int64()))
                table = table.slice(0, query.limit - len(found.items))
                found.items += list(_items(lookup, opened, group.group, table))
        except DatasetError as error:
            damaged(error)
            continue
        if len(found.items) == query.limit:
            last = table.column(_ROW)[-1].as_py()
            found.next = _beside(lookup, group.number, last, query.backwards)
            break
    return found


def beside(lookup: Lookup, entry: IndexEntry, backwards: bool) -> str | None:
    """The cursor of the pictures after this one, or before it; None if there are none."""
    return _beside(lookup, lookup.files.index(entry.file), entry.row, backwards)


def _beside(lookup: Lookup, number: int, row: int, backwards: bool) -> str | None:
    if backwards:
        return _cursor(number, row) if number or row else None
    at_end = row + 1 == lookup.files[number].rows and number == len(lookup.files) - 1
    return None if at_end else _cursor(number, row + 1)


def _ahead(
    function: Callable[[_Group], T], groups: Iterable[_Group], count: int
) -> Iterator[tuple[_Group, Callable[[], T]]]:
    """Each group with a function that returns ``function(group)``; ``count`` run at a time."""
    if count == 1:
        yield from ((group, partial(function, group)) for group in groups)
        return
    waiting: deque[tuple[_Group, Future[T]]] = deque()
    pool = ThreadPoolExecutor(count)
    try:
        for group in groups:
            waiting.append((group, pool.submit(function, group)))
            if len(waiting) == count:
                first, future = waiting.popleft()
                yield first, future.result
        for group, future in waiting:
            yield group, future.result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _groups(
    lookup: Lookup,
    query: PageQuery,
    deadline: float,
    damaged: Callable[[DatasetError], None],
) -> Iterator[_Group]:
    """Row groups to read, from the cursor on. Errors of a footer go to ``damaged``."""
    position, row = _parse(lookup, query.after, query.backwards)
    step = -1 if query.backwards else 1
    numbers = range(position, -1 if query.backwards else len(lookup.files), step)
    for start in range(0, len(numbers), _AHEAD):
        portion = numbers[start : start + _AHEAD]
        if start and query.search and time.monotonic() > deadline:
            file = lookup.files[portion[0]]
            yield _Group(portion[0], file, None, 0, file.rows)
            return
        for number, hits in zip(portion, _hits(lookup, portion, query), strict=True):
            file = lookup.files[number]
            if not file.ok or hits == set():
                continue
            first, last = 0, file.rows
            if number == position:
                first, last = (0, row) if query.backwards else (row, file.rows)
            try:
                with OpenFile(lookup.store, file, lookup.cache) as opened:
                    footer = opened.metadata
            except DatasetError as error:
                damaged(error)
                continue
            searched = bool(query.search) and query.captions and hits is None
            groups = list(_rows_of_groups(footer))
            for group, begin, end in groups[::step]:
                begin, end = max(begin, first), min(end, last)
                if begin < end and (hits is None or group in hits):
                    yield _Group(number, file, group, begin, end, searched)


def _rows_of_groups(footer: pq.FileMetaData) -> Iterator[tuple[int, int, int]]:
    """Number, first row and end of each row group."""
    end = 0
    for group in range(footer.num_row_groups):
        first, end = end, end + footer.row_group(group).num_rows
        yield group, first, end


def _hits(lookup: Lookup, numbers: Sequence[int], query: PageQuery) -> list[set[int] | None]:
    """The row groups with matching keys, of each of these files; None if they are not known."""
    if not query.search:
        return [None for _ in numbers]

    def hits(number: int) -> set[int] | None:
        file = lookup.files[number]
        if not lookup.has_index(file) or (query.captions and file.record.get("captions") != 0):
            return None
        blocks = IndexBlocks(lookup.store, file, lookup.cache)
        try:
            tables = (one.table for one in blocks.get(range(len(blocks.bounds()))))
            return {
                group
                for table in tables
                for group in table.filter(_has(table, query.search)).column("row_group").to_pylist()
            }
        except BrokenIndexError as error:
            lookup.ignore(file, str(error))
            return None

    with ThreadPoolExecutor(_AHEAD) as pool:
        return list(pool.map(hits, numbers))


def _has(table: pa.Table, search: str) -> pa.ChunkedArray:
    """Which rows have this text in their key, or in caption or label if the table has these."""
    found = None
    for name in ("key", *_CAPTIONS):
        if name in table.column_names:
            one = pc.match_substring(table.column(name), search, ignore_case=True)
            one = pc.fill_null(one, False)
            found = one if found is None else pc.or_(found, one)
    return found


def _shown(opened: OpenFile, group: int, named: Sequence[str]) -> pa.Table:
    """The small columns of a row group, with the number of each row in the file."""

    def read() -> pa.Table:
        table = opened.read(group, names)
        first = opened.first_row(group)
        numbers = pa.array(range(first, first + table.num_rows), pa.int64())
        return table.append_column(_ROW, numbers)

    names = list(dict.fromkeys([*_SHOWN, *named]))
    return opened.cached(("page", group, *names), read, lambda table: table.nbytes)


def _with_captions(table: pa.Table, opened: OpenFile, group: int) -> tuple[pa.Table, int]:
    """The table with captions and labels, and of how many pictures these are too large."""
    captions = captions_of(opened, group).table
    unread = 0
    if captions is None:
        captions = pa.table({name: pa.nulls(table.num_rows, pa.string()) for name in _CAPTIONS})
        unread = table.num_rows - table.column("width").null_count
    for name in _CAPTIONS:
        table = table.append_column(name, captions.column(name))
    return table, unread


def _selected(table: pa.Table, group: _Group, search: str, where: RowFilter) -> pa.Table:
    row = table.column(_ROW)
    wanted = pc.and_(pc.greater_equal(row, group.first), pc.less(row, group.end))
    for side in ("width", "height"):  # null for a sample without a picture, 0 in a damaged row
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
    names = [*_SHOWN, *(name for name in _CAPTIONS if name in table.column_names)]
    for row, has_original in zip(table.select(names).to_pylist(), kept, strict=True):
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
    # Without an index, this reads the whole column of originals.
    kept = opened.read(group, ["original"]).column("original").is_valid().to_pylist()
    first = opened.first_row(group)
    return [kept[row - first] for row in table.column(_ROW).to_pylist()]


def _cursor(position: int, row: int) -> str:
    packed = json.dumps([position, row], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def _parse(lookup: Lookup, cursor: str | None, backwards: bool) -> tuple[int, int]:
    if cursor is None:
        return (
            (len(lookup.files) - 1, lookup.files[-1].rows) if backwards and lookup.files else (0, 0)
        )
    try:
        packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        position, row = json.loads(packed)
        if 0 <= position < len(lookup.files) and 0 <= row <= lookup.files[position].rows:
            return int(position), int(row)
    except (ValueError, TypeError, RecursionError):
        pass
    raise CursorError(f"{lookup.store.url}: {cursor!r:.80} is not a cursor of this archive")
