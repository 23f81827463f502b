"""Copies a data file with its index and record from one archive into another, byte for byte."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..dataset.data_file import DamagedDataError
from ..dataset.layout import index_path
from ..dataset.ledger import Ledger
from ..dataset.records import slim
from ..dataset.rows import file_sha256
from ..running.stages import StageClock
from ..running.worker import Worker, WorkerSettings
from ..stores.copying import can_copy_inside, create_copy
from ..stores.filesystems import storage_errors
from ..stores.store import StorageError, Store
from .merge_checks import Source

# Fields of a record about the run that wrote it.
_OF_A_RUN = ("seconds", "stage_seconds", "node")


@dataclass(frozen=True)
class MergeSettings(WorkerSettings):
    """``output`` is the URL of the merged archive, whose plan has this ``fingerprint``."""

    output: str
    fingerprint: str


class FileMerger(Worker[MergeSettings]):
    """Copies data files; ``run`` may be called from several threads at once."""

    def run(self, source: Source) -> dict[str, Any]:
        """Publish the copy of a data file: file, index, record. Returns the record.

        Raises StorageError, and DamagedDataError for a file that differs from its record.
        """
        file, dataset, settings = source.file, source.dataset, self.settings
        ledger = Ledger(self.store, settings.fingerprint)
        standing = ledger.read(file.name)
        if standing is not None:
            return {**slim(standing), "found": True}
        record = Ledger(dataset.store, dataset.fingerprint).read(file.name)
        if record is None:
            raise StorageError(
                f"{dataset.url}: the record of {file.path} is gone: strata verify --input "
                f"{dataset.url} --repair writes it again"
            )
        started, clock = time.monotonic(), StageClock(self.activity.clock)
        with self.activity.shard(file.name, stage="copy", of=file.rows), clock.timed("copy"):
            self._copy(dataset.store, file.path, record, ledger, file.name)
            self.activity.add(file.name, samples=file.rows)
            if record.get("index"):
                self._copy(dataset.store, index_path(file.name), record["index"], ledger, file.name)
        kept = {name: value for name, value in record.items() if name not in _OF_A_RUN}
        kept |= {"seconds": round(time.monotonic() - started, 3), "stage_seconds": clock.seconds()}
        return slim(ledger.commit(file.name, kept))

    def _copy(
        self, source: Store, path: str, facts: Mapping[str, Any], ledger: Ledger, name: str
    ) -> None:
        """Publish a file with the size and sha256 in ``facts`` under the same path."""
        with storage_errors(f"{source.url}/{path}", f"cannot be copied into {self.store.url}"):
            if self._create(source, path, facts):
                return
            with self.store.local(path, self.settings.scratch) as standing:
                if file_sha256(standing) == facts["sha256"]:  # a killed attempt wrote it
                    return
            if ledger.exists(name):
                raise StorageError(
                    f"{self.store.url}/{path}: another job has written it: run the merge again",
                    passing=True,
                )
            self.store.remove(path)  # no record names it
            if not self._create(source, path, facts):
                raise StorageError(
                    f"{self.store.url}/{path}: another job is writing it: run the merge again",
                    passing=True,
                )

    def _create(self, source: Store, path: str, facts: Mapping[str, Any]) -> bool:
        size = int(facts["bytes"])
        if can_copy_inside(source, self.store):
            return create_copy(source, self.store, path, size)
        if self.store.exists(path):  # checked before the bytes are fetched
            return False
        with source.local(path, self.settings.scratch) as local:
            if file_sha256(local) != facts["sha256"]:
                raise DamagedDataError(
                    f"{source.url}/{path}: is not the file that was written: strata verify --input "
                    f"{source.url} --read-data --repair"
                )
            self.activity.transferred(read=size)
            created = self.store.create_from(path, local)
        self.activity.transferred(written=size * created)
        return created
