"""Limits of Parquet inputs, checked before pyarrow decodes any of them.

A few bytes of Parquet can unpack to gigabytes. Data files (``dataset.parquet``) are written by
Strata only; inputs come from any program. So the limits here are wide, but every page header is
checked.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..stores.parquet_footer import described
from ..stores.thrift import read_struct

MAX_FOOTER_BYTES = 64 << 20
MAX_ROWS = 1 << 20  # of a file: each is a sample, of about a kilobyte in memory
MAX_PAGE_BYTES = 1 << 30
# Of pages in which one value may be used many times: dictionaries, and deltas of strings.
MAX_SHARED_BYTES = 32 << 20
_MAX_HEADER = 1 << 16  # a page header may hold the smallest and largest value
# Numbers of fields, of a kind of page and of encodings, from Parquet's parquet.thrift.
_KIND, _UNPACKED, _PACKED, _DATA, _DATA_2 = 1, 2, 3, 5, 8
_DICTIONARY_PAGE, _PLAIN, _RLE, _BY_DICTIONARY = 2, 0, 3, (2, 8)


def read_footer(file: BinaryIO) -> pq.FileMetaData:
    """The footer of a whole file. Raises ValueError or OSError if it is damaged."""

    def read(start: int, stop: int) -> bytes:
        file.seek(start)
        return file.read(stop - start)

    return footer_by(read, file.seek(0, os.SEEK_END))


def footer_by(read: Callable[[int, int], bytes], size: int) -> pq.FileMetaData:
    """The footer of a file of ``size`` bytes. ``read(start, stop)`` returns bytes of the file."""
    end = read(max(0, size - 8), size)
    length = int.from_bytes(end[:4], "little") + 8
    if end[4:] != b"PAR1" or not 8 < length <= size:
        raise ValueError("it was cut, or has no footer at its end")
    if length > MAX_FOOTER_BYTES:
        raise ValueError(f"its footer has {length} bytes, more than {MAX_FOOTER_BYTES}")
    metadata = pq.ParquetFile(
        pa.BufferReader(read(size - length, size)),
        thrift_string_size_limit=MAX_FOOTER_BYTES,
        thrift_container_size_limit=1 << 20,
    ).metadata
    described(metadata, size)
    if metadata.num_rows > MAX_ROWS:
        raise ValueError(f"it has {metadata.num_rows} rows, more than {MAX_ROWS}: split it")
    return metadata


def check_pages(file: BinaryIO, metadata: pq.FileMetaData, most: int) -> None:
    """Read all page headers. Raises ValueError if the pages unpack to more than ``most`` bytes."""
    total = 0
    for group in range(metadata.num_row_groups):
        part = metadata.row_group(group)
        for chunk in map(part.column, range(part.num_columns)):
            total += _check_chunk(file, chunk, part.num_rows)
            check_size(total, most)


def check_size(unpacked: int, most: int) -> None:
    """Raise ValueError for more than ``most`` bytes."""
    if unpacked > most:
        raise ValueError(
            f"it unpacks to more than {most} bytes; if you trust it, raise --max-gzip-ratio or "
            "--max-unpacked-gib"
        )


def _check_chunk(file: BinaryIO, chunk: pq.ColumnChunkMetaData, rows: int) -> int:
    """Read the page headers of one column of a row group; returns the unpacked bytes."""
    name = chunk.path_in_schema
    at = chunk.data_page_offset
    if chunk.has_dictionary_page:
        at = min(at, chunk.dictionary_page_offset)
    end = at + chunk.total_compressed_size
    values = total = 0
    while values < chunk.num_values:
        file.seek(at)
        header, length = read_struct(memoryview(file.read(_MAX_HEADER)), 0)
        unpacked, packed = _number(header, _UNPACKED), _number(header, _PACKED)
        at += length + packed
        if at > end:
            raise ValueError(f"{name}: its pages are longer than its footer says")
        total += unpacked
        most = MAX_PAGE_BYTES
        if header.get(_KIND) == _DICTIONARY_PAGE:
            most = MAX_SHARED_BYTES
        else:
            page = _struct(header, _DATA_2) or _struct(header, _DATA)
            values += _number(page, 1)
            encoding = page.get(4 if _DATA_2 in header else 2)
            if encoding not in (_PLAIN, _RLE, *_BY_DICTIONARY):
                most = MAX_SHARED_BYTES
        if unpacked > most:
            raise ValueError(f"{name}: a page has {unpacked} bytes; at most {most} are read")
    # An element of a list takes bytes. A null of a plain column takes none, but it has a row.
    if values > 2 * rows + total:
        raise ValueError(f"{name}: {values} values in {rows} rows and {total} bytes")
    return total


def _number(fields: Mapping[int, Any], name: int) -> int:
    value = fields.get(name)
    if type(value) is not int or value < 0:
        raise ValueError("a page has a damaged header")
    return value


def _struct(fields: Mapping[int, Any], name: int) -> Mapping[int, Any]:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}
