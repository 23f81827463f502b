"""One data file of a dataset: its entry in the manifest, and reading it by columns.

Files are not read through fsspec's file objects, whose read-ahead fetches eighty times too much if
two of six layers are wanted. Each row group is one request (Parquet's ``pre_buffer``), because the
columns of the first layers are neighbours.
"""

import builtins
import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from codec.errors import StrataError

from ..stores.cache import ByteCache
from ..stores.filesystems import storage_errors
from ..stores.passing import may_pass
from ..stores.ranges import RangeFile, ShortReadError, read_range
from ..stores.reasons import describe
from ..stores.store import Store
from .layout import data_path
from .parquet import ParquetFile, read_footer
from .records import to_json
from .rows import check_columns, footer_problem
from .untrusted import check_data_file, parse_json

T = TypeVar("T")

_MEND = "strata verify --repair writes it again"
_PARSED = 8  # about how many times larger a footer is in memory than in the file
Bounds = tuple[str, str]  # the lowest and the highest key


class DatasetError(StrataError):
    """A URL holds no readable dataset, or a dataset without the requested key or layer."""


class UnknownKeyError(DatasetError):
    """A dataset has no picture with this key."""


class CursorError(DatasetError):
    """A cursor that is not from ``Dataset.page``."""


class DamagedDataError(DatasetError):
    """A data file does not hold the bytes that were written.

    The message names dataset, file, key and layer as far as they are known. ``layer`` is a number,
    or None for data that every layer needs.
    """

    def __init__(self, message: str, key: str | None = None, layer: int | None = None) -> None:
        super().__init__(message)
        self.key, self.layer = key, layer


@dataclass(frozen=True, slots=True)
class DataFile:
    """One data file as the manifest lists it; ``name`` ends in its generation (``x``, ``x.1``).

    ``key_bounds`` are the lowest and the highest key of its pictures, None if they are not known;
    ``number`` is its place in the dataset. ``entry`` is the manifest's line about it: a million
    dictionaries would take ten times the memory.
    """

    name: str
    bytes: int
    footer_bytes: int
    rows: int
    ok: int
    key_bounds: Bounds | None
    entry: builtins.bytes = field(repr=False, compare=False)
    number: int = field(default=-1, compare=False)

    @classmethod
    def of(cls, entry: Mapping[str, Any] | builtins.bytes, number: int = -1) -> "DataFile":
        """From an entry of the manifest, as JSON or parsed.

        Raises ValueError, TypeError or LookupError for an invalid one.
        """
        packed = entry if isinstance(entry, builtins.bytes) else to_json(entry, compact=True)[:-1]
        told = parse_json(entry) if isinstance(entry, builtins.bytes) else entry
        check_data_file(told)
        index = told.get("index")
        bounds = (index["key_min"], index["key_max"]) if index else None
        counts = {name: told[name] for name in ("bytes", "footer_bytes", "rows", "ok")}
        return cls(told["name"], **counts, key_bounds=bounds, entry=packed, number=number)

    @property
    def path(self) -> str:
        return data_path(self.name)

    @property
    def record(self) -> dict[str, Any]:
        """Its commit record, as far as manifests have it (``records.entry_of``): a new copy."""
        return dict(json.loads(self.entry))

    @property
    def index(self) -> dict[str, Any] | None:
        """The record of the file's index; older files have none."""
        return self.record.get("index")


class OpenFile:
    """A data file that can be read. Its footer takes one request of exactly the footer's size.

    The footer is kept in ``cache``, if there is one.
    """

    def __init__(self, store: Store, file: DataFile, cache: ByteCache | None = None) -> None:
        self.file = file
        self._store = store
        self._cache = cache

    @property
    def url(self) -> str:
        return f"{self._store.url}/{self.file.path}"

    @cached_property
    def metadata(self) -> pq.FileMetaData:
        """The footer. Raises DatasetError if it is gone or damaged."""
        return self.cached(("footer",), self._footer, lambda _: _PARSED * self.file.footer_bytes)

    def cached(
        self, name: tuple[Hashable, ...], load: Callable[[], T], nbytes: Callable[[T], int]
    ) -> T:
        """A value of this file from the cache, or else from ``load``."""
        if self._cache is None:
            return load()
        return self._cache.load((self.file.path, *name), load, nbytes)

    def _footer(self) -> pq.FileMetaData:
        file = self.file
        start, length = file.bytes - file.footer_bytes, file.footer_bytes
        with self._reading("its footer"):
            try:
                tail = read_range(self._store, file.path, start, length)
            except ShortReadError:
                tail = b""
        problem = footer_problem(tail, len(tail), [file.record.get("footer_crc32")])
        if problem:
            raise DamagedDataError(f"{self.url}: {problem}: {_MEND}")
        with self._reading("its footer"):
            return read_footer(tail)

    @cached_property
    def parquet(self) -> ParquetFile:
        return ParquetFile(
            RangeFile(self._store, self.file.path, self.file.bytes), metadata=self.metadata
        )

    def read(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Columns of a row group.

        Raises DatasetError if the file is gone, DamagedDataError if it is damaged, StorageError if
        the store does not answer.
        """
        with self._reading(f"row group {group}"):
            table = self.parquet.read_row_group(group, columns=list(columns))
            check_columns(table.schema, columns)
            return table

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """All rows, one row group in memory at a time. Raises what ``read`` raises."""
        for group in range(self.metadata.num_row_groups):
            yield from self.read(group, columns).to_pylist()

    def first_row(self, group: int) -> int:
        """The number, in the file, of a row group's first row. Raises IndexError for no group."""
        rows = [self.metadata.row_group(number).num_rows for number in range(group + 1)]
        return sum(rows[:-1])

    def group_bounds(self) -> list[Bounds | None]:
        """The lowest and the highest key of each row group; None where the file has none."""
        with self._reading("its footer"):
            return group_bounds(self.metadata)

    def _reading(self, part: str) -> AbstractContextManager[None]:
        gone = DatasetError(
            f"{self.url}: the manifest lists this file, but it is gone: open the archive again; if "
            f"it stays gone, {_MEND}"
        )
        return reading(
            self.url,
            gone,
            lambda why: DamagedDataError(f"{self.url}: {part} is damaged: {why}: {_MEND}"),
        )

    def __enter__(self) -> "OpenFile":
        return self

    def __exit__(self, *_: object) -> None:
        if "parquet" in self.__dict__:
            self.parquet.close(force=True)


@contextmanager
def reading(url: str, gone: StrataError, damaged: Callable[[str], StrataError]) -> Iterator[None]:
    """Raise ``gone`` for a missing file, ``damaged(reason)`` for bytes that Parquet refuses.

    Other errors of the store become StorageError, which names ``url``.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise gone from error
    except Exception as error:  # stores have exceptions of many kinds
        if _is_damage(error):
            raise damaged(describe(error)) from error
        with storage_errors(url, "cannot be read"):
            raise


def _is_damage(error: Exception) -> bool:
    """Whether this is an error of Parquet's reader about the bytes it was given.

    Its OSErrors have no number; those of file systems have one, or are of a subclass.
    """
    if isinstance(error, MemoryError) or may_pass(error):
        return False
    if isinstance(error, ShortReadError | ValueError | pa.ArrowException):
        return True
    return type(error) is OSError and error.errno is None


def group_bounds(metadata: pq.FileMetaData) -> list[Bounds | None]:
    """The lowest and the highest key of each row group, by its statistics.

    Raises ValueError for keys of which the footer tells two types: pyarrow would end the process.
    """
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    return [_bounds(group, metadata.schema) for group in groups]


def _bounds(columns: pq.RowGroupMetaData, schema: pq.ParquetSchema) -> Bounds | None:
    for number in range(columns.num_columns):
        column = columns.column(number)
        if column.path_in_schema == "key":
            if column.physical_type != schema.column(number).physical_type:
                raise ValueError(f"its keys are described as {column.physical_type}")
            statistics = column.statistics
            if statistics is not None and statistics.has_min_max:
                return str(statistics.min), str(statistics.max)
    return None


def within(keys: Sequence[str], bounds: Bounds | None) -> Sequence[str]:
    """Those of the sorted ``keys`` that lie within the bounds.

    Parquet orders strings by their UTF-8 bytes, which is Python's order too.
    """
    if bounds is None:
        return keys
    return keys[bisect_left(keys, bounds[0]) : bisect_right(keys, bounds[1])]
