"""What makes a job resumable: a fixed plan, files that are published once, a record last.

The plan is written first. Data files and indexes are published whole and create-only; no reader
knows of one before its record. The record of a shard is written last: a shard is done if its record
exists, has the plan's fingerprint, and its file has the recorded size. The driver writes manifests,
and readers trust the one with the highest number. The first writer of a name wins, because encoding
a shard twice need not give the same bytes. ``layout`` has the names of all these files.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from codec.errors import StrataError

from ..sources.listing import file_of
from ..sources.shards import Shard
from ..stores.store import StorageError, Store
from .layout import (
    COMMITS,
    RECORD_SUFFIX,
    data_path,
    manifest_name,
    manifest_number,
    record_path,
    split_generation,
)
from .totals import totals_of
from .untrusted import MAX_MANIFEST_BYTES, MAX_PLAN_BYTES, MAX_RECORD_BYTES, parse_json

FORMAT_VERSION = 1
MERGED = "merged"  # in a plan: the plans of the archives that it was merged from
KEPT_PROBLEMS = 5  # of each record, in memory and in manifests
MAX_ERROR = 500  # characters of an error in a manifest
# What readers need to find a key in an index.
_OF_AN_INDEX = ("path", "bytes", "footer_bytes", "footer_crc32", "key_min", "key_max")


class PlanMismatchError(StrataError):
    """The output belongs to a job with other parameters or other inputs; the message says which."""


class NewerManifestError(StorageError):
    """Another job published a manifest after the records for this one were read."""

    passing = True


def to_json(value: Any, compact: bool = False) -> bytes:
    style: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 1}
    return json.dumps(value, sort_keys=True, ensure_ascii=True, **style).encode() + b"\n"


def fingerprint(parameters: Mapping[str, Any]) -> str:
    """The hash of a job's parameters, which are everything that its output depends on."""
    return hashlib.sha256(to_json(dict(parameters))).hexdigest()


def plans_of(parameters: Mapping[str, Any], own: str) -> dict[str, dict[str, Any]]:
    """The plans that data files of a dataset may be from, by their fingerprints.

    ``parameters`` and ``own`` fingerprint are the dataset's.
    """
    merged = parameters.get(MERGED)
    return dict(merged) if isinstance(merged, Mapping) else {own: dict(parameters)}


def fingerprints_of(parameters: Mapping[str, Any], own: str) -> set[str]:
    """Fingerprints that data files of a dataset may name; see ``plans_of``."""
    return {own, *plans_of(parameters, own)}


@dataclass(frozen=True)
class Plan:
    """The parameters of a job, and the name of their file (``dataset.json``)."""

    name: str
    parameters: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.parameters)

    def establish(self, store: Store) -> bool:
        """Write the plan, or find the same one there. Returns whether the store is create-only.

        Raises PlanMismatchError with the parameters that differ, OSError if nothing can be written.
        """
        written = {"parameters": self.parameters, "fingerprint": self.fingerprint}
        if not store.create(self.name, to_json(written)):
            self.check(store)
        return store.refuses_overwriting(self.name)

    def check(self, store: Store) -> None:
        """Compare with the plan in the store, if there is one. Raises PlanMismatchError."""
        try:
            present = parse_json(store.read(self.name, MAX_PLAN_BYTES))
        except (FileNotFoundError, NotADirectoryError):
            return
        except ValueError as error:
            raise PlanMismatchError(f"{store.url}/{self.name} is not a plan: {error}") from error
        theirs = present.get("parameters", {})
        differences = [
            f"{name} is {_short(theirs.get(name))} there and {_short(self.parameters.get(name))} "
            "here"
            for name in sorted({*theirs, *self.parameters})
            if theirs.get(name) != self.parameters.get(name)
        ]
        if differences or present.get("fingerprint") != self.fingerprint:
            raise PlanMismatchError(
                f"{store.url} was started with other parameters: {'; '.join(differences)}. "
                "Choose another output, or the same parameters to resume."
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_ERROR else f"{text[:MAX_ERROR]}..."


def slim(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record that the driver and the manifest need."""
    kept = {sys.intern(key): value for key, value in record.items() if key != "column_bytes"}
    if kept.get("index"):
        kept["index"] = {name: kept["index"][name] for name in _OF_AN_INDEX}
    if "problems" in kept:
        kept["problems"] = [list(problem) for problem in kept["problems"][:KEPT_PROBLEMS]]
    return kept


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

    def records(self) -> dict[str, dict[str, Any]]:
        """All records by name, each with only what ``slim`` keeps.

        Raises PlanMismatchError for another plan's record, StorageError for a damaged one.
        """
        names = [
            file.removesuffix(RECORD_SUFFIX)
            for file in sorted(self.store.sizes(self.folder))
            if file.endswith(RECORD_SUFFIX) and not file.startswith(".")
        ]
        contents = self.store.read_many(map(self._path, names), self.most)
        return {
            name: slim(self._parse(name, data))
            for name, (_, data) in zip(names, contents, strict=True)
        }

    def completed(
        self,
        data_folder: str,
        suffix: str,
        records: Mapping[str, dict[str, Any]] | None = None,
    ) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """The records of what is done, by the shard's name, and the names of lost shards.

        For each shard, that is the record of the newest generation whose file has the recorded
        size. A shard is lost if it has records but no such file. Records without their file are
        removed (and so is a file of another size), so that a lost shard is done again. ``records``
        is the result of ``records()``, if it is known already.
        """
        records = self.records() if records is None else records
        sizes = self.store.sizes(data_folder)  # read after the records: a file precedes its record
        done: dict[str, tuple[int, dict[str, Any]]] = {}
        known = set()
        for name, record in records.items():
            base, generation = self._split(name)
            known.add(base)
            standing: dict[str, Any] | None = record
            if sizes.get(f"{name}{suffix}") != record["bytes"]:
                standing = self._look_again(name, f"{data_folder}/{name}{suffix}".lstrip("/"))
            if standing and (base not in done or done[base][0] < generation):
                done[base] = generation, standing
        return {base: record for base, (_, record) in done.items()}, sorted(known - done.keys())

    def _look_again(self, name: str, path: str) -> dict[str, Any] | None:
        """The record of a file if that has the recorded size now; otherwise removes both.

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
            return slim(record)
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


def entry_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's entry for a record's file. The fingerprint is the manifest's own."""
    kept = {key: value for key, value in slim(record).items() if key != "fingerprint"}
    return {**kept, "path": data_path(record["name"])}


def in_order(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries in the order of manifests."""
    return sorted(entries, key=lambda entry: (entry["source"]["url"], entry["name"]))


def publish_manifest(
    store: Store,
    plan: Plan,
    records: Mapping[str, Mapping[str, Any]],
    failed: Sequence[Mapping[str, Any]] = (),
    after: int | None = None,
) -> int:
    """Write the next manifest, unless the newest one is the same. Returns its number.

    ``records`` has one record for each shard; ``failed`` are inputs (``url``, ``error``) that the
    last run could not compress. ``after`` is the result of ``latest_manifest`` before the records
    were read. If there is a later manifest, which may list files that these records lack, raises
    NewerManifestError.
    """
    files = in_order(entry_of({"name": name, **record}) for name, record in records.items())
    problems = [{"url": one["url"], "error": str(one["error"])[:MAX_ERROR]} for one in failed]
    manifest = {
        "format": FORMAT_VERSION,
        "fingerprint": plan.fingerprint,
        "totals": totals_of(files),
        "files": files,
        "failed": sorted(problems, key=lambda one: one["url"]),
    }
    packed = to_json(manifest, compact=True)
    while True:
        number = latest_manifest(store) if after is None else after
        if number and store.read(manifest_name(number), MAX_MANIFEST_BYTES) == packed:
            return number
        if store.create(manifest_name(number + 1), packed):
            return number + 1
        if after is not None:
            raise NewerManifestError(
                f"{store.url}/{manifest_name(number + 1)} was published by another job meanwhile: "
                "run the job again"
            )


def latest_manifest(store: Store) -> int:
    """The number of the newest manifest, 0 if there is none."""
    return max(map(manifest_number, store.sizes()), default=0)
