"""Open Parquet files of datasets, which anybody may have written.

A few bytes of Parquet can stand for gigabytes: repeated dictionary entries, deltas, runs of levels,
compressed zeros. So a row group is read only if it is as Strata writes it. Its footer must say that
it is small, and each page must be what the footer says. This is known before pyarrow decodes
anything. All checks raise ValueError.
"""

import io
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..stores.parquet_footer import described
from ..stores.thrift import DAMAGED, count_structs, read_struct

# What a writer does. 256 rows: reading one key's first layer fetches a quarter of a megabyte, not
# three. 16 MiB: a reader holds a row group in memory, and pyarrow itself counts rows only.
ROWS_PER_GROUP = 256
BYTES_PER_GROUP = 16 << 20
DICTIONARY_COLUMNS = (
    *("status", "reason", "original_packing", "source_field", "source_format", "notes"),
)
# What a reader takes: more, because a page has lengths and levels too, and a single row may be
# larger than a group.
MAX_FOOTER_BYTES = 16 << 20  # of 1.4 million samples
MAX_GROUP_BYTES = 2 * BYTES_PER_GROUP
MAX_ROW_BYTES = (1 << 31) - 1
_MAX_PAGES = 1024  # of a column in a row group: pyarrow writes one a mebibyte
_MAX_LIST = 1 << 17  # elements of a list in a footer, such as row groups
# A footer in memory takes some hundred bytes for each of its structures, which can be 3 bytes long.
_COUNTED_BYTES, _BYTES_PER_STRUCT = 256 << 10, 12
# Numbers of parquet.thrift: fields of a page header and of what is in it, kinds, encodings.
_KIND, _UNPACKED, _PACKED, _DATA_HEADER, _DICTIONARY_HEADER = 1, 2, 3, 5, 7
_COUNT, _ENCODING, _DEFINITION, _REPETITION = 1, 2, 3, 4
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_PLAIN, _RLE, _DICTIONARIES = 0, 3, (2, 8)
_ENCODINGS = {"PLAIN", "RLE"}
_OF_DICTIONARIES = {"PLAIN_DICTIONARY", "RLE_DICTIONARY"}


def read_footer(tail: bytes) -> pq.FileMetaData:
    """A footer from the last bytes of its file. Also raises OSError for one that is damaged.

    Nothing that is asked of the result ends the process, as it may for another one.
    """
    if len(tail) > MAX_FOOTER_BYTES:
        raise ValueError(f"its footer has {len(tail)} bytes, more than {MAX_FOOTER_BYTES}")
    structs = count_structs(tail) if len(tail) > _COUNTED_BYTES else 0
    if structs * _BYTES_PER_STRUCT > len(tail):
        raise ValueError(f"its footer describes {structs} things in {len(tail)} bytes")
    metadata = pq.ParquetFile(
        pa.BufferReader(tail),
        thrift_string_size_limit=MAX_FOOTER_BYTES,
        thrift_container_size_limit=_MAX_LIST,
    ).metadata
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    for number, rows in enumerate(sizes):
        if not 0 <= rows <= ROWS_PER_GROUP:
            raise ValueError(
                f"row group {number} has {rows} rows, and at most {ROWS_PER_GROUP} fit"
            )
    if sum(sizes) != metadata.num_rows:
        raise ValueError(f"its row groups have {sum(sizes)} rows, its footer {metadata.num_rows}")
    described(metadata, 1 << 60)
    return metadata


class ParquetFile(pq.ParquetFile):
    """A Parquet file whose row groups are read only if they are as Strata writes them.

    ``source`` is a path, the whole file, or an open file, whose ``read`` then is one request.
    ``metadata`` is its footer, if that is known already.
    """

    def __init__(
        self,
        source: Path | bytes | BinaryIO | io.RawIOBase,
        metadata: pq.FileMetaData | None = None,
        checksums: bool = True,
    ) -> None:
        if isinstance(source, Path):
            file: Any = open(source, "rb")  # noqa: SIM115 - closed with this
        else:
            file = io.BytesIO(source) if isinstance(source, bytes) else source
        self._pages, self._lock = _Pages(file), threading.Lock()
        super().__init__(
            pa.PythonFile(self._pages, mode="r"),
            metadata=metadata or read_footer(_tail(file)),
            pre_buffer=True,  # so that each column arrives whole
            page_checksum_verification=checksums,
        )

    def read_row_group(self, i: int, columns: Sequence[str] | None = None, **options: Any) -> Any:
        return self.read_row_groups([i], columns, **options)

    def read_row_groups(
        self, row_groups: Sequence[int], columns: Sequence[str] | None = None, **options: Any
    ) -> Any:
        kept = None if columns is None else list(columns)
        with self._lock:
            self._pages.expect(self.metadata, row_groups, kept)
            return super().read_row_groups(list(row_groups), columns=kept, **options)

    def read(self, columns: Sequence[str] | None = None, **options: Any) -> Any:
        return self.read_row_groups(range(self.num_row_groups), columns, **options)


def group_bytes(
    metadata: pq.FileMetaData, number: int, columns: Sequence[str] | None = None
) -> int:
    """How many bytes a row group, or some of its columns, takes when it is decoded."""
    return sum(chunk.total_uncompressed_size for chunk in _chunks(metadata, number, columns))


def _chunks(
    metadata: pq.FileMetaData, number: int, columns: Sequence[str] | None
) -> Iterator[pq.ColumnChunkMetaData]:
    group = metadata.row_group(number)
    wanted = None if columns is None else set(columns)
    for chunk in map(group.column, range(group.num_columns)):
        if wanted is None or chunk.path_in_schema.split(".")[0] in wanted:
            yield chunk


def _tail(file: Any) -> bytes:
    """The footer of a whole file, with its length and the magic number."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    length = int.from_bytes(file.read(4), "little") + 8
    if not 8 < length <= min(size, MAX_FOOTER_BYTES):
        raise ValueError(f"it has {size} bytes, and is no Parquet file with a footer in them")
    file.seek(size - length)
    return file.read(length)


class _Pages(io.RawIOBase):
    """A file that hands out a column only if its pages are as the footer says.

    Columns arrive whole; some may arrive together.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        # By where they begin, and with how many bytes their row groups may have.
        self._expected: dict[int, tuple[pq.ColumnChunkMetaData, int]] = {}

    def expect(
        self, metadata: pq.FileMetaData, groups: Sequence[int], columns: Sequence[str] | None
    ) -> None:
        """Let these columns of row groups be read next, if what the footer says is possible."""
        self._expected = {}
        for number in groups:
            rows, total = metadata.row_group(number).num_rows, 0
            most = MAX_ROW_BYTES if rows == 1 else MAX_GROUP_BYTES
            for chunk in _chunks(metadata, number, columns):
                _check_chunk(chunk, rows)
                self._expected[_start(chunk)] = chunk, most
                total += chunk.total_uncompressed_size
            if total > most:
                raise ValueError(f"it claims to hold {total} bytes, more than {most}")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def size(self) -> int:
        at = self.tell()
        size = self.seek(0, io.SEEK_END)
        self.seek(at)
        return size

    def read(self, size: int | None = -1) -> bytes:
        at = self._file.tell()
        data = self._file.read(-1 if size is None else size)
        view, end = memoryview(data), at + len(data)
        for start, (chunk, most) in self._expected.items():
            stop = start + chunk.total_compressed_size
            if at <= start and stop <= end:
                _check_pages(view[start - at : stop - at], chunk, most)
            elif start < end and at < stop:
                raise ValueError(f"{chunk.path_in_schema} is cut, or lies within another column")
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


def _start(chunk: pq.ColumnChunkMetaData) -> int:
    start = int(chunk.data_page_offset)
    return min(start, chunk.dictionary_page_offset) if chunk.has_dictionary_page else start


def _check_chunk(chunk: pq.ColumnChunkMetaData, rows: int) -> None:
    """Whether a column in a row group of so many rows may be as its footer says."""
    name, size = chunk.path_in_schema, chunk.total_uncompressed_size
    allowed = _ENCODINGS | (_OF_DICTIONARIES if name in DICTIONARY_COLUMNS else set())
    if unknown := {*chunk.encodings} - allowed:
        raise ValueError(f"{name} has the encoding {min(unknown)}, which Strata does not write")
    if size < 0 or chunk.total_compressed_size < 0:
        raise ValueError(f"{name} says that it has fewer than 0 bytes")
    # An element of a list takes 4 bytes or more, unless it is null: once in a sample.
    if not 0 <= chunk.num_values <= 2 * rows + size // 4:
        raise ValueError(f"{name} has {chunk.num_values} values in {size} bytes")


def _check_pages(data: memoryview, chunk: pq.ColumnChunkMetaData, most: int) -> None:
    """Walk the pages of a column: are their sizes, counts and encodings those of ``chunk``?"""
    name = chunk.path_in_schema
    at = pages = nbytes = values = entry_bytes = 0
    allowed = [_PLAIN]
    while at < len(data):
        header, begin = read_struct(data, at)
        pages += 1
        unpacked, packed = _number(header, _UNPACKED), _number(header, _PACKED)
        nbytes += begin - at + unpacked
        at = begin + packed
        if header.get(_KIND) == _DICTIONARY_PAGE and pages == 1 and name in DICTIONARY_COLUMNS:
            entry_bytes = unpacked
            allowed += _DICTIONARIES
            sound = _part(header, _DICTIONARY_HEADER).get(_ENCODING) in allowed
        else:
            page = _part(header, _DATA_HEADER)
            values += _number(page, _COUNT)
            levels = page.get(_DEFINITION) == page.get(_REPETITION) == _RLE
            sound = header.get(_KIND) == _DATA_PAGE and page.get(_ENCODING) in allowed and levels
        if not sound or pages > _MAX_PAGES or at > len(data):
            raise ValueError(f"{name}: page {pages} is not as Strata writes it")
    if (nbytes, values) != (chunk.total_uncompressed_size, chunk.num_values):
        raise ValueError(
            f"{name}: its pages have {nbytes} bytes and {values} values, and its footer says "
            f"{chunk.total_uncompressed_size} and {chunk.num_values}"
        )
    if entry_bytes * values > most:  # any value may be the dictionary's longest
        raise ValueError(f"{name}: {values} values of a dictionary of {entry_bytes} bytes")


def _number(fields: Mapping[int, Any], name: int) -> int:
    value = fields.get(name)
    if type(value) is not int or value < 0:
        raise ValueError(f"a page with {DAMAGED}")
    return value


def _part(fields: Mapping[int, Any], name: int) -> Mapping[int, Any]:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}
