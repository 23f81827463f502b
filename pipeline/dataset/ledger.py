"""What makes a job resumable: a fixed plan, files that are published once, a record last.

The plan is written first. Data files and indexes are published whole and create-only; no reader
knows of one before its record. The record of a shard is written last: a shard is done if its record
exists, has the plan's fingerprint, and its file has the recorded size. The driver writes manifests,
and readers trust the one with the highest number. The first writer of a name wins, because encoding
a shard twice need not give the same bytes. ``layout`` has the names of all these files.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..sources.listing import file_of
from ..sources.shards import Shard
from ..stores.store import StorageError, Store
from .data_file import DatasetError
from .layout import COMMITS, RECORD_SUFFIX, generation_name, record_path, split_generation
from .manifest import latest_manifest, open_manifest
from .plan import PlanMismatchError
from .records import Records, entry_of, slim, to_json
from .untrusted import MAX_RECORD_BYTES, parse_json

_SETTLED = 60.0  # seconds: a store may show a file a little after the time that it says of it


class Ledger:
    """The commit records of one job's folder.

    In a dataset (the default ``folder``) names end in their generation. In other folders they do
    not, unless ``generations`` is true. A record has at most ``most`` bytes.
    """

    def __init__(
        self,
        store: Store,
        plan_fingerprint: str,
        folder: str = COMMITS,
        generations: bool | None = None,
        most: int = MAX_RECORD_BYTES,
    ) -> None:
        self.store = store
        self.most = most
        self.fingerprint = plan_fingerprint
        self.folder = folder
        self.generations = folder == COMMITS if generations is None else generations

    def commit(self, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Record a published shard; returns the record that exists now, ours or an earlier one."""
        complete = self._named(name, {**record, "fingerprint": self.fingerprint})
        if self.store.create(self._path(name), to_json(complete)):
            return complete
        return self._parse(name, self.store.read(self._path(name), self.most))

    def exists(self, name: str) -> bool:
        """Whether there is a record of this name, of any plan."""
        return self.store.exists(self._path(name))

    def read(self, name: str) -> dict[str, Any] | None:
        """One record in full, None if there is none.

        Raises PlanMismatchError for another plan's record, StorageError for a damaged one.
        """
        try:
            return self._parse(name, self.store.read(self._path(name), self.most))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def records(self) -> Records:
        """All records by name, each with only what ``slim`` keeps.

        What the newest manifest has of a dataset's records is taken from there, unless the record
        was written since. Raises PlanMismatchError for another plan's record, StorageError for a
        damaged one.
        """
        before = self._clock()
        times = {
            one.name.removesuffix(RECORD_SUFFIX): one.modified
            for one in self.store.listing(self.folder)
            if one.name.endswith(RECORD_SUFFIX) and not one.name.startswith(".")
        }
        found = Records(self.fingerprint)
        if self.folder == COMMITS and times:
            self._take_listed(found, times)
            known = [time for time in times.values() if time is not None]
            if len(known) == len(times):
                # A long listing may miss what is written meanwhile, and a clock may be ahead.
                found.recorded = min(max(known), before) - _SETTLED
        names = sorted(times.keys() - found.keys())
        contents = self.store.read_many(map(self._path, names), self.most)
        for name, (_, data) in zip(names, contents, strict=True):
            record = self._parse(name, data)
            found[name] = entry_of(record) if self.folder == COMMITS else record
        return found

    def _clock(self) -> float:
        """The store's clock, or this machine's where the store does not tell it."""
        try:
            return self.store.now()
        except OSError:
            return time.time()

    def _take_listed(self, found: Records, times: Mapping[str, float | None]) -> None:
        """Take from the newest manifest the records that were not written since."""
        try:
            if not (number := latest_manifest(self.store)):
                return
            manifest = open_manifest(self.store, number)
            if manifest.recorded is None or manifest.fingerprint != self.fingerprint:
                return
            for file in manifest.files:
                time = times.get(file.name)
                if time is not None and time < manifest.recorded:
                    found.put(file.name, file.entry)
        except DatasetError:  # records tell the same
            found.clear()

    def completed(
        self, data_folder: str, suffix: str, records: Records | None = None
    ) -> tuple[Records, Records]:
        """The records of what is done, and those of what is lost, by the shard's name.

        For each shard, that is the record of the newest generation whose file has the recorded
        size. A shard is lost if it has records but no such file; its record is the newest one.
        Damaged generations of shards that are not lost are removed. ``records`` is the result of
        ``records()``, if it is known already.
        """
        records = self.records() if records is None else records
        sizes = self.store.sizes(data_folder)  # read after the records: a file precedes its record
        newest: dict[str, tuple[int, str]] = {}
        broken, again = [], Records(self.fingerprint)
        for name, record in records.items():
            base, generation = self._split(name)
            path = f"{data_folder}/{name}{suffix}".lstrip("/")
            if sizes.get(f"{name}{suffix}") != record["bytes"]:
                standing = self._look_again(name, path)
                if standing is None:
                    broken.append((base, generation, name, path))
                    continue
                again[name] = standing
            newest[base] = max(newest.get(base, (-1, "")), (generation, name))
        lost: dict[str, tuple[int, str]] = {}
        for base, generation, name, path in broken:
            if base in newest:
                self._look_again(name, path, remove=True)
            else:
                lost[base] = max(lost.get(base, (-1, "")), (generation, name))
        done = records.named((base, name) for base, (_, name) in newest.items())
        done.update((base, again[name]) for base, (_, name) in newest.items() if name in again)
        return done, records.named((base, name) for base, (_, name) in sorted(lost.items()))

    def drop(self, data_folder: str, suffix: str, lost: Records) -> None:
        """Remove what is left of lost shards, so that they are done again."""
        for base, record in lost.items():
            for generation in range(record.get("generation", 0) + 1):
                name = generation_name(base, generation)
                path = f"{data_folder}/{name}{suffix}".lstrip("/")
                self._look_again(name, path, remove=True)

    def _look_again(self, name: str, path: str, remove: bool = False) -> dict[str, Any] | None:
        """The record of a file if that has the recorded size now; otherwise may remove both.

        Both may have changed since they were read: another job may have found them damaged and
        done the shard again. A file that it has not recorded yet is not touched.
        """
        record = self.read(name)  # read before the file's size: a file precedes its record
        if record is None:
            return None
        try:
            size = self.store.info(path)["size"]
        except (FileNotFoundError, NotADirectoryError):
            size = None
        if size == record["bytes"]:
            return entry_of(record) if self.folder == COMMITS else slim(record)
        if remove:
            self.store.remove(self._path(name))
            self.store.remove(path)
        return None

    def _path(self, name: str) -> str:
        return record_path(name, self.folder)

    def _split(self, name: str) -> tuple[str, int]:
        return split_generation(name) if self.generations else (name, 0)

    def _named(self, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
        named = {**record, "name": name}
        if self.generations:
            named["base"], named["generation"] = split_generation(name)
        return named

    def _parse(self, name: str, data: bytes) -> dict[str, Any]:
        url = f"{self.store.url}/{self._path(name)}"
        try:
            record = self._named(name, parse_json(data))
            matches = record["fingerprint"] == self.fingerprint
        except (ValueError, TypeError, KeyError) as error:
            raise StorageError(
                f"{url} is not a commit record; remove it, and its shard is done again"
            ) from error
        if not matches:
            raise PlanMismatchError(
                f"{url} was written by a job with other parameters: choose another output"
            )
        record["fingerprint"] = self.fingerprint  # one string for all of them
        return record


def as_recorded(shards: Sequence[Shard], records: Mapping[str, Mapping[str, Any]]) -> list[Shard]:
    """The shards; local ones with their path spelled as it was recorded.

    Otherwise a file that was compressed as ``./x.tar``, or through a link, would come in twice.
    """
    known = {record["source"]["url"] for record in records.values()}
    if all(shard.url in known for shard in shards):
        return list(shards)
    spelled = {file_of(url): url for url in known}
    return [
        shard
        if shard.url in known
        else replace(shard, url=spelled.get(file_of(shard.url), shard.url))
        for shard in shards
    ]


def check_inputs(shards: Sequence[Shard], records: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse shards that have changed since they were compressed: they would be there twice.

    Raises PlanMismatchError, which names them.
    """
    versions = {record["source"]["url"]: record["source"] for record in records.values()}
    changed = [
        f"{shard.url} ({versions[shard.url]['size']} bytes then, {shard.size} now)"
        for shard in shards
        if shard.url in versions
        and (versions[shard.url]["size"], versions[shard.url]["etag"]) != (shard.size, shard.etag)
    ]
    if changed:
        raise PlanMismatchError(
            f"inputs have changed since they were compressed: {'; '.join(changed[:10])}. Put them "
            "back as they were, or compress them under other names or into another output"
        )
