"""``--format strata`` from the driver's side: a dataset of the same streams, cut short.

The output is a dataset of its own, with a plan that says what it was made of, and is published as
one that was compressed: data file, index, record, manifest. Its data files have the generations of
those that they are copies of.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

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
from ..dataset.ledger import (
    Ledger,
    NewerManifestError,
    Plan,
    latest_manifest,
    publish_manifest,
)
from ..dataset.models import copy_model
from ..reader.dataset import DataFile, Dataset
from ..running.cluster import WorkerShape
from ..running.job import Stop, run_job_tasks
from ..running.progress.events import EventLog
from ..running.progress.summary import Problem, megabytes, ratio
from ..running.tasks import Outcome, Task
from ..sources.shards import Shard
from ..stores.store import Store, storage_errors
from .copy_worker import COUNTS, ShardTruncator, TruncateSettings
from .request import DecodeOptions, DecodeSummary, Request, begin_summary

Records = dict[str, dict[str, Any]]  # by a data file's name without its generation


def truncate(options: DecodeOptions, request: Request, stop: Stop, log: EventLog) -> DecodeSummary:
    """Write what is missing of the truncated dataset ``options.output``, and its manifest."""
    dataset, store = request.dataset, Store(options.output, options.output_options)
    plan = Plan(PLAN_NAME, truncated_parameters(options, request))
    summary = begin_summary("copied", request, options)
    summary.copied = True
    names = {_name(dataset, file, plan): (file, keys) for file, keys in request.files}
    with storage_errors(store.url, "cannot be written"):
        plan.check(store)
        number = latest_manifest(store)  # before the records: see publish_manifest
        done, lost = _completed(store, plan)
        if not plan.establish(store):
            summary.notes.append(
                f"warning: {store.url} ignores create-only writes: run one job at a time on it"
            )
        copy_model(dataset.model_id, dataset.store, store, options.scratch)
    summary.notes += [f"warning: {name} was damaged or lost and is done again" for name in lost]
    missing = {
        name: given
        for name, given in names.items()
        if name not in done or done[name]["generation"] < split_generation(given[0].name)[1]
    }
    summary.resumed = len(names) - len(missing)
    outcomes = _run(options, request, plan, missing, summary, stop, log)
    failures = {
        outcome.task.name: f"{outcome.error} (attempts: {outcome.attempts})"
        for outcome in outcomes
        if outcome.result is None
    }
    with storage_errors(store.url, "the manifest cannot be written; run the job again"):
        while True:
            if outcomes:
                number = latest_manifest(store)
                done, _ = _completed(store, plan)
            summary.failed_shards = _failed(names, failures, done, summary.stopped)
            if summary.stopped:
                break
            listed = {name: record for name, record in done.items() if record["rows"]}
            failed = [{"url": one.shard, "error": one.reason} for one in summary.failed_shards]
            if not request.parameters:  # the whole dataset, so what that lacks, this lacks
                failed += dataset.failed
            try:
                number = publish_manifest(store, plan, listed, failed, after=number)
            except NewerManifestError:
                outcomes = outcomes or [Outcome(Task("", ()), {})]
                continue
            summary.notes.append(f"{store.url}: manifest {number}, {len(listed)} data files")
            break
    _summarise(summary, {name: done[name] for name in names if name in done})
    _note_originals(summary, options, request)
    return summary


def truncated_parameters(options: DecodeOptions, request: Request) -> dict[str, Any]:
    """The source's plan with what is different here, and ``truncated``, which says how."""
    dataset, rule = request.dataset, request.rule
    source = dataset.parameters
    whole = rule.layers == dataset.num_layers
    # Some of these streams are short because the originals beside them are exact.
    needed = source.get("keep_original") == "larger" and not options.keep_original
    return {
        **source,
        "layers": rule.most,
        "lossless": bool(source.get("lossless")) and whole and not needed,
        "keep_original": source.get("keep_original") if options.keep_original else "never",
        "truncated": {
            "dataset": dataset.url,
            "fingerprint": dataset.fingerprint,
            "keep_original": options.keep_original,
            **rule.to_json(),
            **request.parameters,
        },
    }


def _name(dataset: Dataset, file: DataFile, plan: Plan) -> str:
    """What the copy of a data file is called, whichever generation that is."""
    base, _ = split_generation(file.name)
    identity = Shard(f"{dataset.url}/{DATA}/{shard_stem(base)}", 0, base)
    return shard_name(identity, plan.fingerprint)


def _completed(store: Store, plan: Plan) -> tuple[Records, list[str]]:
    """The newest records, those of files without any row among them, and what was lost."""
    done, lost = Ledger(store, plan.fingerprint).completed(DATA, SUFFIX)
    empty = Ledger(store, plan.fingerprint, EMPTY_COMMITS, generations=True).records()
    for record in empty.values():
        known = done.get(record["base"])
        if known is None or known["generation"] < record["generation"]:
            done[record["base"]] = record
    return done, [name for name in lost if name not in done]


def _run(
    options: DecodeOptions,
    request: Request,
    plan: Plan,
    missing: Mapping[str, tuple[DataFile, tuple[str, ...] | None]],
    summary: DecodeSummary,
    stop: Stop,
    log: EventLog,
) -> Sequence[Outcome]:
    def settings(shape: WorkerShape) -> TruncateSettings:
        return TruncateSettings(
            dataset=request.dataset.url,
            output=Store(options.output, options.output_options).url,
            fingerprint=plan.fingerprint,
            rule=request.rule,
            layers=plan.parameters["layers"],
            keep_original=options.keep_original,
            condition=request.condition,
            scratch=options.scratch,
            input_options=options.input_options,
            output_options=options.output_options,
        )

    tasks = {}
    for name, (file, keys) in missing.items():
        versioned = generation_name(name, split_generation(file.name)[1])
        tasks[Task(name, (versioned, file, keys))] = file.bytes
    return run_job_tasks(
        "copying",
        ShardTruncator,
        settings,
        tasks,
        options,
        summary,
        log,
        stop,
        in_flight=1,  # see ShardTruncator
        max_bad_fraction=options.max_bad_fraction,
        keep_results=False,  # they are in the ledger
    )


def _failed(
    names: Mapping[str, tuple[DataFile, Any]],
    failures: Mapping[str, str],
    done: Mapping[str, Any],
    stopped: str,
) -> list[Problem]:
    """The data files that could not be copied, and those whose copy has vanished since."""
    problems = [Problem(names[name][0].path, "", error) for name, error in failures.items()]
    if not stopped:  # else they may not have been begun
        lost = "its copy was lost after it was recorded: run the job again"
        problems += [
            Problem(file.path, "", lost)
            for name, (file, _) in names.items()
            if name not in done and name not in failures
        ]
    return problems


def _summarise(summary: DecodeSummary, records: Mapping[str, Mapping[str, Any]]) -> None:
    totals: Counter[str] = Counter()
    for record in records.values():
        totals.update({key: record.get(key, 0) for key in (*_ADDED, *COUNTS)})
        totals["file_bytes"] += record["source"]["size"]
        origin = record.get("origin", record["source"])  # a record that was repaired has none
        summary.add_record(record, origin["url"])
    if totals["streams"]:
        before, after = totals["whole_bytes"], totals["stream_bytes"]
        summary.notes.append(
            f"pictures: {megabytes(before)} of streams -> {megabytes(after)} "
            f"({totals['layers'] / totals['streams']:.2f} layers on average), ratio "
            f"{ratio(before, after)}, {8 * after / totals['pixels']:.3f} bpp"
        )
        files = totals["bytes"]
        summary.notes.append(
            f"files:    {megabytes(totals['file_bytes'])} of Parquet -> {megabytes(files)}, ratio "
            f"{ratio(totals['file_bytes'], files)}"
        )


def _note_originals(summary: DecodeSummary, options: DecodeOptions, request: Request) -> None:
    kept = sum(file.record.get("kept", 0) for file, _ in request.files)
    if kept and not options.keep_original:
        summary.notes.append(
            f"originals are left out ({kept:,} pictures of these files have one): --keep-original "
            "copies them"
        )


_ADDED = ("pixels", "stream_bytes", "bytes")
