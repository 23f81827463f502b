"""Reads pictures by their places, with ranged requests for only their bytes, and checks them."""

import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from codec import EncodedImage
from codec.batches import windows
from codec.errors import layer_name

from ..dataset.data_file import DamagedDataError, OpenFile
from ..dataset.index import IndexEntry, Span
from ..dataset.rows import encoded_image, stream_columns
from ..stores.filesystems import storage_errors
from ..stores.ranges import Range, ShortReadError, read_ranges
from .lookup import Lookup
from .originals import ORIGINAL, PACKING, stored_columns
from .rows import rows_at

FETCHED_BYTES = 64 << 20  # of layers and columns, held at once
FETCHED_KEYS = 1000
GROUPS_AT_ONCE = 8  # row groups of up to 16 MiB, read at once if there is no index
SIDE_COLUMNS = ("alpha", "original")  # columns whose places are in the index


@dataclass(frozen=True)
class Record:
    """One picture of a dataset: its stream, with the layers that were read, and other columns."""

    key: str
    width: int
    height: int
    encoded: EncodedImage
    extra: dict[str, Any] = field(default_factory=dict)


def portions(
    entries: Sequence[IndexEntry], layers: int, columns: Sequence[str] = ()
) -> Iterator[Sequence[IndexEntry]]:
    """The entries in portions that fit into memory."""

    def cost(entry: IndexEntry) -> int:
        beside = (getattr(entry, name) for name in columns)
        return sum(entry.lengths[:layers]) + sum(span.length for span in beside if span)

    return windows(entries, cost, FETCHED_BYTES, FETCHED_KEYS)


def fetch(
    lookup: Lookup, entries: Sequence[IndexEntry], layers: int, columns: Sequence[str] = ()
) -> list[Record]:
    """The first ``layers`` layers of each picture, and ``columns``, which are in ``SIDE_COLUMNS``.

    An ``original`` comes as it is stored, with its ``original_packing``. Raises DamagedDataError
    for bytes with a wrong checksum, DatasetError for a missing file, StorageError for a store that
    does not answer.
    """
    parts = [
        (number, name, span)
        for number, entry in enumerate(entries)
        for name, span in _parts(entry, layers, columns)
    ]
    ranges = [
        Range(entries[number].file.path, span.offset, span.length) for number, _, span in parts
    ]
    values: list[dict[int | str, bytes]] = [{} for _ in entries]
    suspects: dict[int, int | str] = {}  # the first part of each that is damaged or missing
    for (number, name, span), data in zip(parts, read_ranges(lookup.store, ranges), strict=True):
        if isinstance(data, bytes) and zlib.crc32(data) == span.crc32:
            values[number][name] = data
        elif isinstance(data, bytes | ShortReadError | FileNotFoundError):
            suspects.setdefault(number, name)
        else:
            url = f"{lookup.store.url}/{entries[number].file.path}"
            with storage_errors(url, f"{entries[number].key!r} cannot be read"):
                raise data
    left = [n for n, entry in enumerate(entries) if n in suspects or not entry.indexed]
    others = _fetch_by_groups(lookup, {n: entries[n] for n in left}, layers, columns, suspects)
    return [
        others[number] if number in others else _assembled(entry, values[number], columns)
        for number, entry in enumerate(entries)
    ]


def _parts(
    entry: IndexEntry, layers: int, columns: Sequence[str]
) -> Iterator[tuple[int | str, Span]]:
    """The parts to read of a picture with an index: its layers by number, columns by name."""
    if not entry.indexed:
        return
    places = zip(entry.offsets, entry.lengths, entry.crc32s, strict=True)
    for number, place in enumerate(islice(places, layers)):
        yield number, Span(*place)
    for name in columns:
        span = getattr(entry, name)
        if span is not None:
            yield name, span


def _assembled(
    entry: IndexEntry, values: Mapping[int | str, bytes], columns: Sequence[str]
) -> Record:
    layers = tuple(value for name, value in values.items() if isinstance(name, int))
    extra: dict[str, Any] = {name: values.get(name) for name in columns}
    if ORIGINAL in columns:
        extra[PACKING] = entry.original_packing
    encoded = EncodedImage(entry.header, layers)
    return Record(entry.key, entry.width, entry.height, encoded, extra)


def _fetch_by_groups(
    lookup: Lookup,
    entries: Mapping[int, IndexEntry],
    layers: int,
    columns: Sequence[str],
    suspects: Mapping[int, int | str],
) -> dict[int, Record]:
    """``fetch`` by row groups, for pictures that have no index or wrong places in it."""
    if not entries:
        return {}
    placed = {n: _placed(lookup, entry, suspects.get(n)) for n, entry in entries.items()}
    units = defaultdict(list)
    for number, entry in placed.items():
        units[entry.file.name, entry.row_group].append(number)
    further = stored_columns(columns)
    names = [*further, *stream_columns(layers)]

    def read(numbers: Sequence[int]) -> list[tuple[int, Record]]:
        first = placed[numbers[0]]
        rows = [placed[number].row for number in numbers]
        with OpenFile(lookup.store, first.file, lookup.cache) as opened:
            try:
                found = dict(rows_at(opened, names, {first.row_group: rows}))
            except DamagedDataError as error:
                number = next((number for number in numbers if number in suspects), numbers[0])
                raise _damaged(error, placed[number].key, suspects.get(number)) from error
        fetched = []
        for number in numbers:
            entry, row = placed[number], found[placed[number].row]
            if number in suspects:
                file = entries[number].file
                lookup.ignore(file, f"the index of {file.path} has wrong places")
            encoded = encoded_image(row, layers, entry.file.name)
            extra = {name: row[name] for name in further}
            fetched.append((number, Record(entry.key, entry.width, entry.height, encoded, extra)))
        return fetched

    if len(units) == 1:
        return dict(read(*units.values()))
    with ThreadPoolExecutor(min(GROUPS_AT_ONCE, len(units))) as pool:
        return {number: one for part in pool.map(read, units.values()) for number, one in part}


def _placed(lookup: Lookup, entry: IndexEntry, suspect: int | str | None) -> IndexEntry:
    """The entry. If the place in the index is wrong, its place is taken from the data file."""
    if suspect is None:
        return entry
    try:
        return lookup.in_row_groups(entry)
    except DamagedDataError as error:
        raise _damaged(error, entry.key, suspect) from error


def _damaged(error: DamagedDataError, key: str, part: int | str | None) -> DamagedDataError:
    what = layer_name(part) if isinstance(part, int) else f"column {part}" if part else "something"
    layer = part if isinstance(part, int) else None
    return DamagedDataError(f"{error}; it holds {what} of {key!r}", key, layer)
