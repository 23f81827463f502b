"""Deletes samples by their keys, so that no file of the dataset has them any more.

    find the rows  ─►  deleted/  ─►  data files of the next generation  ─►  manifest  ─►  removal

A job that was killed goes on when it is run again with the same keys. ``deleted/`` is written
first: after that, no other job brings the samples back. Old files are removed last: readers always
have a whole dataset, the old one or the new one.
"""

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from codec.errors import StrataError

from ..dataset.data_file import DataFile, DatasetError, within
from ..dataset.deletions import Deletions, Hashes, key_hash, pack_deletion
from ..dataset.job import run_dataset_job
from ..dataset.layout import (
    DATA,
    KEYS,
    MANIFESTS,
    PARTS,
    PLAN_NAME,
    SUFFIX,
    manifest_name,
    manifest_number,
    paths_in,
    saved_rows,
    split_generation,
)
from ..dataset.ledger import Ledger
from ..dataset.manifest import Manifest, latest_manifest, part_paths
from ..dataset.manifest_writer import files_of
from ..dataset.plan import Plan
from ..dataset.records import Records
from ..dataset.totals import totals_of
from ..decode.key_list import FILES_AT_ONCE, listed
from ..reader.dataset import Dataset, open_dataset
from ..running.here import run_here
from ..running.job import JobWatcher, Stop
from ..running.progress.events import EventLog, job_log
from ..running.progress.progress import Progress
from ..running.progress.summary import Summary, plural, size
from ..running.tasks import Outcome, Task
from ..sources.base import is_part
from ..stores.store import StorageError, clear_scratch
from ..stores.threads import ahead
from ..stores.urls import refuse_secrets
from ..verify.garbage import Garbage, find_garbage, remove_garbage
from .delete_worker import DeleteSettings, FileThinner, keys_to_delete
from .info import info_dataset

THREADS = 4  # data files written at once
ANY_AGE = -math.inf  # garbage of any age is removed, whatever the clocks say
ROUNDS = 3  # checks whether another job has brought samples back

ToDelete = dict[str, tuple[DataFile, Counter[str]]]
"""By the shard's name: its data file, and the keys to delete with the number of their rows."""


@dataclass(frozen=True, kw_only=True)
class DeleteOptions:
    """See ``strata delete --help``.

    ``keys`` are written as in the dataset. ``input_options`` are fsspec's storage options; they
    may hold secrets.
    """

    dataset: str
    keys: tuple[str, ...]
    dry_run: bool = False
    input_options: dict[str, Any] = field(default_factory=dict, repr=False)
    scratch: str | None = None
    log: str | None = None


@dataclass
class DeleteSummary(Summary):
    """What was deleted, or would be deleted in a ``dry_run``.

    ``deleted`` rows with ``deleted_keys`` keys; ``already`` keys were deleted before; ``missing``
    keys are not in the dataset. ``files`` are (or would be) written again. ``removed`` is the
    number of files that were removed, with ``freed`` bytes.
    """

    dry_run: bool = False
    deleted: int = 0
    deleted_keys: int = 0
    already: int = 0
    missing: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    removed: int = 0
    freed: int = 0

    @property
    def exit_code(self) -> int:
        """0 if none of the keys is in the dataset any more, and all were."""
        return 1 if self.missing or self.failed_shards or self.stopped else 0

    def lines(self) -> list[str]:
        verb, again = ("would delete", "to write") if self.dry_run else ("deleted", "written")
        out = [
            f"{verb}: {plural(self.deleted, 'sample')} of {plural(self.deleted_keys, 'key')}, "
            f"{plural(len(self.files), 'data file')} {again} again"
        ]
        out += [f"  {path}" for path in self.files[:20]]
        if self.already:
            out.append(f"{plural(self.already, 'key')} deleted before")
        if self.stopped:
            out.append(f"stopped: {self.stopped}: run it again with the same keys")
        out += [f"{one.shard}: {one.reason}" for one in self.failed_shards[:20]]
        out += self.notes
        if not self.dry_run:
            out.append(f"removed: {plural(self.removed, 'file')}, {size(self.freed)}")
        if self.missing:
            names = listed(self.missing, 20)
            out.append(f"not in the archive: {plural(len(self.missing), 'key')}: {names}")
        return out


def delete_samples(options: DeleteOptions, stop: Stop = lambda: "") -> DeleteSummary:
    """Delete the samples with the keys ``options.keys``, whatever their status.

    The job ends early, after its running tasks, when ``stop`` returns a reason. Raises DatasetError
    if there is no dataset, DamagedArchiveError if it must be repaired first, StorageError.
    """
    refuse_secrets(options.dataset)
    with job_log(options.log, "delete", options) as log:
        summary = _Deletion(options, stop, log).run()
        log.finish(summary)
        return summary


class DamagedArchiveError(StrataError):
    """Files of the dataset contradict each other; the message names the first."""


class _Deletion:
    def __init__(self, options: DeleteOptions, stop: Stop, log: EventLog) -> None:
        self.options, self.stop, self.log = options, stop, log
        self.dataset = open_dataset(options.dataset, options.input_options)
        self.store = self.dataset.store
        self.plan = Plan(PLAN_NAME, self.dataset.parameters)
        self.ledger = Ledger(self.store, self.plan.fingerprint)
        self.deletions = Deletions(self.store)
        self.keys = sorted(set(options.keys))
        self.summary = DeleteSummary("deleted", dry_run=options.dry_run)

    def run(self) -> DeleteSummary:
        summary, options = self.summary, self.options
        info = info_dataset(options.dataset, options.input_options, records=None)
        if info.problems:
            raise DamagedArchiveError(
                f"{self.store.url} is damaged ({info.problems[0]}): run strata verify --input "
                f"{options.dataset} --repair first"
            )
        self.deletions.read()
        files = self._dataset_of(self._newest_records())
        to_delete = self._find(files)
        self._account(to_delete)
        if options.dry_run:
            summary.notes.append("nothing was changed (--dry-run)")
            return summary
        if to_delete:
            self._announce(to_delete)
        if self.deletions.hashes:  # also if an earlier run was killed before its manifest
            self._rewrite(files, to_delete)
            if not summary.stopped:
                self._collect()
        if any(is_part(file.record["source"]["url"]) for file, _ in to_delete.values()):
            summary.notes.append(
                f"the lists of files in {self.store.url}/{PARTS} are never changed, so they still "
                "have the names of the deleted files"
            )
        return summary

    # -- finding ----------------------------------------------------------------------------------

    def _newest_records(self) -> Records:
        """The record of the newest whole generation of each shard. Changes nothing."""
        sizes = self.store.sizes(DATA)
        newest: dict[str, tuple[int, str]] = {}
        records = self.ledger.records()
        for name, record in records.items():
            base, generation = split_generation(name)
            if sizes.get(f"{name}{SUFFIX}") == record["bytes"]:
                newest[base] = max(newest.get(base, (-1, "")), (generation, name))
        return records.named((base, name) for base, (_, name) in newest.items())

    def _dataset_of(self, records: Records) -> Dataset:
        """A dataset of these data files, even if no manifest lists them."""
        files = files_of(records)
        plan = {"parameters": self.plan.parameters, "fingerprint": self.plan.fingerprint}
        totals = totals_of(file.record for file in files)
        return Dataset(self.store, plan, Manifest(0, files, totals, []))

    def _find(self, dataset: Dataset) -> ToDelete:
        """The rows with the keys, and rows that were deleted before but are still there."""
        wanted = frozenset(self.keys)

        def find(file: DataFile) -> tuple[DataFile, Counter[str]]:
            base, _ = split_generation(file.name)
            hashes = self.deletions.hashes.get(base, {})
            # The bounds of a file are those of its pictures, so they hold only if it has no others.
            known = not hashes and file.ok == file.rows
            if known and not within(self.keys, file.key_bounds):
                return file, Counter()
            with dataset.open(file) as opened:
                return file, keys_to_delete(opened, self.keys, wanted, hashes)

        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            found = ahead(pool, find, dataset.files, lambda: 2 * FILES_AT_ONCE)
            return {split_generation(file.name)[0]: (file, keys) for file, keys in found if keys}

    def _account(self, to_delete: ToDelete) -> None:
        summary = self.summary
        found = {key for _, keys in to_delete.values() for key in keys}
        gone = self.deletions.keys(key for key in self.keys if key not in found)
        summary.shards = len(to_delete)
        summary.files = [file.path for file, _ in to_delete.values()]
        summary.deleted = sum(keys.total() for _, keys in to_delete.values())
        summary.deleted_keys = len(found)
        summary.already = len(gone)
        summary.missing = [key for key in self.keys if key not in found and key not in gone]

    # -- deleting ---------------------------------------------------------------------------------

    def _announce(self, to_delete: ToDelete) -> None:
        """Publish the hashes of the keys before anything is deleted."""
        hashes: Hashes = {}
        for base, (_, keys) in to_delete.items():
            known = self.deletions.hashes.get(base, {})
            new = {key_hash(base, key): count for key, count in keys.items()}
            new = {one: count for one, count in new.items() if one not in known}
            if new:
                hashes[base] = dict(sorted(new.items()))
        if hashes:
            self.store.create(*pack_deletion(hashes))
        self.deletions.read()

    def _rewrite(self, dataset: Dataset, to_delete: ToDelete) -> None:
        """Write the data files again without the rows, and a manifest that lists them."""

        def run(done: Records) -> Sequence[Outcome]:
            outcomes: list[Outcome] = []
            left = to_delete
            for _ in range(ROUNDS):
                outcomes += self._thin(left)
                if self.summary.stopped:
                    return outcomes
                # Another job may have published a newer generation with the samples meanwhile.
                left = self._find(self._dataset_of(self._newest_records()))
                if not left:
                    return outcomes
            raise StorageError(
                f"{self.store.url}: another job keeps writing samples that are deleted here: end "
                "it, and run this again",
                passing=True,
            )

        sources = {
            split_generation(file.name)[0]: file.record["source"]["url"] for file in dataset.files
        }
        run_dataset_job(
            self.store,
            self.plan,
            lambda *_: sources,
            run,
            self.summary,
            publish_model=lambda: None,
            failed_before=self.dataset.failed,
        )

    def _thin(self, to_delete: ToDelete) -> list[Outcome]:
        if not to_delete:
            return []
        tasks = {
            Task(base, (file, frozenset(keys), self.deletions.samples(base))): file.bytes
            for base, (file, keys) in to_delete.items()
        }
        sizes = {task.name: size for task, size in tasks.items()}
        progress = Progress("deleting", sizes, events=self.log)
        watcher = JobWatcher(progress, self.stop)
        settings = DeleteSettings(
            self.store.url,
            self.plan.fingerprint,
            self.dataset.num_layers,
            scratch=self.options.scratch,
            output_options=self.options.input_options,
        )
        try:
            outcomes = run_here(FileThinner(settings), list(tasks), THREADS, watcher)
        finally:
            progress.close()
            clear_scratch(self.options.scratch)
        progress.add_to(self.summary)
        for one in outcomes:
            if one.result is None:
                path = to_delete[one.task.name][0].path
                raise StorageError(
                    f"{self.store.url}/{path}: {one.failure}: run it again with the same keys"
                )
        if len(outcomes) < len(tasks):
            self.summary.stopped = watcher.stopped
        return outcomes

    def _collect(self) -> None:
        """Remove all files that still hold deleted samples or their keys."""
        newest = latest_manifest(self.store)
        needed = part_paths(self.store, newest)
        parts = paths_in(self.store, MANIFESTS)
        for name, nbytes in self.store.sizes().items():
            if 0 < manifest_number(name) < newest:  # manifests hold keys of bad samples, and bounds
                # Only their parts: others may be of a manifest that a running job has yet to write.
                for path in self._parts_of(manifest_number(name)) & parts.keys() - needed:
                    self._count(parts.pop(path))
                    self.store.remove(path)
                self._count(nbytes)
                self.store.remove(manifest_name(manifest_number(name)))
        found = find_garbage(self.store, ANY_AGE)
        ours = [item for item in found if self._is_ours(item)]
        remove_garbage(self.store, ours)
        for item in ours:
            self._count(item.bytes)
        if others := len(found) - len(ours):
            self.summary.notes.append(
                f"{plural(others, 'file')} of running or killed jobs may still hold samples: "
                f"strata verify --input {self.options.dataset} --collect-garbage removes them"
            )

    def _parts_of(self, number: int) -> set[str]:
        try:
            return part_paths(self.store, number)
        except DatasetError:  # a note tells of what is left
            return set()

    def _count(self, size: int) -> None:
        self.summary.removed += 1
        self.summary.freed += size

    def _is_ours(self, item: Garbage) -> bool:
        """Whether it belongs to a shard with deleted samples, or is a map of keys."""
        folder, _, file = item.path.rpartition("/")
        name = saved_rows(file)[0] or file.rpartition(".")[0]
        return folder == KEYS or split_generation(name)[0] in self.deletions.hashes
