"""The driver of ``--format strata``: makes a dataset of the same streams, truncated.

The output is a dataset of its own, whose plan says what it was copied from. It is published like a
compressed one: data file, index, record, manifest. A copied data file has the generation of its
source.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..dataset.job import run_dataset_job
from ..dataset.layout import (
    DATA,
    EMPTY_COMMITS,
    PLAN_NAME,
    SUFFIX,
    generation_name,
    shard_name,
    shard_stem,
    split_generation,
)
from ..dataset.ledger import Ledger
from ..dataset.models import copy_model
from ..dataset.plan import Plan
from ..dataset.records import Records, list_command
from ..reader.dataset import DataFile, Dataset
from ..running.job import Stop, run_job_tasks
from ..running.progress.events import EventLog
from ..running.progress.summary import plural, ratio, size
from ..running.tasks import Outcome, Task
from ..sources.shards import Shard
from ..stores.store import Store
from .copy_worker import COUNTS, ShardCopier
from .dataset_worker import settings_of
from .request import DecodeOptions, DecodeSummary, Request, begin_summary, note_above_limit


def copy_dataset(
    options: DecodeOptions, request: Request, stop: Stop, log: EventLog
) -> DecodeSummary:
    """Copy what the dataset ``options.output`` lacks, and write its manifest."""
    dataset, store = request.dataset, Store(options.output, options.output_options)
    plan = Plan(PLAN_NAME, truncated_parameters(options, request))
    summary = begin_summary("copied", request, options)
    summary.copied = True
    names = {_name(dataset, file, plan): (file, keys) for file, keys in request.files}

    def run(done: Records) -> Sequence[Outcome]:
        tasks = {}
        for name, (file, keys) in names.items():
            _, generation = split_generation(file.name)
            known = done.get(name)
            if known is not None and known["source"]["etag"] != file.record["sha256"]:
                generation = max(generation, known["generation"] + 1)
            if known is None or known["generation"] < generation:
                tasks[Task(name, (generation_name(name, generation), file, keys))] = file.bytes
        summary.resumed = len(names) - len(tasks)
        return run_job_tasks(
            "copying",
            ShardCopier,
            settings_of(options, request, plan),
            tasks,
            options,
            summary,
            log,
            stop,
            in_flight=1,  # see ShardCopier
            max_bad_fraction=options.max_bad_fraction,
            keep_results=False,  # they are in the ledger
        )

    records = run_dataset_job(
        store,
        plan,
        lambda *_: {name: file.path for name, (file, _) in names.items()},
        run,
        summary,
        publish_model=lambda: copy_model(dataset.model_id, dataset.store, store, options.scratch),
        completed=_completed,
        # A copy of the whole dataset lacks the same inputs.
        failed_before=() if request.parameters else dataset.failed,
    )
    _summarise(summary, records)
    summary.lists_all = list_command(store.url)
    _note_originals(summary, options, request, records, names)
    return summary


def truncated_parameters(options: DecodeOptions, request: Request) -> dict[str, Any]:
    """The source's parameters with the changes of the copy, which ``truncated`` describes."""
    dataset, rule = request.dataset, request.rule
    source = dataset.parameters
    whole = rule.layers == dataset.num_layers
    kept = source.get("keep_original")
    if not options.keep_original:  # originals that replace layers are still copied
        kept = "never" if kept in ("never", "bad") else "larger"
    stored = source.get("store_layers")
    return {
        **source,
        "layers": rule.most,
        "store_layers": min(stored, rule.most) if isinstance(stored, int) else stored,
        "lossless": bool(source.get("lossless")) and whole,
        "keep_original": kept,
        "truncated": {
            "dataset": dataset.url,
            "fingerprint": dataset.fingerprint,
            "keep_original": options.keep_original,
            **rule.to_json(),
            **request.parameters,
        },
    }


def _name(dataset: Dataset, file: DataFile, plan: Plan) -> str:
    """The name of the copy of a data file, the same for all generations."""
    base, _ = split_generation(file.name)
    identity = Shard(f"{dataset.url}/{DATA}/{shard_stem(base)}", 0, base)
    return shard_name(identity, plan.fingerprint)


def _completed(ledger: Ledger) -> tuple[Records, Records]:
    """The newest records, including those of empty files, and the records of lost files."""
    done, lost = ledger.completed(DATA, SUFFIX)
    empty = Ledger(ledger.store, ledger.fingerprint, EMPTY_COMMITS, generations=True).records()
    for record in empty.values():
        known = done.get(record["base"])
        if known is None or known["generation"] < record["generation"]:
            done[record["base"]] = record
    return done, lost.named((name, name) for name in lost if name not in done)


def _summarise(summary: DecodeSummary, records: Mapping[str, Mapping[str, Any]]) -> None:
    totals: Counter[str] = Counter()
    for record in records.values():
        # A repaired record does not say how large its streams were before.
        known = (*_ADDED, *COUNTS) if "streams" in record else ("bytes",)
        totals.update({key: record.get(key, 0) for key in known})
        totals["file_bytes"] += record["source"]["size"]
        origin = record.get("origin", record["source"])  # a record that was repaired has none
        summary.add_record(record, origin["url"])
    if totals["streams"]:
        before, after = totals["whole_bytes"], totals["stream_bytes"]
        summary.notes.append(
            f"pictures: {size(before)} of streams -> {size(after)} "
            f"({totals['layers'] / totals['streams']:.2f} layers on average), ratio "
            f"{ratio(before, after)}, {8 * after / totals['pixels']:.3f} bpp"
        )
        files = totals["bytes"]
        summary.notes.append(
            f"files:    {size(totals['file_bytes'])} of Parquet -> {size(files)}, ratio "
            f"{ratio(totals['file_bytes'], files)}"
        )
    note_above_limit(summary, totals)


def _note_originals(
    summary: DecodeSummary,
    options: DecodeOptions,
    request: Request,
    records: Mapping[str, Mapping[str, Any]],
    names: Mapping[str, tuple[DataFile, Any]],
) -> None:
    """Note which kept files are left out, unless ``--keep-original`` copies all."""
    if options.keep_original:
        return
    if kept := sum(file.record.get("kept", 0) for file, _ in request.files):
        summary.notes.append(
            "originals are left out where the chosen layers take their place "
            f"({plural(kept, 'picture')} of these files with an original): --keep-original copies "
            "them all"
        )
    before = sum(_only_files(names[name][0].record) for name in records if name in names)
    lost = before - sum(map(_only_files, records.values()))
    if lost > 0 and (copied := summary.bad + summary.filtered):
        # Of a selection nobody knows which of these samples had files.
        several = f"up to {min(lost, copied):,}" if request.parameters else f"{lost:,}"
        summary.notes.append(
            f"warning: {several} of the bad and filtered samples come without their files: "
            "--keep-original copies these, and --format originals writes them"
        )


def _only_files(record: Mapping[str, Any]) -> int:
    """The samples without a picture of which files are kept."""
    reasons = record.get("by_reason", {})
    return int(reasons.get("bad", 0) + reasons.get("filtered", 0))


_ADDED = ("pixels", "stream_bytes", "bytes")
