"""The driver of a verify job: checks a dataset, and repairs it.

    plan, manifest, model ─► footers and records ─► whole files ─► repair ─► manifest ─► garbage
          checks.py               footers.py         worker.py         repair.py       garbage.py

The quick check needs no Ray; workers read whole files. ``report.py`` describes the report.
"""

import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..dataset.layout import PLAN_NAME, RECORD_SUFFIX, SUFFIX, manifest_name, model_path
from ..dataset.manifest import latest_manifest
from ..dataset.models import check_heads, check_model
from ..dataset.totals import totals_of
from ..reader.dataset import DataFile, Dataset, DatasetError
from ..running.job import RunningOptions, Stop, run_job_tasks
from ..running.progress.events import EventLog, job_log
from ..running.progress.summary import Problem
from ..running.scheduler import Task
from ..stores.store import StorageError, Store, storage_errors
from ..stores.urls import refuse_secrets
from .checks import (
    Damage,
    deletion_damage,
    foreign_files,
    in_threads,
    manifest_of_records,
    part_lists,
    read_manifest,
    read_plan,
    unlisted_records,
)
from .footers import Checked, FileChecker, index_damage
from .garbage import find_garbage, remove_garbage
from .repair import Repair, repair_head, repair_model
from .report import VerifyReport
from .worker import ShardVerifier, VerifySettings


@dataclass(frozen=True)
class Subset:
    """The data files to read in full: part ``part`` of ``parts``, or a random ``share``.

    ``share`` is between 0 and 1. The same ``seed`` chooses the same files.
    """

    part: int = 1
    parts: int = 1
    share: float | None = None
    seed: int = 0

    @property
    def whole(self) -> bool:
        return self.parts == 1 and self.share is None

    def __str__(self) -> str:
        if self.share is not None:
            return f"{100 * self.share:g}%"
        return f"{self.part}/{self.parts}"

    def choose(self, files: list[DataFile]) -> list[DataFile]:
        """The chosen files, sorted by name. A random share is at least one file."""
        files = sorted(files, key=lambda file: file.name)
        if self.share is None:
            return files[self.part - 1 :: self.parts]
        count = min(len(files), math.ceil(self.share * len(files)))
        chosen = random.Random(self.seed).sample(files, count)
        return sorted(chosen, key=lambda file: file.name)


@dataclass(frozen=True)
class VerifyOptions(RunningOptions):
    """See ``strata verify --help``.

    ``read`` is None for the quick check. ``source_options`` are the sources' storage options.
    Remote sources are read only from the dataset's own host and from ``source_hosts`` (URLs; only
    scheme and host or bucket count). ``older_than`` is in seconds.
    """

    dataset: str
    read: Subset | None = None
    decode: bool = True
    repair: bool = False
    source_options: dict[str, Any] = field(default_factory=dict, repr=False)
    source_hosts: tuple[str, ...] = ()
    collect_garbage: bool = False
    older_than: float = 24 * 3600.0


def verify(options: VerifyOptions, stop: Stop = lambda: "") -> VerifyReport:
    """Check the dataset; with these ``options`` also repair it and collect garbage.

    The job ends early, after its running tasks, when ``stop`` returns a reason. Damage is in the
    report. Raises DatasetError if there is no dataset, StorageError if the store does not answer,
    ClusterError if no worker can be started.
    """
    refuse_secrets(options.dataset, *options.source_hosts)
    with job_log(options.log, "verify", options) as log:
        report = _Verification(options, stop, log).run()
        log.finish(report)
        return report


class _Verification:
    def __init__(self, options: VerifyOptions, stop: Stop, log: EventLog) -> None:
        self.options, self.stop, self.log = options, stop, log
        self.store = Store(options.dataset, options.input_options)
        self.report = VerifyReport("verified", dataset=self.store.url)
        self.checked: list[Checked] = []
        self.listing: list[str] = []  # what is wrong with the manifest
        if options.read is not None:
            whole = options.read.whole
            self.report.level = "full" if whole else "subset"
            self.report.subset = None if whole else str(options.read)
            self.report.seed = options.read.seed if options.read.share is not None else None

    def run(self) -> VerifyReport:
        started, report = time.monotonic(), self.report
        with storage_errors(self.store.url, "cannot be checked"):
            plan, problem = read_plan(self.store)
            dataset = None if problem else self._open(plan)
        if dataset is None:
            why = (
                f"remove {PLAN_NAME} and run strata compress with the same parameters as before: "
                "that writes it again"
            )
            report.damaged.append(Damage("plan", PLAN_NAME, [problem], why_not=why))
        else:
            with storage_errors(self.store.url, "cannot be checked"):
                self._check_model(dataset)
                self._check_files(dataset)
            if self.options.read is not None and not report.stopped:
                self._read_files(dataset, self.options.read)
            if self.options.repair and not report.stopped:
                self._repair(dataset)
            self._garbage()
        report.seconds = time.monotonic() - started
        return report

    # -- checking ---------------------------------------------------------------------------------

    def _open(self, plan: dict[str, Any]) -> Dataset:
        """The dataset by its newest manifest, or by its records if that cannot be read."""
        report, number = self.report, latest_manifest(self.store)
        if not number:
            raise DatasetError(
                f"{self.store.url}: the job that writes this archive has not finished; run it "
                "again to resume"
            )
        manifest, problems = read_manifest(self.store, plan, number)
        self.listing = problems
        if manifest is None:
            manifest, damaged = manifest_of_records(self.store, plan)
            report.damaged += damaged
        dataset = Dataset(self.store, plan, manifest)
        report.manifest, report.files = number, len(dataset.files)
        report.totals = totals_of(file.record for file in dataset.files)
        report.failed, report.model_id = dataset.failed, dataset.model_id
        return dataset

    def _check_model(self, dataset: Dataset) -> None:
        for path, problem in check_heads(self.store, dataset.model_id):
            if problem:
                damage = Damage("head", path, [problem])
                self.report.damaged.append(damage)
                if self.options.repair:
                    warning = repair_head(self.store, damage, dataset.model_id)
                    self.report.notes += [warning] * bool(warning)
        problem, nbytes = check_model(self.store, dataset.model_id)
        self.report.bytes_read += nbytes
        if not problem:
            return
        damage = Damage("model", model_path(dataset.model_id), [problem])
        self.report.damaged.append(damage)
        if self.options.repair:  # now, because decoding needs it
            repair_model(self.store, damage, dataset.model_id)
        self.report.model_state = "repaired" if damage.repaired else "damaged"

    def _check_files(self, dataset: Dataset) -> None:
        """The quick check of the files that the manifest lists, and a search for others."""
        report = self.report
        for checked in in_threads(FileChecker(dataset).check, dataset.files):
            self.checked.append(checked)
            report.bytes_read += checked.bytes_read
            if checked.error:
                report.unchecked.append(Problem(checked.file.path, "", checked.error))
            report.damaged += checked.damage
            if self._stopped():
                return
        self.listing += [f"{one.file.name}: {one.listing}" for one in self.checked if one.listing]
        if self.listing:
            damage = Damage("manifest", manifest_name(report.manifest), self.listing)
            report.damaged.insert(0, damage)
        report.damaged += part_lists(dataset)
        report.unlisted, others = unlisted_records(dataset)
        report.damaged = _once([*report.damaged, *others, *deletion_damage(dataset)])
        report.foreign = foreign_files(dataset)

    def _read_files(self, dataset: Dataset, subset: Subset) -> None:
        """The full check of files that passed the quick one, on Ray's workers."""
        report, options = self.report, self.options
        passed = {
            one.file.name
            for one in self.checked
            if not one.error and not one.disputed and not any(d.kind == "data" for d in one.damage)
        }
        chosen = subset.choose([one.file for one in self.checked])
        files = {file.name: file for file in chosen if file.name in passed}
        if not files:
            return
        decode = options.decode and report.model_state != "damaged"
        if options.decode and not decode:
            report.notes.append("no picture was decoded, because the model is damaged")
        settings = VerifySettings(dataset.url, dataset.model_id, dataset.num_layers, decode)
        outcomes = run_job_tasks(
            "verifying",
            ShardVerifier,
            settings,
            {Task(name, (file,)): file.bytes for name, file in files.items()},
            options,
            report,
            self.log,
            self.stop,
            in_flight=1,  # see ShardVerifier
        )
        for outcome in outcomes:
            file = files[outcome.task.name]
            if outcome.result is None:
                report.unchecked.append(Problem(file.path, "", outcome.failure))
            else:
                self._take(file, outcome.result)

    def _take(self, file: DataFile, result: Mapping[str, Any]) -> None:
        report = self.report
        report.files_read += 1
        report.pictures_decoded += result["decoded"]
        report.bytes_read += result["source"]["size"]
        if result["problems"]:
            url, count = file.record["source"]["url"], result["problem_count"]
            report.damaged.append(
                Damage("data", file.path, result["problems"], url, file, problem_count=count)
            )
            # The index of a damaged data file is not reported, because it is of no use.
            report.damaged = [
                one for one in report.damaged if one.kind != "index" or _name(one) != file.name
            ]
        elif result["index_problem"]:
            report.damaged = _once([*report.damaged, index_damage(file, result["index_problem"])])

    def _stopped(self) -> bool:
        self.report.stopped = self.report.stopped or self.stop()
        return bool(self.report.stopped)

    # -- repairing --------------------------------------------------------------------------------

    def _repair(self, dataset: Dataset) -> None:
        report, options = self.report, self.options
        repair = Repair(dataset, options.source_options, options.source_hosts)
        repair.correct(one.file.record for one in self.checked if one.listing)
        with storage_errors(self.store.url, "cannot be repaired"):
            damaged = self._damaged_files()
            records = [one for one in report.of_kind("record") if _name(one) not in damaged]
            report.damaged += repair.records(records, options.scratch, self.stop)
            damaged = self._damaged_files()
            indexes = [one for one in report.of_kind("index") if _name(one) not in damaged]
            report.damaged += repair.indexes(indexes, options.scratch, self.stop)
        data = report.of_kind("data")
        if data and report.model_state == "damaged":
            for damage in data:
                damage.why_not = "it cannot be encoded again, because the model is damaged"
        elif data:
            summary = repair.data(data, options, self.log, self.stop)
            report.notes += summary.notes
            report.stopped = summary.stopped
        with storage_errors(self.store.url, "cannot be repaired"):
            if repair.changed or report.of_kind("manifest"):
                number = repair.publish()
                report.new_manifest = number if number != report.manifest else 0
            for damage in [*data, *report.of_kind("manifest")]:
                damage.repaired = not damage.why_not
            self._drop_records()
        self._stopped()

    def _drop_records(self) -> None:
        """Remove damaged records and indexes of files that were replaced."""
        replaced = {_name(one) for one in self.report.of_kind("data") if one.repaired}
        for damage in (*self.report.of_kind("record"), *self.report.of_kind("index")):
            if damage.repaired:
                continue
            if _name(damage) in replaced:
                self.store.remove(damage.path)
                damage.repaired = True
            else:
                damage.why_not = damage.why_not or "its data file is damaged too"

    def _damaged_files(self) -> set[str]:
        return {_name(damage) for damage in self.report.of_kind("data")}

    def _garbage(self) -> None:
        report, options = self.report, self.options
        if report.stopped:
            return
        try:
            found = find_garbage(self.store, options.older_than)
        except (StorageError, DatasetError) as error:
            report.notes.append(f"garbage could not be searched for: {error}")
            return
        if not options.collect_garbage:
            report.orphans = found
        elif report.exit_code:
            report.orphans = found
            report.notes.append(
                "garbage was not removed: it may be all that is left of the damaged files"
            )
        else:
            remove_garbage(self.store, found)
            report.removed = found


def _name(damage: Damage) -> str:
    """The name of the damaged data file, or of the data file of a damaged record or index."""
    name = damage.path.rsplit("/", 1)[-1]
    return name.removesuffix(RECORD_SUFFIX).removesuffix(SUFFIX)


def _once(damaged: list[Damage]) -> list[Damage]:
    """``damaged`` without duplicates. Of two entries, the one with a ``file`` is kept."""
    found: dict[tuple[str, str], Damage] = {}
    for damage in damaged:
        known = found.get((damage.kind, damage.path))
        if known is None or known.file is None:
            found[damage.kind, damage.path] = damage
    return list(found.values())
