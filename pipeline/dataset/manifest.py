"""Manifests: which data files a dataset has. Readers trust the one with the highest number.

    manifest-000007.json      totals, failed inputs, and ``files``: an entry for each data file,
                              or of a large dataset ``parts``, which name these:
    manifests/<digest>.jsonl.gz   a thousand entries or so, one in each line

A part is named after its content. Readers load only those parts that may hold what they look for.
"""

import hashlib
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, overload

from ..stores.cache import ByteCache
from ..stores.reasons import describe
from ..stores.store import Store, storage_errors
from .data_file import Bounds, DataFile, DatasetError, within
from .layout import (
    FORMAT_VERSION,
    manifest_name,
    manifest_number,
)
from .untrusted import MAX_MANIFEST_BYTES, MAX_PART_BYTES, check_part, parse_json

_CACHE_BYTES = 64 << 20  # of parts
_FILE_BYTES = 400  # of a DataFile in memory, beside its entry
_AT_ONCE = 8  # parts that are read together
_DIGEST = 32  # hexadecimal digits
_CANNOT = "cannot be opened as an archive"
_MEND = "strata verify --repair writes it again"


@dataclass(frozen=True)
class Part:
    """Some data files of a manifest.

    ``path`` is that of their list, "" if the manifest itself has them. ``bounds`` are those of all
    keys of their pictures, None if these are not known.
    """

    digest: str
    path: str
    files: int
    ok: int
    bounds: Bounds | None

    @classmethod
    def of(cls, digest: str, path: str, files: Sequence[tuple[int, Bounds | None]]) -> "Part":
        """Of data files with so many pictures, and these bounds of their keys."""
        bounds = [one for ok, one in files if ok]
        known = [one for one in bounds if one is not None]
        whole = bool(known) and len(known) == len(bounds)
        around = (min(low for low, _ in known), max(high for _, high in known)) if whole else None
        return cls(digest, path, len(files), sum(ok for ok, _ in files), around)

    def to_json(self) -> dict[str, Any]:
        bounds = dict(zip(("key_min", "key_max"), self.bounds or (), strict=False))
        return {"path": self.path, "files": self.files, "ok": self.ok, **bounds}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "Part":
        """Raises ValueError, TypeError or LookupError for an invalid one."""
        check_part(told)
        bounds = (told["key_min"], told["key_max"]) if "key_min" in told else None
        digest = told["path"].rpartition("/")[2].partition(".")[0]
        return cls(digest, told["path"], told["files"], told["ok"], bounds)


class DataFiles(Sequence[DataFile]):
    """The data files of a dataset, in its order. Parts are read as they are needed, and some kept.

    Reading raises DatasetError for a part that is gone or damaged, StorageError.
    """

    def __init__(
        self, store: Store | None, parts: Sequence[Part], own: Sequence[DataFile] = ()
    ) -> None:
        self.parts = parts
        self._store, self._own = store, own
        self._starts = [0, *accumulate(part.files for part in parts)]
        self._cache = ByteCache(_CACHE_BYTES)

    @classmethod
    def of(cls, files: Iterable[DataFile | Mapping[str, Any]]) -> "DataFiles":
        """Data files that are known already, or their entries. Raises what ``DataFile.of`` does."""
        entries = (file.entry if isinstance(file, DataFile) else file for file in files)
        own = tuple(DataFile.of(entry, number) for number, entry in enumerate(entries))
        digest = digest_of(b"".join(file.entry + b"\n" for file in own))
        part = Part.of(digest, "", [(file.ok, file.key_bounds) for file in own])
        return cls(None, [part], own)

    @property
    def ok(self) -> int:
        """Pictures in all of them."""
        return sum(part.ok for part in self.parts)

    @property
    def digest(self) -> str:
        """A hash of all their entries."""
        text = "".join(part.digest for part in self.parts)
        return hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]

    def having(self, keys: Sequence[str]) -> Iterator[DataFile]:
        """The files that have pictures and may have any of the sorted ``keys``."""
        numbers = [n for n, part in enumerate(self.parts) if part.ok and within(keys, part.bounds)]
        for files in self._loaded(numbers):
            for file in files:
                if file.ok and within(keys, file.key_bounds):
                    yield file

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[DataFile]:
        for files in self._loaded(range(len(self.parts))):
            yield from files

    @overload
    def __getitem__(self, place: int) -> DataFile: ...

    @overload
    def __getitem__(self, place: slice) -> list[DataFile]: ...

    def __getitem__(self, place: int | slice) -> DataFile | list[DataFile]:
        if isinstance(place, slice):
            return [self[number] for number in range(len(self))[place]]
        number = range(len(self))[place]
        part = bisect_right(self._starts, number) - 1
        return self._load(part)[number - self._starts[part]]

    def index(self, file: Any, start: int = 0, stop: int | None = None) -> int:
        """The place of a data file of this dataset."""
        if 0 <= file.number < len(self) and self[file.number] == file:
            return int(file.number)
        return super().index(file, start, len(self) if stop is None else stop)

    def _loaded(self, numbers: Sequence[int]) -> Iterator[Sequence[DataFile]]:
        """These parts, in order, some at a time.

        No thread runs while the caller has the result: callers may leave the generator unfinished,
        and it may then be collected where threads cannot be waited for.
        """
        for first in range(0, len(numbers), _AT_ONCE):
            some = numbers[first : first + _AT_ONCE]
            if len(some) == 1:
                yield self._load(some[0])
                continue
            with ThreadPoolExecutor(len(some)) as pool:
                loaded = list(pool.map(self._load, some))
            yield from loaded

    def _load(self, number: int) -> Sequence[DataFile]:
        part = self.parts[number]
        if not part.path:
            return self._own

        def read() -> Sequence[DataFile]:
            assert self._store is not None
            return _read_part(self._store, part, self._starts[number])

        return self._cache.load(
            part.path, read, lambda files: sum(len(one.entry) + _FILE_BYTES for one in files)
        )


@dataclass(frozen=True)
class Manifest:
    """What a dataset has in it.

    Attributes:
        failed: inputs (``url``, ``error``) that gave nothing.
        fingerprint: the plan's.
        recorded: see ``Records``.
    """

    number: int
    files: DataFiles
    totals: dict[str, Any]
    failed: list[dict[str, str]]
    fingerprint: str = ""
    recorded: float | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any], number: int = 0, store: Store | None = None) -> "Manifest":
        """From its JSON. Raises ValueError, TypeError or LookupError for an invalid one."""
        if "parts" in told:
            files = DataFiles(store, [Part.from_json(part) for part in told["parts"]])
        else:
            files = DataFiles.of(told["files"])
        kept = (
            told["totals"],
            told.get("failed", []),
            told.get("fingerprint", ""),
            told.get("recorded"),
        )
        return cls(number, files, *kept)


def latest_manifest(store: Store) -> int:
    """The number of the newest manifest, 0 if there is none."""
    return max((manifest_number(one.name) for one in store.listing()), default=0)


def open_manifest(store: Store, number: int | None = None) -> Manifest:
    """The newest manifest, or the one with this number. Its parts are read when they are needed.

    Raises DatasetError if there is none, if it is damaged, or of a newer format.
    """
    with storage_errors(store.url, _CANNOT):
        found = latest_manifest(store) if number is None else number
    if not found:
        raise DatasetError(
            f"{store.url}: the job that writes this archive has not finished; run it again to "
            "resume"
        )
    name = manifest_name(found)
    with storage_errors(store.url, _CANNOT):
        try:
            raw = store.read(name, MAX_MANIFEST_BYTES)
        except FileNotFoundError as error:
            if number is None and latest_manifest(store) > found:  # a deletion has replaced it
                return open_manifest(store)
            raise DatasetError(f"{store.url}: there is no {name}") from error
    try:
        told = parse_json(raw)
        version = told["format"]
        if version == FORMAT_VERSION:
            return Manifest.of(told, found, store)
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DatasetError(
            f"{store.url}: {name} is damaged ({describe(error)}); {_MEND}"
        ) from error
    raise DatasetError(
        f"{store.url}: {name} has format {version!r}, this release reads {FORMAT_VERSION}"
    )


def part_paths(store: Store, number: int) -> set[str]:
    """The parts that a manifest names; none if it is gone. Raises DatasetError if it is damaged."""
    name = manifest_name(number)
    try:
        told = parse_json(store.read(name, MAX_MANIFEST_BYTES))
        return {Part.from_json(part).path for part in told.get("parts", ())}
    except FileNotFoundError:
        return set()
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise DatasetError(f"{store.url}: {name} is damaged ({describe(error)})") from error


def _read_part(store: Store, part: Part, first: int) -> Sequence[DataFile]:
    """The data files of a part; ``first`` is the place of the first one in the dataset."""
    url = f"{store.url}/{part.path}"
    with storage_errors(url, "cannot be read"):
        try:
            packed = store.read(part.path, MAX_PART_BYTES)
        except FileNotFoundError as error:
            raise DatasetError(
                f"{url}: the manifest names this list of data files, but it is gone: open the "
                f"archive again; if it stays gone, {_MEND}"
            ) from error
    try:
        lines = unpack(packed)
        files = [DataFile.of(line, first + n) for n, line in enumerate(lines.splitlines())]
        if digest_of(lines) != part.digest or len(files) != part.files:
            raise ValueError("it does not hold what was written")
        found = Part.of(part.digest, part.path, [(file.ok, file.key_bounds) for file in files])
        if found != part:
            raise ValueError("the manifest tells other pictures or keys of it")
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DatasetError(f"{url}: is damaged ({describe(error)}): {_MEND}") from error
    return files


def unpack(packed: bytes) -> bytes:
    """The lines of a part. Raises ValueError for anything but a whole gzip of bounded size."""
    stream = zlib.decompressobj(wbits=31)
    try:
        lines = stream.decompress(packed, MAX_PART_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if not stream.eof:
        raise ValueError("it is cut, or too large")
    return lines


def digest_of(lines: bytes) -> str:
    return hashlib.sha256(lines).hexdigest()[:_DIGEST]
