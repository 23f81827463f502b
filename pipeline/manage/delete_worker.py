"""Writes a data file again without the rows of some keys, as the next generation of its shard."""

import platform
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..dataset.data_file import DamagedDataError, DataFile, OpenFile, within
from ..dataset.deletions import key_hash
from ..dataset.facts import inspect_file
from ..dataset.index_writer import index_table, publish_index
from ..dataset.layout import data_path, generation_name, split_generation
from ..dataset.ledger import Ledger
from ..dataset.parquet import ParquetFile
from ..dataset.records import slim
from ..dataset.rows import RowWriter, file_sha256, read_metadata, schema
from ..running.stages import StageClock
from ..running.worker import Worker, WorkerSettings
from ..stores.filesystems import storage_errors
from ..stores.store import StorageError, scratch_folder

# Fields of a record that do not follow from its data file.
_KEPT = ("source", "origin", "model_id", "quality")


@dataclass(frozen=True)
class DeleteSettings(WorkerSettings):
    """``output`` is the URL of the dataset, whose plan has this ``fingerprint``."""

    output: str
    fingerprint: str
    layers: int


class FileThinner(Worker[DeleteSettings]):
    """Writes data files again; ``run`` may be called from several threads at once."""

    def run(self, file: DataFile, keys: Collection[str], deleted: int) -> dict[str, Any]:
        """Publish ``file`` without the rows that have one of these keys. Returns the record.

        ``deleted`` is the number of samples of its shard that were ever deleted. The new file is
        the next generation whose name is free. Raises StorageError, DamagedDataError.
        """
        settings, started = self.settings, time.monotonic()
        ledger, clock = Ledger(self.store, settings.fingerprint), StageClock(self.activity.clock)
        url = f"{self.store.url}/{file.path}"
        old = ledger.read(file.name)
        if old is None:
            raise StorageError(f"{url}: its record is gone: run strata verify --repair first")
        base, generation = split_generation(file.name)
        shown = self.activity.shard(file.name, stage="copy", of=file.rows)
        with shown, scratch_folder(settings.scratch) as scratch:
            local = scratch / "new.parquet"
            with self.store.local(file.path, settings.scratch) as present, clock.timed("copy"):
                if file_sha256(present) != old["sha256"]:
                    raise DamagedDataError(
                        f"{url}: is not the file that was written: run strata verify --repair first"
                    )
                removed = thin(present, local, frozenset(keys), settings.layers)
            with clock.timed("check"):
                facts = inspect_file(local, settings.layers)
                index = index_table(local, settings.layers)
            if facts.rows + removed != file.rows:
                raise RuntimeError(f"{url}: {file.rows} rows gave {facts.rows}, {removed} removed")
            record = {
                **{name: old[name] for name in _KEPT if name in old},
                **facts.to_json(),
                "deleted": deleted,
                "seconds": 0.0,
                "node": platform.node(),
            }
            self.activity.show(file.name, stage="upload")
            with clock.timed("upload"), storage_errors(self.store.url, "cannot be written"):
                while True:
                    generation += 1
                    name = generation_name(base, generation)
                    record["seconds"] = round(time.monotonic() - started, 3)
                    if self._publish(ledger, name, local, record, index, scratch):
                        break
        self.activity.add(file.name, samples=file.rows)
        return {**slim(record), "name": name, "removed": removed}

    def _publish(
        self,
        ledger: Ledger,
        name: str,
        local: Path,
        record: dict[str, Any],
        index: pa.Table,
        scratch: Path,
    ) -> bool:
        """Publish file, index and record; False if another file has the name."""
        path = data_path(name)
        if not self.store.create_from(path, local):
            with self.store.local(path, self.settings.scratch) as standing:
                if file_sha256(standing) != record["sha256"]:  # if equal, a killed attempt wrote it
                    return False
        record["index"] = publish_index(self.store, name, index, scratch)
        return bool(ledger.commit(name, record)["sha256"] == record["sha256"])


def thin(present: Path, local: Path, keys: frozenset[str], layers: int) -> int:
    """Write a data file to ``local`` without the rows of these keys. Returns how many these were.

    Numbers the remaining rows anew, as readers expect.
    """
    file = ParquetFile(present)
    writer = RowWriter(local, layers, read_metadata(file, present.name))
    names = schema(layers).names
    written = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=names)
        kept = [key not in keys for key in table.column("key").to_pylist()]
        if not all(kept):
            table = table.filter(pa.array(kept))
        numbers = pa.array(range(written, written + len(table)), pa.int32())
        table = table.set_column(names.index("index"), "index", numbers)
        if len(table):
            writer.copy_group(table)
        written += len(table)
    writer.close()
    return int(file.metadata.num_rows) - written


def keys_to_delete(
    opened: OpenFile, keys: Sequence[str], wanted: Collection[str], hashes: Collection[str]
) -> Counter[str]:
    """The keys in a data file that are ``wanted`` or have one of the hashes, with the number of
    their rows. ``keys`` are the wanted ones, sorted.
    """
    base, _ = split_generation(opened.file.name)
    found: Counter[str] = Counter()
    for group, bounds in enumerate(opened.group_bounds()):
        if hashes or within(keys, bounds):
            column = opened.read(group, ["key"]).column("key").to_pylist()
            found.update(
                key for key in column if key in wanted or (hashes and key_hash(base, key) in hashes)
            )
    return found
