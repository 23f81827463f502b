"""Blocks of rows, which a look-up of keys reads and caches.

A block is an Arrow table of some hundred rows with a lowest and a highest key. The blocks of a data
file with an index are the row groups of the index: sorted by key, with the place of every layer. If
there is no index, they are the file's own row groups, with keys and sizes but no places.
"""

import zlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from codec.batches import windows

from ..dataset.data_file import Bounds, DataFile, OpenFile, group_bounds, reading, within
from ..dataset.index import SCHEMA, BrokenIndexError
from ..dataset.parquet import MAX_GROUP_BYTES, ParquetFile, group_bytes, read_footer
from ..dataset.untrusted import check_index_format
from ..stores.cache import ByteCache
from ..stores.ranges import RangeFile, read_range
from ..stores.store import Store

WHOLE_BYTES = 256 << 10  # an index up to this size is read in one request
_PARSED = 8  # a footer takes about so many times its size in memory
_OF_A_GROUP = ["cumulative_bytes", "key", "width", "height", "header"]


@dataclass(frozen=True)
class Block:
    """Rows with the columns of an index, as far as they are known, sorted by key."""

    table: pa.Table
    keys: list[str] = field(repr=False)

    @classmethod
    def of(cls, table: pa.Table) -> "Block":
        if table.column("key").null_count:  # rows without a key cannot be looked up
            table = table.filter(table.column("key").is_valid())
        return cls(table, table.column("key").to_pylist())

    @property
    def nbytes(self) -> int:
        """About how many bytes it takes in memory."""
        return int(self.table.nbytes) + sum(64 + len(key) for key in self.keys)

    def rows(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        """The first row of each of these keys."""
        places = [bisect_left(self.keys, key) for key in keys]
        found = [
            place
            for key, place in zip(keys, places, strict=True)
            if place < len(self.keys) and self.keys[place] == key
        ]
        return self.table.take(pa.array(found, pa.int64())).to_pylist() if found else []


class Blocks:
    """The blocks of one data file, kept in ``cache`` under ``path``."""

    def __init__(self, cache: ByteCache, path: str) -> None:
        self.cache, self.path = cache, path

    def bounds(self) -> Sequence[Bounds | None]:
        """The lowest and the highest key of each block."""
        kept = self.cache.get((self.path, "bounds"))
        return self._bounds() if kept is None else kept

    def get(self, numbers: Sequence[int]) -> Iterator[Block]:
        """The blocks with these numbers. Holds one portion of them in memory."""
        for portion in self._portions(numbers):
            kept = {number: self.cache.get((self.path, "block", number)) for number in portion}
            missing = [number for number, block in kept.items() if block is None]
            kept.update(zip(missing, self._read(missing), strict=True))
            yield from (kept[number] for number in portion)

    def ready(self, keys: Sequence[str]) -> bool:
        """Whether the sorted ``keys`` can be looked up without a request."""
        bounds = self.cache.get((self.path, "bounds"))
        return bounds is not None and all(
            self.cache.get((self.path, "block", number)) is not None
            for number, one in enumerate(bounds)
            if within(keys, one)
        )

    def search(self, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The rows with any of the sorted ``keys``."""
        wanted = {
            number: chosen
            for number, bounds in enumerate(self.bounds())
            if (chosen := within(keys, bounds))
        }
        for block, chosen in zip(self.get(list(wanted)), wanted.values(), strict=True):
            yield from block.rows(chosen)

    def _keep_bounds(self, bounds: Sequence[Bounds | None]) -> Sequence[Bounds | None]:
        size = sum(200 + sum(map(len, one or ())) for one in bounds)
        return self.cache.put((self.path, "bounds"), bounds, size)

    def _keep(self, number: int, block: Block) -> Block:
        return self.cache.put((self.path, "block", number), block, block.nbytes)

    def _bounds(self) -> Sequence[Bounds | None]:
        raise NotImplementedError

    def _portions(self, numbers: Sequence[int]) -> Iterator[Sequence[int]]:
        """The numbers in portions that fit into memory."""
        raise NotImplementedError

    def _read(self, numbers: Sequence[int]) -> Iterator[Block]:
        """Read blocks that are not in the cache."""
        raise NotImplementedError


class IndexBlocks(Blocks):
    """The row groups of an index.

    A small index takes one request. A large one takes two for the first key: for its footer and for
    the row group of the key. Methods raise BrokenIndexError if the index is missing or damaged.
    """

    def __init__(self, store: Store, file: DataFile, cache: ByteCache) -> None:
        assert file.index is not None
        super().__init__(cache, str(file.index["path"]))
        self._store, self._entry, self._pictures = store, file.index, file.ok

    def _bounds(self) -> Sequence[Bounds | None]:
        footer = self._footer()
        with self._reading():
            return self._keep_bounds(group_bounds(footer))

    def _footer(self) -> pq.FileMetaData:
        kept = self.cache.get((self.path, "footer"))
        if kept is not None:
            return kept
        size, footer = int(self._entry["bytes"]), int(self._entry["footer_bytes"])
        length = size if size <= WHOLE_BYTES else footer
        with self._reading():
            data = read_range(self._store, self.path, size - length, length)
            if zlib.crc32(data[-footer:]) != self._entry["footer_crc32"]:
                raise BrokenIndexError(f"{self.path} has a damaged footer")
            metadata = read_footer(data[-footer:])
            check_index_format(metadata.metadata)
            if metadata.num_rows != self._pictures:
                raise BrokenIndexError(f"{self.path} belongs to another file")
            if length == size:
                file = ParquetFile(data, metadata)
                for number in range(metadata.num_row_groups):
                    table = file.read_row_group(number)
                    _check_schema(table)
                    self._keep(number, Block.of(table))
        return self.cache.put((self.path, "footer"), metadata, _PARSED * footer)

    def _portions(self, numbers: Sequence[int]) -> Iterator[Sequence[int]]:
        footer = self._footer()
        cost = partial(group_bytes, footer)
        return windows(numbers, cost, MAX_GROUP_BYTES, most=len(numbers))

    def _read(self, numbers: Sequence[int]) -> Iterator[Block]:
        """Read blocks; neighbours take one request."""
        if not numbers:
            return
        footer = self._footer()
        with self._reading():
            file = ParquetFile(RangeFile(self._store, self.path, self._entry["bytes"]), footer)
            table = file.read_row_groups(list(numbers))
            _check_schema(table)
        start = 0
        for number in numbers:
            rows = footer.row_group(number).num_rows
            # A copy, because a slice would keep the whole table in memory.
            one = table.take(pa.array(range(start, start + rows)))
            yield self._keep(number, Block.of(one))
            start += rows

    def _reading(self) -> AbstractContextManager[None]:
        return reading(
            f"{self._store.url}/{self.path}",
            BrokenIndexError(f"{self.path} is gone"),
            lambda why: BrokenIndexError(f"{self.path} is damaged: {why}"),
        )


def _check_schema(table: pa.Table) -> None:
    if not table.schema.equals(SCHEMA):
        raise ValueError("it has other columns than an index")


class GroupBlocks(Blocks):
    """The row groups of a data file, with the small columns that a look-up needs."""

    def __init__(self, store: Store, file: DataFile, cache: ByteCache) -> None:
        super().__init__(cache, file.path)
        self._store, self._file = store, file

    def _bounds(self) -> Sequence[Bounds | None]:
        return self._keep_bounds(OpenFile(self._store, self._file, self.cache).group_bounds())

    def _portions(self, numbers: Sequence[int]) -> Iterator[Sequence[int]]:
        return ([number] for number in numbers)

    def _read(self, numbers: Sequence[int]) -> Iterator[Block]:
        with OpenFile(self._store, self._file, self.cache) as opened:
            for number in numbers:
                table = opened.read(number, _OF_A_GROUP)
                first = opened.first_row(number)
                rows = pa.array(range(first, first + table.num_rows), pa.int32())
                groups = pa.array([number] * table.num_rows, pa.int32())
                table = table.append_column("row", rows).append_column("row_group", groups)
                table = table.filter(table.column("header").is_valid())
                table = table.sort_by([("key", "ascending"), ("row", "ascending")])
                yield self._keep(number, Block.of(table))
