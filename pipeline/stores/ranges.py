"""Reads ranges of files: many at once, neighbours in one request, without reading ahead."""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .passing import may_pass, s3_codes
from .store import Store

# Fetching so many bytes between two ranges costs less than a second request. With MANY ranges, not
# all requests can run at once, and the client's 3 ms of CPU time for each request count too.
MERGE_GAP, MERGE_GAP_OF_MANY = 64 << 10, 256 << 10
MANY = 128  # ranges
MERGED_BYTES = 4 << 20  # of one merged request
AT_ONCE = 32  # requests


@dataclass(frozen=True)
class Range:
    """``length`` bytes of the file ``path``, from ``offset`` on."""

    path: str
    offset: int
    length: int


class ShortReadError(OSError):
    """A file ends before the end of the range."""


def read_ranges(store: Store, wanted: Sequence[Range]) -> list[bytes | Exception]:
    """The bytes of each range, or in their place the exception that reading it raised."""
    found: list[bytes | Exception] = [b""] * len(wanted)
    merged = list(_merged(wanted))
    blobs = _read([whole for whole, _ in merged], store)
    for (whole, numbers), blob in zip(merged, blobs, strict=True):
        for number in numbers:
            one = wanted[number]
            start = one.offset - whole.offset
            stop = start + one.length
            if isinstance(blob, bytes) and len(blob) < stop:
                found[number] = ShortReadError(f"{store.url}/{one.path}: ends too early")
            else:
                found[number] = blob if isinstance(blob, Exception) else blob[start:stop]
    return found


def _merged(wanted: Sequence[Range]) -> Iterator[tuple[Range, list[int]]]:
    """The ranges to request, each with the numbers of the ``wanted`` ranges that it covers."""
    order = sorted(
        (number for number, one in enumerate(wanted) if one.length),
        key=lambda number: (wanted[number].path, wanted[number].offset),
    )
    gap = MERGE_GAP if len(order) <= MANY else MERGE_GAP_OF_MANY
    path, start, end = "", 0, 0
    numbers: list[int] = []
    for number in order:
        one = wanted[number]
        stop = max(end, one.offset + one.length)
        near = path == one.path and one.offset - end <= gap and stop - start <= MERGED_BYTES
        if numbers and not near:
            yield Range(path, start, end - start), numbers
            numbers = []
        if not numbers:
            path, start, stop = one.path, one.offset, one.offset + one.length
        end = stop
        numbers.append(number)
    if numbers:
        yield Range(path, start, end - start), numbers


def _read(wanted: Sequence[Range], store: Store) -> list[bytes | Exception]:
    if len(wanted) < 2 or store.is_local:
        return [_read_one(store, one) for one in wanted]
    if not store.fs.async_impl:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda one: _read_one(store, one), wanted))
    found = store.fs.cat_ranges(
        [store.path(one.path) for one in wanted],
        [one.offset for one in wanted],
        [one.offset + one.length for one in wanted],
        batch_size=AT_ONCE,
        on_error="return",
    )
    return [
        # Try once more: of many requests, some fail even in their last attempt.
        _read_one(store, one)
        if isinstance(data, Exception) and (may_pass(data) or _is_outside(data))
        else data
        for one, data in zip(wanted, found, strict=True)
    ]


def _is_outside(error: Exception) -> bool:
    """Whether this is S3's error for a range behind a file's end."""
    return "InvalidRange" in s3_codes(error)


def _read_one(store: Store, one: Range) -> bytes | Exception:
    try:
        return read_range(store, one.path, one.offset, one.length)
    except Exception as error:  # stores have exceptions of many kinds
        return error


def read_range(store: Store, path: str, offset: int, length: int) -> bytes:
    """``length`` bytes of a file in one request.

    Raises ShortReadError if the file ends earlier, StorageError if it is no regular file.
    """
    if store.is_local:
        store.check_regular(path)
    # A file system without range requests opens the file, which must not read ahead either.
    options: dict[str, Any] = {} if store.fs.async_impl else {"cache_type": "none"}
    try:
        data = store.fs.cat_file(store.path(path), start=offset, end=offset + length, **options)
    except Exception as error:
        if not _is_outside(error):
            raise
        data = b""
    if len(data) != length:
        raise ShortReadError(f"{store.url}/{path}: ends too early")
    return bytes(data)


class SizedFile(io.RawIOBase):
    """A file of known size with a position. Subclasses read it."""

    def __init__(self, size: int) -> None:
        self._size, self._position = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def size(self) -> int:
        return self._size

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position


class RangeFile(SizedFile):
    """A file of known size. Each ``read`` is one request for exactly these bytes.

    fsspec's own files ask for the size first, and read ahead by default.
    """

    def __init__(self, store: Store, path: str, size: int) -> None:
        super().__init__(size)
        self._store, self._path = store, path

    def read(self, size: int | None = -1) -> bytes:
        left = self._size - self._position
        length = max(0, left if size is None or size < 0 else min(size, left))
        data = read_range(self._store, self._path, self._position, length) if length else b""
        self._position += length
        return data
