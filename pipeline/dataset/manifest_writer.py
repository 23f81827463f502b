"""Write manifests: from the records of all data files, in a fixed order.

The parts of a large one end where a hash of the last file's name says so. So they depend on the
files alone, and a manifest of one file more shares all parts but one with the manifest before.
"""

import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from ..stores.store import StorageError, Store
from .data_file import Bounds
from .layout import (
    FORMAT_VERSION,
    MANIFESTS,
    manifest_name,
    manifest_part_path,
    paths_in,
    split_generation,
)
from .manifest import DataFiles, Part, digest_of, latest_manifest, unpack
from .plan import Plan
from .records import Records, entry_of, to_json
from .totals import totals_of
from .untrusted import MAX_MANIFEST_BYTES, MAX_PART_BYTES, parse_json

PART_FILES = 1024  # data files in a part, on average
LONGEST_PART, INLINE_FILES = 8 * PART_FILES, 2 * PART_FILES
PART_BYTES = MAX_PART_BYTES // 4  # of lines; one more file fits in any case
MAX_ERROR = 500  # characters of an error in a manifest


class NewerManifestError(StorageError):
    """Another job published a manifest after the records for this one were read."""

    passing = True


def publish_manifest(
    store: Store,
    plan: Plan,
    records: Mapping[str, Mapping[str, Any]],
    failed: Iterable[Mapping[str, Any]] = (),
    after: int | None = None,
    *,
    check_parts: bool = False,
) -> int:
    """Write the next manifest, unless the newest one says the same. Returns its number.

    Args:
        records: one record for each shard, by any name; as ``Records`` they are best.
        failed: inputs (``url``, ``error``) that could not be compressed so far.
        after: the result of ``latest_manifest`` before the records were read. If there is a later
            manifest, which may list files that these records lack, raises NewerManifestError.
        check_parts: read the parts that the newest manifest has too, and mend these.
    """
    number = latest_manifest(store) if after is None else after
    newest = _json_of(store, number)
    named = set() if check_parts else {part["path"] for part in newest.get("parts", ())}
    known = named & paths_in(store, MANIFESTS).keys() if named else named
    writer = _Writer(store, known, len(records))
    totals = totals_of(writer.through(records))
    problems = [{"url": one["url"], "error": str(one["error"])[:MAX_ERROR]} for one in failed]
    manifest = {
        "format": FORMAT_VERSION,
        "fingerprint": plan.fingerprint,
        "totals": totals,
        **writer.written,
        "failed": sorted(problems, key=lambda one: one["url"]),
    }
    if to_json({**newest, "recorded": None}) == to_json({**manifest, "recorded": None}):
        return number
    recorded = records.recorded if isinstance(records, Records) else None
    packed = to_json(manifest | ({} if recorded is None else {"recorded": recorded}), compact=True)
    while not store.create(manifest_name(number + 1), packed):
        if after is not None:
            raise NewerManifestError(
                f"{store.url}/{manifest_name(number + 1)} was published by another job meanwhile: "
                "run the job again"
            )
        number = latest_manifest(store)
    _write_lost_parts(store, records, writer.written)
    return number + 1


def _write_lost_parts(
    store: Store, records: Mapping[str, Mapping[str, Any]], written: Mapping[str, Any]
) -> None:
    """Write again the parts that were removed before a manifest named them, by a deletion."""
    if "parts" in written:
        present = paths_in(store, MANIFESTS).keys()
        if any(part["path"] not in present for part in written["parts"]):
            for _ in _Writer(store, present, len(records)).through(records):
                pass


def _json_of(store: Store, number: int) -> dict[str, Any]:
    """The JSON of a manifest; none if it is gone or damaged: then the next one differs."""
    try:
        return parse_json(store.read(manifest_name(number), MAX_MANIFEST_BYTES)) if number else {}
    except (ValueError, FileNotFoundError):
        return {}


def files_of(records: Mapping[str, Mapping[str, Any]]) -> DataFiles:
    """The data files of these records, as a manifest would list them."""
    names = _in_order(records)
    return DataFiles.of(entry_of({"name": name, **records[name]}) for name in names)


class _Writer:
    """Writes the entries of a manifest: into itself, or into parts where they are many.

    Attributes:
        written: what the manifest says of its files, when all of them went through.
    """

    def __init__(self, store: Store, known: Set[str], count: int) -> None:
        self._store, self._known = store, known
        self._in_parts = count > INLINE_FILES
        self.written: dict[str, Any] = {"parts" if self._in_parts else "files": []}

    def through(self, records: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """The entries in the order of manifests; each of them is written on its way."""
        lines: list[bytes] = []
        size = 0
        told: list[tuple[int, Bounds | None]] = []
        for name in _in_order(records):
            entry = entry_of({"name": name, **records[name]})
            if not self._in_parts:
                self.written["files"].append(entry)
            else:
                index = entry.get("index")
                lines.append(to_json(entry, compact=True))
                size += len(lines[-1])
                told.append((entry["ok"], (index["key_min"], index["key_max"]) if index else None))
                whole = len(lines) == LONGEST_PART or size >= PART_BYTES
                if whole or _ends_part(entry["name"]):
                    self._write(lines, told)
                    lines, told, size = [], [], 0
            yield entry
        if lines:
            self._write(lines, told)

    def _write(self, lines: Sequence[bytes], told: Sequence[tuple[int, Bounds | None]]) -> None:
        data = b"".join(lines)
        digest = digest_of(data)
        path = manifest_part_path(digest)
        self.written["parts"].append(Part.of(digest, path, told).to_json())
        if path in self._known or self._store.create(path, gzip.compress(data, mtime=0)):
            return
        self._mend(path, data)

    def _mend(self, path: str, data: bytes) -> None:
        """Write a part again whose name is taken, unless it is sound."""
        try:
            if unpack(self._store.read(path, MAX_PART_BYTES)) == data:
                return
        except (ValueError, FileNotFoundError, StorageError):
            pass
        self._store.remove(path)
        if not self._store.create(path, gzip.compress(data, mtime=0)):
            raise StorageError(
                f"{self._store.url}/{path}: another job is writing it: run the job again",
                passing=True,
            )


def _in_order(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of records, sorted by the sources of their files."""
    keyed = ((record["source"]["url"], record.get("name", n), n) for n, record in records.items())
    return [name for _, _, name in sorted(keyed)]


def _ends_part(name: str) -> bool:
    return zlib.crc32(split_generation(name)[0].encode()) % PART_FILES == 0
