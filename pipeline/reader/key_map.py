"""A map of all keys to data files, for datasets whose keys are not sorted by shard.

In such a dataset the key bounds in the manifest exclude no file, so looking up one key would read
the index of every data file. With ``keys/<digest>.bin``, three small requests find the data files
that may have a key; the key is then looked up in their indexes. The digest is that of the
manifest's entries, so an outdated map is never read. A damaged map is ignored. docs/format.md has
its bytes.
"""

import filecmp
import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from codec.batches import windows
from codec.errors import StrataError

from ..dataset import layout
from ..dataset.data_file import DataFile, DatasetError
from ..dataset.index import BrokenIndexError
from ..dataset.manifest import DataFiles
from ..stores.cache import ByteCache
from ..stores.filesystems import storage_errors
from ..stores.ranges import AT_ONCE, Range, ShortReadError, read_ranges
from ..stores.store import Store, scratch_errors, scratch_folder
from ..stores.threads import ahead
from .blocks import IndexBlocks

_MAGIC = b"STRATAK1"
_HEAD = struct.Struct("<8sIQI")
_ENTRY = np.dtype([("hash", "<u8"), ("file", "<u4")])
_PER_BUCKET = 256  # keys, on average: a bucket is one request of 3 KB
# The limit of a sound bucket: so many keys, and so many keys that every file has.
_BUCKET_KEYS, _REPEATED_KEYS = 16 * _PER_BUCKET, 16
_READ_BYTES = 16 << 20  # of buckets, held at once
_TOGETHER, _MANY_FILES = 1 << 20, 1 << 16  # entries and files that are sorted into spills at once
_INDEX_BYTES = 64 << 20
_SPILLS = 256  # files of entries, in the order of their hashes; each fits into memory


class BrokenMapError(StrataError):
    """A map of keys is damaged; the message names it."""


def key_map_path(files: DataFiles) -> str:
    """The path of the map for these files."""
    return layout.key_map_path(files.digest)


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


# -- reading --------------------------------------------------------------------------------------


class KeyMap:
    """The map of a dataset's files, if there is one. Safe in threads."""

    def __init__(self, store: Store, files: DataFiles) -> None:
        self.path = key_map_path(files)
        self._store, self._files = store, files
        self._bits = -1  # of the number of buckets

    def files_with(self, keys: Sequence[str]) -> dict[int, list[str]] | None:
        """The numbers of files in the dataset, each with the ``keys`` that it may have.

        None if there is no map. Raises BrokenMapError, StorageError.
        """
        try:
            bits = self._read_bits()
        # S3 answers 403 for a missing object if listing is not allowed.
        except (FileNotFoundError, PermissionError):
            return None
        wanted: dict[int, list[str]] = {}
        for key in keys:
            wanted.setdefault(_hash(key) >> 64 - bits, []).append(key)
        places = self._read([(_HEAD.size + 8 * number, 16) for number in wanted])
        bounds = [struct.unpack("<QQ", place) for place in places]
        most = _ENTRY.itemsize * (_BUCKET_KEYS + _REPEATED_KEYS * len(self._files)) + 4
        if not all(0 < stop - start <= most for start, stop in bounds):
            raise BrokenMapError(f"{self.path} is damaged")
        found: dict[int, list[str]] = {}
        together = max(1, _READ_BYTES // most)
        numbered = list(zip(wanted.items(), bounds, strict=True))
        for first in range(0, len(numbered), together):
            portion = numbered[first : first + together]
            buckets = self._read([(start, stop - start) for _, (start, stop) in portion])
            for ((number, sought), _), data in zip(portion, buckets, strict=True):
                entries = self._entries(number, data)
                for key in sought:
                    for entry in entries[entries["hash"] == _hash(key)]:
                        found.setdefault(int(entry["file"]), []).append(key)
        return {number: sorted(names) for number, names in found.items()}

    def _read_bits(self) -> int:
        if self._bits < 0:
            (head,) = self._read([(0, _HEAD.size)])
            magic, buckets, _, crc = _HEAD.unpack(head)
            if magic != _MAGIC or crc != zlib.crc32(head[:-4]) or buckets.bit_count() != 1:
                raise BrokenMapError(f"{self.path} is damaged, or from another release")
            self._bits = buckets.bit_length() - 1
        return self._bits

    def _entries(self, number: int, data: bytes) -> np.ndarray:
        packed = data[:-4]
        crc = zlib.crc32(packed, zlib.crc32(number.to_bytes(4, "little")))
        if len(packed) % _ENTRY.itemsize or int.from_bytes(data[-4:], "little") != crc:
            raise BrokenMapError(f"{self.path} is damaged")
        entries = np.frombuffer(packed, _ENTRY)
        if len(entries) and entries["file"].max() >= len(self._files):
            raise BrokenMapError(f"{self.path} names an unknown data file")
        return entries

    def _read(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        found = []
        for data in read_ranges(self._store, [Range(self.path, *span) for span in spans]):
            if isinstance(data, ShortReadError):
                raise BrokenMapError(f"{self.path} is cut") from data
            if isinstance(data, FileNotFoundError | PermissionError):
                raise data
            if isinstance(data, Exception):
                with storage_errors(f"{self._store.url}/{self.path}", "cannot be read"):
                    raise data
            found.append(data)
        return found


# -- writing --------------------------------------------------------------------------------------


def publish_key_map(store: Store, files: DataFiles, scratch: str | None) -> str:
    """Write the map of these files into their dataset, unless a sound one exists.

    Returns the result, as text. Raises what ``write_key_map`` raises, StorageError.
    """
    path = key_map_path(files)
    url = f"{store.url}/{path}"
    with scratch_folder(scratch) as folder, storage_errors(url, "cannot be written"):
        local = folder / "keys.bin"
        with scratch_errors(folder):
            write_key_map(store, files, local, folder)
        standing = folder / "standing.bin"
        if standing == store.create_or_keep(
            path, local, standing, lambda it: filecmp.cmp(it, local, shallow=False)
        ):
            return f"{url}: exists already"
        return f"{url}: {local.stat().st_size:,} bytes for {files.ok:,} keys"


def write_key_map(store: Store, files: DataFiles, local: Path, scratch: Path) -> None:
    """Read the indexes of these files and write their map to ``local``.

    Needs twelve bytes per picture in ``scratch``, and as many for ``local``. Raises DatasetError
    for a file whose index is missing or damaged.
    """
    count = files.ok
    bits = max(1, (count // _PER_BUCKET).bit_length() - 1)
    shift = np.uint64(64 - min(bits, _SPILLS.bit_length() - 1))
    spills = [scratch / f"keys-{number}" for number in range(1 << (64 - int(shift)))]
    for parts in windows(_entries_of(store, files), len, _TOGETHER, _MANY_FILES):
        entries = np.concatenate(parts)
        which = entries["hash"] >> shift
        for number in np.unique(which):
            with open(spills[number], "ab") as out:
                out.write(entries[which == number].tobytes())
    with open(local, "wb") as out:
        buckets = 1 << bits
        head = _HEAD.pack(_MAGIC, buckets, count, 0)[:-4]
        starts = np.zeros(buckets + 1, "<u8")
        out.seek(_HEAD.size + starts.nbytes)
        for number, entries in enumerate(_buckets(spills, bits)):
            starts[number] = out.tell()
            packed = entries.tobytes()
            crc = zlib.crc32(packed, zlib.crc32(number.to_bytes(4, "little")))
            out.write(packed + crc.to_bytes(4, "little"))
        starts[buckets] = out.tell()
        out.seek(0)
        out.write(head + zlib.crc32(head).to_bytes(4, "little") + starts.tobytes())


def _buckets(spills: Sequence[Path], bits: int) -> Iterator[np.ndarray]:
    each = (1 << bits) // len(spills)
    for number, path in enumerate(spills):
        entries = np.fromfile(path, _ENTRY) if path.exists() else np.empty(0, _ENTRY)
        entries = entries[np.argsort(entries["hash"], kind="stable")]
        first = [(number * each + n) << (64 - bits) for n in range(1, each)]
        yield from np.split(entries, np.searchsorted(entries["hash"], np.array(first, np.uint64)))


def _entries_of(store: Store, files: DataFiles) -> Iterator[np.ndarray]:
    """The entries of each file, in order. Reads several indexes at once."""

    def read(file: DataFile) -> np.ndarray:
        if file.index is None:
            raise DatasetError(
                f"{store.url}/{file.path} has no index: strata verify --repair writes it"
            )
        blocks = IndexBlocks(store, file, ByteCache(_INDEX_BYTES))
        try:
            parts = [
                np.array([_hash(key) for key in block.keys], "<u8")
                for block in blocks.get(range(len(blocks.bounds())))
            ]
        except BrokenIndexError as error:
            raise DatasetError(
                f"{store.url}: {error}: strata verify --repair writes it again"
            ) from error
        hashes = np.concatenate([*parts, np.empty(0, "<u8")])
        entries = np.empty(len(hashes), _ENTRY)
        entries["hash"] = hashes
        entries["file"] = file.number
        return entries

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from ahead(pool, read, (file for file in files if file.ok), lambda: 2 * AT_ONCE)
