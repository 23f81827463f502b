"""Merges archives without decoding: copies their data files, indexes and records."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..dataset.data_file import DataFile
from ..dataset.deletions import Deletions, Hashes, pack_deletion
from ..dataset.job import run_dataset_job
from ..dataset.layout import KEYS, PLAN_NAME, split_generation
from ..dataset.models import copy_heads, copy_model
from ..dataset.plan import Plan
from ..dataset.records import Records
from ..reader.dataset import Dataset, open_dataset
from ..running.here import run_here
from ..running.job import JobWatcher, Stop
from ..running.options import OptionError
from ..running.outputs import refuse_output
from ..running.progress.events import EventLog, job_log
from ..running.progress.progress import Progress
from ..running.progress.summary import Summary, plural, size
from ..running.tasks import Outcome, Task
from ..stores.store import Store, clear_scratch
from ..stores.urls import refuse_secrets
from .merge_checks import (
    COMPARED_KEYS,
    Source,
    check_deletions,
    merged_parameters,
    repeated_keys,
    sources_of,
)
from .merge_worker import FileMerger, MergeSettings

THREADS = 8  # files copied at once


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """See ``strata merge --help``.

    ``input_options`` and ``output_options`` are fsspec's storage options; they may hold secrets.
    """

    inputs: tuple[str, ...]
    output: str
    input_options: dict[str, Any] = field(default_factory=dict, repr=False)
    output_options: dict[str, Any] = field(default_factory=dict, repr=False)
    scratch: str | None = None
    log: str | None = None


@dataclass
class MergeSummary(Summary):
    """``archives`` were merged; their data files have ``copied_bytes`` bytes.

    Bad samples of the archives are bad in the merged one, and do not count as failures.
    """

    archives: int = 0
    copied_bytes: int = 0

    @property
    def exit_code(self) -> int:
        return 1 if self.failed_shards or self.stopped else 0

    def lines(self) -> list[str]:
        done = f" ({self.resumed:,} were there already)" if self.resumed else ""
        out = [
            f"merged {plural(self.archives, 'archive')}: {plural(self.shards, 'data file')}{done}, "
            f"{self.ok:,} pictures, {self.bad:,} bad, {self.filtered:,} filtered, "
            f"{size(self.copied_bytes)}"
        ]
        if self.stopped:
            out.append(f"stopped: {self.stopped}")
        out += self.notes
        if self.failed_shards:
            out.append("not copied:")
            out += [f"  {one.shard}: {one.reason}" for one in self.failed_shards[:20]]
        return out


def merge_datasets(options: MergeOptions, stop: Stop = lambda: "") -> MergeSummary:
    """Copy what the archive ``options.output`` lacks of the archives ``options.inputs``.

    The job ends early, after its running tasks, when ``stop`` returns a reason. Raises MergeError
    before it writes anything if the archives cannot be merged; DatasetError; StorageError;
    PlanMismatchError if the output has another plan.
    """
    refuse_secrets(*options.inputs, options.output)
    with job_log(options.log, "merge", options) as log:
        summary = _merge(options, stop, log)
        log.finish(summary)
        return summary


def _merge(options: MergeOptions, stop: Stop, log: EventLog) -> MergeSummary:
    datasets = [open_dataset(url, options.input_options) for url in options.inputs]
    store = Store(options.output, options.output_options)
    if len({one.url for one in datasets}) < len(datasets):
        raise OptionError(f"an archive is given twice: {', '.join(options.inputs)}")
    advice = "leave it out of the inputs, then the others are added to it"
    refuse_output(store, [one.store for one in datasets], advice)
    plan = Plan(PLAN_NAME, merged_parameters(datasets))
    sources, twice = sources_of(datasets)
    deletions = _deletions(datasets, store)
    summary = MergeSummary("merged", shards=len(sources), archives=len(datasets))
    if twice:
        summary.notes.append(
            f"{plural(len(twice), 'data file')} in several of the archives, copied once"
        )
    summary.notes += _repeated(datasets)

    def urls(done: Records, _: Records) -> dict[str, str]:
        check_deletions(_missing(sources, done), deletions, store.url)
        return {base: source.url for base, source in sources.items()}

    def first_files() -> None:
        for number, one in enumerate(datasets):
            copy = copy_heads if number else copy_model
            for decoder in copy(one.model_id, one.store, store, options.scratch):
                summary.notes.append(
                    f"warning: {one.url} shows pictures with another head for --decoder {decoder}, "
                    f"which is not copied: {store.url} has one"
                )
        for one in datasets:  # before the data files that need them
            for path, data in _deletion_files(one):
                store.create(path, data)

    def run(done: Records) -> Sequence[Outcome]:
        todo = _missing(sources, done)
        summary.resumed = len(sources) - len(todo)
        tasks = {Task(base, (one,)): one.file.bytes for base, one in todo.items()}
        return _copy(tasks, plan, store.url, options, summary, log, stop)

    compressed = {source.url for source in sources.values()}
    records = run_dataset_job(
        store,
        plan,
        urls,
        run,
        summary,
        publish_model=first_files,
        failed_before=[
            one for dataset in datasets for one in dataset.failed if one["url"] not in compressed
        ],
    )
    for base, record in records.items():
        summary.add_record(record, sources[base].url)
        summary.copied_bytes += record["bytes"]
    if any(one.store.sizes(KEYS) for one in datasets):
        summary.notes.append(
            f"maps of keys are not merged: strata index --input {options.output} writes one"
        )
    return summary


def _missing(sources: dict[str, Source], done: Records) -> dict[str, Source]:
    """The data files that the output lacks, or has in an earlier generation."""

    def lacks(base: str, file: DataFile) -> bool:
        if (known := done.get(base)) is None:
            return True
        _, generation = split_generation(file.name)
        other = known["sha256"] != file.record["sha256"]
        return known["generation"] < generation or (known["generation"] == generation and other)

    return {base: source for base, source in sources.items() if lacks(base, source.file)}


def _copy(
    tasks: dict[Task, int],
    plan: Plan,
    output: str,
    options: MergeOptions,
    summary: Summary,
    log: EventLog,
    stop: Stop,
) -> list[Outcome]:
    if not tasks:
        return []
    progress = Progress("merging", {task.name: size for task, size in tasks.items()}, events=log)
    watcher = JobWatcher(progress, stop)
    settings = MergeSettings(
        output,
        plan.fingerprint,
        scratch=options.scratch,
        input_options=options.input_options,
        output_options=options.output_options,
    )
    try:
        outcomes = run_here(FileMerger(settings), list(tasks), THREADS, watcher)
    finally:
        progress.close()
        clear_scratch(options.scratch)
    progress.add_to(summary)
    if len(outcomes) < len(tasks):
        summary.stopped = watcher.stopped
    return outcomes


def _deletions(datasets: Sequence[Dataset], store: Store) -> Hashes:
    """All deletions from these archives and from the output, by shard."""
    every: Hashes = {}
    for one in (*(dataset.store for dataset in datasets), store):
        for base, hashes in Deletions(one).read().hashes.items():
            every.setdefault(base, {}).update(hashes)
    return every


def _deletion_files(dataset: Dataset) -> list[tuple[str, bytes]]:
    hashes = Deletions(dataset.store).read().hashes
    return [pack_deletion(hashes)] if hashes else []


def _repeated(datasets: Sequence[Dataset]) -> list[str]:
    count, examples = repeated_keys(datasets)
    if count < 0:
        return [
            f"keys were not compared, because there are more than {COMPARED_KEYS:,} pictures: if "
            "several archives have the same key, it finds the picture of the first shard"
        ]
    if not count:
        return []
    named = ", ".join(map(repr, examples)) + (", ..." if count > len(examples) else "")
    return [
        f"warning: {plural(count, 'key')} in several of the archives ({named}): the merged archive "
        "has all their pictures, but a key finds only the picture of the first shard, in the order "
        "of URLs"
    ]
