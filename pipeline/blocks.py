"""Rows with their keys, in blocks that are kept: what looking up a key reads.

A block is an Arrow table of some hundred rows, bounded by a lowest and a highest key. Of a data
file with an index, blocks are the row groups of that: sorted by key, with the place of every layer.
Of one without, they are its own row groups: their keys and sizes, but no places.
"""

import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from .cache import ByteCache
from .datafiles import Bounds, DataFile, OpenFile, key_bounds
from .faults import may_pass
from .index import BrokenIndexError
from .pictures import describe
from .ranges import RangeFile, read_range
from .storage import Store

WHOLE_BYTES = 256 << 10  # an index up to this size is read in one request
_PARSED = 8  # a footer in memory takes some times its size in the file
_OF_A_GROUP = ["cumulative_bytes", "key", "width", "height", "header"]


class Blocks(Protocol):
    """The rows of one data file, as blocks."""

    def bounds(self) -> Sequence[Bounds | None]: ...

    def tables(self, numbers: Sequence[int]) -> list[pa.Table]:
        """These blocks, in the columns of the index as far as they are known."""
        ...


class IndexBlocks:
    """The index of a data file, for reading; its parts are kept in ``cache``.

    A small one costs one request, a large one two for the first key: its footer, and the row group
    that the key must be in. Raises BrokenIndexError for one that is gone or damaged.
    """

    def __init__(self, store: Store, file: DataFile, cache: ByteCache) -> None:
        assert file.index is not None
        self._store, self._cache = store, cache
        self._told = file.index
        self.path = str(file.index["path"])

    def bounds(self) -> Sequence[Bounds | None]:
        """The lowest and the highest key of each row group."""
        footer = self._footer()
        return [key_bounds(footer, group) for group in range(footer.num_row_groups)]

    def tables(self, numbers: Sequence[int]) -> list[pa.Table]:
        """These row groups."""
        kept = {number: self._cache.get(("index", self.path, number)) for number in numbers}
        missing = [number for number, table in kept.items() if table is None]
        kept.update(zip(missing, self._read(missing), strict=True))
        return [kept[number] for number in numbers]

    def _footer(self) -> pq.FileMetaData:
        kept = self._cache.get(("footer", self.path))
        if kept is not None:
            return kept
        size, footer = int(self._told["bytes"]), int(self._told["footer_bytes"])
        length = size if size <= WHOLE_BYTES else footer
        with self._broken():
            data = read_range(self._store, self.path, size - length, length)
            if zlib.crc32(data[-footer:]) != self._told["footer_crc32"]:
                raise BrokenIndexError(f"{self.path} is damaged: its footer is")
            metadata = pq.read_metadata(io.BytesIO(data[-footer:]))
            if length == size:
                file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
                for number in range(metadata.num_row_groups):
                    self._keep(number, file.read_row_group(number))
        return self._cache.put(("footer", self.path), metadata, _PARSED * footer)

    def _read(self, numbers: Sequence[int]) -> Iterator[pa.Table]:
        """Row groups of the index; neighbours come in one request."""
        if not numbers:
            return
        footer = self._footer()
        file = pq.ParquetFile(
            pa.PythonFile(RangeFile(self._store, self.path, self._told["bytes"]), mode="r"),
            metadata=footer,
            pre_buffer=True,
            page_checksum_verification=True,
        )
        with self._broken():
            table = file.read_row_groups(list(numbers))
        start = 0
        for number in numbers:
            rows = footer.row_group(number).num_rows
            # a copy: a slice would keep all of them in memory
            yield self._keep(number, table.take(pa.array(range(start, start + rows))))
            start += rows

    def _keep(self, number: int, table: pa.Table) -> pa.Table:
        return self._cache.put(("index", self.path, number), table, table.nbytes)

    @contextmanager
    def _broken(self) -> Iterator[None]:
        """Turn what damaged bytes and lost files raise into BrokenIndexError."""
        try:
            yield
        except (BrokenIndexError, PermissionError):
            raise
        except FileNotFoundError as error:
            raise BrokenIndexError(f"{self.path} is gone") from error
        except (OSError, ValueError, pa.ArrowException) as error:
            if may_pass(error):
                raise
            raise BrokenIndexError(f"{self.path} is damaged: {describe(error)}") from error


class GroupBlocks:
    """Blocks of a data file itself: its row groups, in the small columns that lookup needs."""

    def __init__(self, store: Store, file: DataFile, cache: ByteCache) -> None:
        self._opened = OpenFile(store, file, cache)

    def bounds(self) -> Sequence[Bounds | None]:
        return self._opened.key_bounds()

    def tables(self, numbers: Sequence[int]) -> list[pa.Table]:
        with self._opened:
            return [
                self._opened.cached(
                    ("keys", number), partial(self._read, number), lambda table: table.nbytes
                )
                for number in numbers
            ]

    def _read(self, number: int) -> pa.Table:
        table = self._opened.parquet.read_row_group(number, columns=_OF_A_GROUP)
        first = self._opened.first_row(number)
        rows = pa.array(range(first, first + table.num_rows), pa.int32())
        groups = pa.array([number] * table.num_rows, pa.int32())
        return table.append_column("row", rows).append_column("row_group", groups)
