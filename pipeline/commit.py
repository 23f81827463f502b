"""What makes a job restartable: a plan that is fixed, files that are published once, a record last.

A dataset (and the folder of a decode job) holds::

    <plan>.json          written first: the parameters and their fingerprint
    data/...             published whole, create-only; unknown to readers until recorded
    commits/<name>.json  written last for each shard: done means that this record exists, that it
                         has the plan's fingerprint and that its file has the recorded size
    manifest-<n>.json    written by the driver: what readers trust, the highest number wins

The first writer of a name wins, because encoding a shard twice need not give the same bytes.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codec.errors import StrataError

from .shards import Shard
from .storage import Store

FORMAT_VERSION = 1
_MANIFEST = re.compile(r"manifest-(\d{6})\.json")


class PlanMismatchError(StrataError):
    """The output belongs to a job with other parameters or other inputs; the message says which."""


def to_json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True).encode() + b"\n"


def fingerprint(parameters: Mapping[str, Any]) -> str:
    """Names a set of parameters: everything that the bytes of the output depend on."""
    return hashlib.sha256(to_json(dict(parameters))).hexdigest()


@dataclass(frozen=True)
class Plan:
    """The parameters of a job, under the name they are stored by (``dataset.json``)."""

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
            present = json.loads(store.read(self.name))
        except (FileNotFoundError, NotADirectoryError):
            return
        except ValueError as error:
            raise PlanMismatchError(f"{store.url}/{self.name} is not a plan: {error}") from error
        theirs = present.get("parameters", {})
        differences = [
            f"{name} is {theirs.get(name)!r} there and {self.parameters.get(name)!r} here"
            for name in sorted({*theirs, *self.parameters})
            if theirs.get(name) != self.parameters.get(name)
        ]
        if differences or present.get("fingerprint") != self.fingerprint:
            raise PlanMismatchError(
                f"{store.url} was begun with other parameters: {'; '.join(differences)}. "
                "Choose another output, or the same parameters to resume."
            )


def shard_name(shard: Shard, plan_fingerprint: str) -> str:
    """A deterministic file name for a version of a shard under a plan."""
    identity = "\n".join([shard.url, str(shard.size), shard.etag, plan_fingerprint])
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", shard.stem)[:80].lstrip(".") or "shard"
    return f"{stem}-{hashlib.sha256(identity.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


class Ledger:
    """The commit records of one job's folder."""

    def __init__(self, store: Store, plan_fingerprint: str, folder: str = "commits") -> None:
        self.store = store
        self.fingerprint = plan_fingerprint
        self.folder = folder

    def commit(self, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Record a published shard; returns the record that stands, ours or an earlier one."""
        complete = {**record, "name": name, "fingerprint": self.fingerprint}
        path = f"{self.folder}/{name}.json"
        if self.store.create(path, to_json(complete)):
            return complete
        return dict(json.loads(self.store.read(path)))

    def records(self) -> dict[str, dict[str, Any]]:
        """All records of this plan, by name. Raises PlanMismatchError for another plan's record."""
        found = {}
        for file in sorted(self.store.sizes(self.folder)):
            if not file.endswith(".json") or file.startswith("."):
                continue
            record = json.loads(self.store.read(f"{self.folder}/{file}"))
            if record["fingerprint"] != self.fingerprint:
                raise PlanMismatchError(
                    f"{self.store.url}/{self.folder}/{file} was written by a job with other "
                    "parameters: choose another output"
                )
            found[file.removesuffix(".json")] = record
        return found

    def completed(
        self, data_folder: str, suffix: str
    ) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Records whose file is there with the recorded size, and the names of those without.

        The second kind is taken back (file and record removed), so that it will be done again.
        """
        sizes = self.store.sizes(data_folder)
        done, lost = {}, []
        for name, record in self.records().items():
            if sizes.get(f"{name}{suffix}") == record["bytes"]:
                done[name] = record
            else:
                lost.append(name)
                self.store.remove(f"{self.folder}/{name}.json")
                self.store.remove(f"{data_folder}/{name}{suffix}".lstrip("/"))
        return done, lost


def check_inputs(shards: Sequence[Shard], records: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse an input that was compressed before and has changed since: it would be there twice.

    Raises PlanMismatchError naming the shards.
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
            "inputs have changed since they were compressed: " + "; ".join(changed[:10])
        )


def publish_manifest(store: Store, plan: Plan, records: Mapping[str, Mapping[str, Any]]) -> int:
    """Write the next manifest, unless the newest says the same already. Returns its number."""
    files = [
        {**records[name], "path": f"data/{name}.parquet"}
        for name in sorted(records, key=lambda name: (records[name]["source"]["url"], name))
    ]
    totals = {
        key: sum(file[key] for file in files)
        for key in ("rows", "ok", "bad", "filtered", "bytes", "pixels", "picture_bytes")
    }
    manifest = {
        "format": FORMAT_VERSION,
        "fingerprint": plan.fingerprint,
        "totals": totals,
        "files": files,
    }
    while True:
        number = latest_manifest(store)
        if number and json.loads(store.read(manifest_name(number))) == manifest:
            return number
        if store.create(manifest_name(number + 1), to_json(manifest)):
            return number + 1


def manifest_name(number: int) -> str:
    return f"manifest-{number:06d}.json"


def latest_manifest(store: Store) -> int:
    """The number of the newest manifest, 0 where there is none."""
    matches = (_MANIFEST.fullmatch(name) for name in store.sizes())
    return max((int(match[1]) for match in matches if match), default=0)
