"""Finds the places of keys in data files, with indexes or without."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice, pairwise
from typing import Any

from codec.errors import StrataError

from ..dataset.data_file import DamagedDataError, DataFile, UnknownKeyError, within
from ..dataset.index import BrokenIndexError, IndexEntry, Span
from ..dataset.manifest import DataFiles
from ..dataset.untrusted import check_index_row, check_size
from ..stores.cache import ByteCache
from ..stores.ranges import AT_ONCE
from ..stores.store import Store
from .blocks import Blocks, GroupBlocks, IndexBlocks
from .key_map import BrokenMapError, KeyMap


class Lookup:
    """Finds keys in a dataset's files; safe in threads."""

    def __init__(self, store: Store, files: DataFiles, cache: ByteCache) -> None:
        self.store, self.files, self.cache = store, files, cache
        self._ignored: set[str] = set()  # indexes that are damaged
        self._map: KeyMap | None = None
        self._without_map = False  # the map is missing or damaged

    def find(self, keys: Iterable[str]) -> dict[str, IndexEntry]:
        """The places of these keys, without unknown keys.

        If several files have a key, it is the place in the first of them.
        """
        left = sorted({key for key in keys if _is_text(key)})
        found: dict[str, IndexEntry] = {}
        every = self.files.having(left)
        first = list(islice(every, AT_ONCE + 1))
        mapped = self._mapped(left) if len(first) > AT_ONCE else None
        candidates: Iterator[DataFile] = chain(first, every)
        if mapped is not None:
            candidates = iter([self.files[number] for number in sorted(mapped)])
        # Search the files in the dataset's order, some at once, until all keys are found.
        while some := list(islice(candidates, AT_ONCE)):
            asked = []
            for file in some:
                keys = left if mapped is None else mapped[file.number]
                keys = [key for key in within(keys, file.key_bounds) if key not in found]
                if keys:
                    asked.append((file, keys))
            for entries in self._find_in(asked):
                for key, entry in entries.items():
                    found.setdefault(key, entry)
            left = [key for key in left if key not in found]
            if not left:
                break
        return found

    def _mapped(self, keys: Sequence[str]) -> dict[int, list[str]] | None:
        """The places of files with the keys that each may have; None if there is no map of keys."""
        if self._without_map:
            return None
        self._map = self._map or KeyMap(self.store, self.files)
        found = None
        try:
            found = self._map.files_with(keys)
        except BrokenMapError as error:
            warnings.warn(
                f"{self.store.url}: {error}: keys are looked up without it, which takes longer; "
                "strata index writes it again",
                RuntimeWarning,
                stacklevel=2,
            )
        self._without_map = found is None
        return found

    def _find_in(
        self, asked: Sequence[tuple[DataFile, Sequence[str]]]
    ) -> Iterable[dict[str, IndexEntry]]:
        waiting = [one for one in asked if not self._blocks(one[0]).ready(one[1])]
        if len(waiting) < 2:
            return [self.find_in_file(*one) for one in asked]
        with ThreadPoolExecutor(len(waiting)) as pool:
            return list(pool.map(lambda one: self.find_in_file(*one), asked))

    def find_in_file(self, file: DataFile, keys: Sequence[str]) -> dict[str, IndexEntry]:
        """The places of those of the sorted ``keys`` that are in one file."""
        if self.has_index(file):
            try:
                return self._search(file, self._blocks(file), keys)
            except BrokenIndexError as error:
                self.ignore(file, str(error))
        return self._search(file, self._blocks(file), keys)

    def in_row_groups(self, entry: IndexEntry) -> IndexEntry:
        """The place of an entry's picture, from the data files, because the index has a wrong one.

        Raises UnknownKeyError if only the index has this picture, DamagedDataError.
        """
        file, key = entry.file, entry.key
        found = self._search(file, GroupBlocks(self.store, file, self.cache), [key])
        if key not in found:
            self.ignore(file, f"the index of {file.path} has wrong places")
            found = self.find([key])
        if key not in found:
            raise UnknownKeyError(f"{self.store.url}: there is no picture with the key {key!r}")
        return found[key]

    def _search(self, file: DataFile, blocks: Blocks, keys: Sequence[str]) -> dict[str, IndexEntry]:
        found: dict[str, IndexEntry] = {}
        for row in blocks.search(keys):
            found.setdefault(row["key"], _entry(file, row))
        return found

    def _blocks(self, file: DataFile) -> Blocks:
        kind = IndexBlocks if self.has_index(file) else GroupBlocks
        return kind(self.store, file, self.cache)

    def has_index(self, file: DataFile) -> bool:
        """Whether the file has an index that is not known to be damaged."""
        return file.index is not None and file.name not in self._ignored

    def ignore(self, file: DataFile, problem: str) -> None:
        """From now on, read this file without its index; warns once."""
        if file.name in self._ignored:
            return
        self._ignored.add(file.name)
        warnings.warn(
            f"{self.store.url}: {problem}: {file.path} is read without it, which takes longer; "
            "strata verify --repair writes it again",
            RuntimeWarning,
            stacklevel=2,
        )


def _is_text(key: str) -> bool:
    """Whether a column can hold this key. It cannot hold lone surrogates."""
    return key.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in key)


def _entry(file: DataFile, row: dict[str, Any]) -> IndexEntry:
    if "cumulative_bytes" in row:  # a row of a data file, not of an index
        ends = [len(row["header"]), *(row["cumulative_bytes"] or ())]
        if None in ends:
            raise DamagedDataError(f"{file.path}: {row['key']!r} lacks layer sizes", row["key"])
        try:
            check_size(row)
        except (ValueError, TypeError, StrataError) as error:
            raise DamagedDataError(f"{file.path}: {row['key']!r} {error}", row["key"]) from error
        lengths = tuple(max(stop - start, 0) for start, stop in pairwise(ends))
        places: dict[str, Any] = {"offsets": (), "lengths": lengths, "crc32s": ()}
    else:
        sides = [row[name] for name in ("original", "alpha") if row[name] is not None]
        try:
            check_index_row(row, file.bytes, file.rows, sides)
        except (ValueError, TypeError, LookupError, StrataError) as error:
            path = file.index["path"] if file.index else file.path
            raise BrokenIndexError(f"{path}: {row['key']!r} {error}") from error
        places = {name: tuple(row[name]) for name in ("offsets", "lengths", "crc32s")}
        for name in ("original", "alpha"):
            places[name] = None if row[name] is None else Span(**row[name])
        places["original_packing"] = row["original_packing"]
    known = {name: row[name] for name in ("key", "row", "row_group", "width", "height", "header")}
    return IndexEntry(file=file, **known, **places)
