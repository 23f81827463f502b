"""The worker of ``--format strata``: copies a data file with truncated streams."""

import platform
import time
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..dataset.deletions import Deletions
from ..dataset.facts import inspect_file
from ..dataset.kept_files import KEPT
from ..dataset.layout import EMPTY_COMMITS, split_generation
from ..dataset.ledger import Ledger
from ..dataset.publisher import Publisher
from ..dataset.records import slim
from ..dataset.rows import RowWriter, schema
from ..reader.dataset import DataFile, Dataset
from ..reader.originals import ORIGINAL, PACKING
from ..running.stages import StageClock
from ..running.worker_errors import picklable_errors
from ..stores.store import scratch_folder
from .dataset_worker import DatasetWorker
from .layer_rule import cut
from .selection import Selection, timed

# Further counts in a record: pictures, their layers, and the bytes of their streams before they
# were truncated; and pictures whose first layer alone has more bytes than were asked for.
COUNTS = ("streams", "layers", "whole_bytes", "above_limit")


class ShardCopier(DatasetWorker):
    """Copies one data file at a time, with one row group in memory."""

    @cached_property
    def selection(self) -> Selection:
        settings = self.settings
        left_out = set() if settings.options.keep_original else {ORIGINAL, PACKING}
        columns = [name for name in schema(0).names if name not in left_out]
        return Selection(self.dataset, settings.rule, columns, settings.condition)

    @cached_property
    def deletions(self) -> Deletions:
        """What was deleted from the copy, and must not come back."""
        return Deletions(self.store)

    @picklable_errors
    def ready(self) -> str:
        """Open the dataset; returns its model's id. Raises DatasetError."""
        return self.dataset.model_id

    @picklable_errors
    def run(self, name: str, file: DataFile, keys: Sequence[str] | None = None) -> dict[str, Any]:
        """Copy a data file, or its rows with one of the ``keys``, as the data file ``name``.

        Returns the commit record, with ``found`` if another job wrote it. If no row is selected,
        writes a record to ``EMPTY_COMMITS`` and no file. Raises StrataError, RuntimeError.
        """
        ledger = Ledger(self.store, self.settings.fingerprint)
        standing = ledger.read(name)
        if standing is not None:
            return {**slim(standing), "found": True}
        started, clock = time.monotonic(), StageClock(self.activity.clock)
        shown = self.activity.shard(name, of=file.rows)
        with shown, scratch_folder(self.settings.scratch) as scratch:
            local = scratch / f"{name}.parquet"
            counts = self._copy(name, file, keys, local, clock)
            everything = keys is None and not self.settings.condition
            if everything and counts["rows"] + counts["deleted"] != file.rows:
                raise RuntimeError(f"{file.path}: {file.rows} rows gave {counts['rows']}")
            facts: dict[str, Any] = {}
            if counts["rows"]:
                self.activity.show(name, stage="upload")
                with clock.timed("check"):
                    inspected = inspect_file(local, self.settings.rule.most)
                if inspected.rows != counts["rows"]:
                    raise RuntimeError(f"{file.path}: {counts['rows']} rows gave {inspected.rows}")
                publisher = Publisher(
                    self.store,
                    ledger,
                    self.settings.rule.most,
                    clock,
                    lambda count: self.activity.transferred(written=count),
                )
                facts = publisher.publish(name, local, inspected, scratch)
            record = {
                **dict.fromkeys(("ok", "bad", "filtered", "rows", "bytes"), 0),
                "problems": [],
                **facts,
                **{count: counts[count] for count in COUNTS},
                "source": source_of(self.dataset, file),
                "origin": file.record["source"],
                "model_id": self.dataset.model_id,
                "seconds": round(time.monotonic() - started, 3),
                "stage_seconds": clock.seconds(),
                "node": platform.node(),
            }
            if deleted := self.deletions.samples(split_generation(name)[0]):
                record["deleted"] = deleted
            if not counts["rows"]:
                ledger = Ledger(
                    self.store, self.settings.fingerprint, EMPTY_COMMITS, generations=True
                )
            return slim(ledger.commit(name, record))

    def _copy(
        self,
        name: str,
        file: DataFile,
        keys: Sequence[str] | None,
        local: Path,
        clock: StageClock,
    ) -> Counter[str]:
        """Write the selected rows to ``local``; returns counts."""
        settings, counts = self.settings, Counter[str]()
        base, deletions = split_generation(name)[0], self.deletions.read()
        metadata = {
            "fingerprint": settings.fingerprint,
            "model_id": self.dataset.model_id,
            "source": source_of(self.dataset, file),
        }
        writer = RowWriter(local, settings.rule.most, metadata)
        self.activity.show(name, stage="copy")
        with self.dataset.open(file) as opened:
            rows = self.selection.rows(
                opened, keys, lambda count: self.activity.transferred(read=count)
            )
            for chosen in timed(rows, clock):
                if deletions.deletes(base, chosen.row["key"]):
                    counts["deleted"] += 1
                    continue
                with clock.timed("copy"):
                    row = cut(chosen.row, chosen.take.layers, settings.rule.most)
                    if not settings.options.keep_original and not chosen.by_original:
                        row |= {ORIGINAL: None, PACKING: None}
                        row |= {"reason": ""} if row["reason"] in KEPT else {}
                    writer.copy(row | {"index": counts["rows"]})  # its place in this file
                counts["rows"] += 1
                if chosen.is_picture:
                    counts["streams"] += 1
                    counts["layers"] += row["layers"]
                    counts["above_limit"] += chosen.take.above_limit and not chosen.by_original
                    beside = sum(len(one or b"") for one in (row.get("alpha"), row[ORIGINAL]))
                    counts["whole_bytes"] += chosen.row["cumulative_bytes"][-1] + beside
                self.activity.add(name, samples=1, bad=row["status"] == "bad")
        with clock.timed("copy"):
            writer.close()
        return counts


def source_of(dataset: Dataset, file: DataFile) -> dict[str, Any]:
    """The source of a copied data file: a data file of another dataset."""
    return {
        "url": f"{dataset.url}/{file.path}",
        "size": file.bytes,
        "etag": file.record["sha256"],
    }
