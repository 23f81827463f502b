"""The worker of ``--format originals``: restores the tar from which a data file was made."""

import filecmp
import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from codec.errors import CorruptStreamError

from ..dataset.facts import Refusals
from ..dataset.layout import record_path
from ..dataset.ledger import Ledger
from ..dataset.rows import original_file, original_key
from ..reader.dataset import DataFile
from ..running.stages import StageClock
from ..running.worker_errors import picklable_errors
from ..stores.store import StorageError, scratch_folder
from ..stores.threads import ahead
from .dataset_worker import DatasetWorker
from .layer_rule import LayerRule
from .samples import Sample
from .selection import Chosen, Selection, timed
from .targets import DECODE_COMMITS, TarTarget, printable

COUNTS = ("files", "file_bytes", "without")
_COLUMNS = (
    *("fields", "original", "original_packing", "key_bytes", "status", "source_field"),
    *("source_bytes", "source_sha256"),
)


class ShardRestorer(DatasetWorker):
    """Restores one data file at a time, with one row group in memory. It needs no model."""

    @cached_property
    def selection(self) -> Selection:
        no_layers = LayerRule(self.dataset.num_layers, layers=0)
        condition = self.settings.condition
        return Selection(self.dataset, no_layers, _COLUMNS, condition, originals=False)

    @picklable_errors
    def ready(self) -> str:
        """Open the dataset; returns its model's id. Raises DatasetError."""
        return self.dataset.model_id

    @picklable_errors
    def run(self, name: str, file: DataFile, keys: Sequence[str] | None = None) -> dict[str, Any]:
        """Write the files of all rows, or of those with one of the ``keys``, to ``<name>.tar``.

        Returns its commit record, in which ``of`` names the data file. If no row is selected, there
        is a record but no tar. A tar of an older generation is replaced, no other file. Raises
        StrataError (MissingPackageError for files that cannot be unpacked here), RuntimeError.
        """
        started, clock = time.monotonic(), StageClock(self.activity.clock)
        ledger = Ledger(self.store, self.settings.fingerprint, DECODE_COMMITS)
        statuses, totals, refusals = Counter[str](), Counter[str](), Refusals()
        shown = self.activity.shard(file.name, of=file.rows)
        with shown, scratch_folder(self.settings.scratch) as folder:
            local = folder / "out.tar"
            target = TarTarget(local, repeated=True)
            for sample in self._samples(file, keys, clock):
                with clock.timed("write"):
                    target.write(sample.key, sample.fields or [])
                totals.update(sample.counts)
                statuses[sample.status] += 1
                self.activity.add(file.name, samples=1, bad=sample.status == "bad")
                if sample.status != "ok":
                    refusals.add(printable(sample.key), sample.status, sample.reason)
            target.close()
            rows = statuses.total()
            if keys is None and not self.settings.condition and rows != file.rows:
                raise RuntimeError(f"{file.path}: {file.rows} rows gave {dict(statuses)}")
            standing = ledger.read(name)
            if standing is not None and standing["of"] != file.name:  # an older generation
                self.store.remove(f"{name}.tar")  # first, because without a record it is not ours
                self.store.remove(record_path(name, DECODE_COMMITS))
            size = 0
            if rows:
                self.activity.show(file.name, stage="upload")
                with clock.timed("upload"):
                    self._publish(ledger, name, local, folder / "standing.tar")
                size = local.stat().st_size
                self.activity.transferred(written=size)
        record = {
            **{status: statuses[status] for status in ("ok", "bad", "filtered")},
            **{count: totals[count] for count in COUNTS},
            "of": file.name,
            "rows": rows,
            "bytes": size,
            **refusals.facts(),
            "seconds": round(time.monotonic() - started, 3),
            "stage_seconds": clock.seconds(),
        }
        return ledger.commit(name, record)

    def _publish(self, ledger: Ledger, name: str, local: Path, standing: Path) -> None:
        """Publish ``local`` as ``<name>.tar``.

        Raises StorageError for a file that no job of this plan has written: it has the name of a
        shard, so it may be the shard itself.
        """

        def is_ours(path: Path) -> bool:
            if filecmp.cmp(path, local, shallow=False) or ledger.exists(name):
                return True
            raise StorageError(
                f"{self.store.url}/{name}.tar is there, and was not written by this job: choose "
                "another output, or move it away"
            )

        self.store.create_or_keep(f"{name}.tar", local, standing, is_ours)

    def _samples(
        self, file: DataFile, keys: Sequence[str] | None, clock: StageClock
    ) -> Iterator[Sample]:
        """The samples of the selected rows of ``file``, in its order."""
        threads = self.settings.threads

        def restore(chosen: Chosen) -> Sample:
            with clock.timed("unpack", threads):
                return restored(chosen.row)

        self.activity.show(file.name, stage="unpack")
        with self.dataset.open(file) as opened, ThreadPoolExecutor(threads) as pool:
            rows = self.selection.rows(
                opened, keys, lambda count: self.activity.transferred(read=count)
            )
            yield from ahead(pool, restore, timed(rows, clock), lambda: 2 * threads)


def restored(row: Mapping[str, Any]) -> Sample:
    """The files of a row under their own names, whatever its status.

    The sample is ``bad`` if a file is missing. ``counts`` are ``COUNTS``: files, their bytes, and 1
    if one is missing. Raises MissingPackageError.
    """
    fields: list[tuple[str, bytes]] = []
    missing, damage = [], ""
    try:
        picture = original_file(row)
    except CorruptStreamError as error:
        picture, damage = None, str(error)
    if picture is not None and hashlib.sha256(picture).digest() != row["source_sha256"]:
        picture, damage = None, "its original has another sha256 than its row says"
    for field in row["fields"]:
        name, data = field["name"], field["data"]
        data = picture if data is None and name == row["source_field"] else data
        if data is None:
            missing.append(name)
        else:
            fields.append((name, data))
    counts = {"files": len(fields), "file_bytes": sum(len(data) for _, data in fields)}
    key = original_key(row)
    if not missing:
        return Sample(key, fields, counts=counts)
    reason = damage or f"not kept when it was compressed: {', '.join(missing)}"
    return Sample(key, fields, "bad", reason, {**counts, "without": 1})
