"""What was deleted from a dataset, so that no job brings it back.

``deleted/<digest>.json`` is written before anything else of a deletion. For shards, by the names of
their data files without generation, it has a hash of each key that was deleted, and of how many
samples. Whoever makes a data file of a shard leaves these samples out. The keys themselves are not
in it, but who has a key and these files can find out that it was there.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..stores.store import StorageError, Store
from .layout import DELETED, RECORD_SUFFIX, deletion_path
from .records import to_json
from .untrusted import MAX_MANIFEST_BYTES, parse_json

FORMAT = 1
RESTORE = (
    "it says which samples were deleted, and without it they would come back. Put it back from a "
    "copy of the archive, or remove it and delete these keys again"
)
Hashes = dict[str, dict[str, int]]
"""For shards the hashes of deleted keys, and how many samples of the shard have each."""


class DamagedDeletionError(StorageError):
    """What says which samples were deleted is damaged: ``path``. The message says what to do."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


def key_hash(base: str, key: str) -> str:
    """The hash of a ``key``, as the column ``key`` has it, of the shard with this name."""
    return hashlib.blake2b(f"{base}\n{key}".encode(), digest_size=16).hexdigest()


def printable_key(key: str) -> str:
    """A key in the form in which the column ``key`` has it."""
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def pack_deletion(hashes: Hashes) -> tuple[str, bytes]:
    """Path and content of the file that says what was deleted."""
    data = to_json({"format": FORMAT, "files": hashes}, compact=True)
    return deletion_path(hashlib.sha256(data).hexdigest()[:32]), data


class Deletions:
    """All deletions of a dataset, read again as new ones come. Safe in threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.hashes: Hashes = {}
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def read(self) -> "Deletions":
        """Look for new ones; one request if there are none. Raises StorageError."""
        with self._lock:
            names = {name for name in self.store.sizes(DELETED) if name.endswith(RECORD_SUFFIX)}
            paths = [f"{DELETED}/{name}" for name in sorted(names - self._known)]
            for path, data in self.store.read_many(paths, MAX_MANIFEST_BYTES):
                for base, some in self._parse(path, data).items():
                    self.hashes.setdefault(base, {}).update(some)
            self._known |= names
        return self

    @property
    def files(self) -> int:
        """How many files say what was deleted."""
        return len(self._known)

    def deletes(self, base: str, key: str) -> bool:
        """Whether the samples of a shard with this key were deleted."""
        hashes = self.hashes.get(base)
        return hashes is not None and key_hash(base, printable_key(key)) in hashes

    def samples(self, base: str) -> int:
        """How many samples of a shard were deleted."""
        return sum(self.hashes.get(base, {}).values())

    def left(self, base: str, record: Mapping[str, Any]) -> int:
        """How many samples of a data file, by its ``record``, are still to be deleted.

        Below 0 if its file lacks more than the deletions name.
        """
        return self.samples(base) - int(record.get("deleted", 0))

    def keys(self, keys: Iterable[str]) -> Counter[str]:
        """In how many shards each of these keys was deleted."""
        return Counter(
            key
            for key in keys
            for base, hashes in self.hashes.items()
            if key_hash(base, key) in hashes
        )

    def _parse(self, path: str, data: bytes) -> Hashes:
        try:
            told: Any = parse_json(data)
            sound = pack_deletion(told["files"])[0] == path and told["format"] == FORMAT
            hashes = {str(base): _checked(some) for base, some in told["files"].items()}
        except (ValueError, TypeError, LookupError, AttributeError):
            sound, hashes = False, {}
        if not sound:
            raise DamagedDeletionError(f"{self.store.url}/{path} is damaged: {RESTORE}", path)
        return hashes


def _checked(hashes: Mapping[str, int]) -> dict[str, int]:
    if not all(type(count) is int and count > 0 for count in hashes.values()):
        raise ValueError("a number of samples is no number")
    return {str(one): count for one, count in hashes.items()}
