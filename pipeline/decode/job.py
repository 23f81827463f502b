"""The driver of a decode job: writes the plan, runs what is missing, makes the summary.

request.py        the options, and the files, keys and layers that they select
worker.py         the worker that writes tars, tables (``tables.py``) and files
copy_job.py       ``--format strata``: copies streams instead of decoding them
originals_job.py  ``--format originals``: restores the original files, byte for byte
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..dataset.layout import split_generation
from ..dataset.ledger import Ledger
from ..dataset.plan import Plan
from ..dataset.records import list_command
from ..reader.dataset import DataFile
from ..running.job import Stop, run_job_tasks
from ..running.progress.events import EventLog, job_log
from ..running.progress.summary import Problem, Summary, plural, size
from ..running.tasks import Task
from ..stores.store import Store, storage_errors
from ..stores.urls import refuse_secrets
from .copy_job import copy_dataset
from .dataset_worker import settings_of
from .originals_job import restore_originals
from .request import (
    DecodeOptions,
    DecodeSummary,
    Request,
    begin_summary,
    note_above_limit,
    resolve,
    written_quality,
)
from .samples import COUNTS
from .tables import field_columns
from .targets import DECODE_COMMITS, DECODE_PLAN, PACKED, clear_parts, finished_files
from .worker import ShardDecoder, remove_decoded

__all__ = ["DecodeOptions", "decode"]


def decode(options: DecodeOptions, stop: Stop = lambda: "") -> Summary:
    """Write a dataset, or a part of it, as tars, tables, files or a dataset of its own.

    Does only what is missing. The job ends early, after its running tasks, when ``stop`` returns a
    reason. Raises StrataError before it starts if something must be corrected. Bad samples and
    shards are in the summary.
    """
    refuse_secrets(options.dataset, options.output, *filter(None, [options.keys_file]))
    with job_log(options.log, "decode", options) as log:
        request = resolve(options)
        runs = {"strata": copy_dataset, "originals": restore_originals}
        summary = runs.get(options.format, _decode)(options, request, stop, log)
        log.finish(summary)
        return summary


def _decode(options: DecodeOptions, request: Request, stop: Stop, log: EventLog) -> DecodeSummary:
    store = Store(options.output, options.output_options)
    plan = Plan(DECODE_PLAN, _parameters(options, request, store))
    ledger = Ledger(store, plan.fingerprint, DECODE_COMMITS)
    summary = begin_summary("decoded", request, options)
    files = [file for file, _ in request.files]
    with storage_errors(store.url, "cannot be written"):
        if not plan.establish(store):
            summary.notes.append(f"warning: {store.url} ignores create-only writes")
        done = ledger.records()
        suffix = PACKED.get(options.format, "")
        if suffix:
            done, lost = finished_files(ledger, done, suffix)
            summary.notes += [
                f"warning: {name}{suffix} was lost and is written again" for name in lost
            ]
        _remove_superseded(store, files, done, suffix)
    missing = [(file, keys) for file, keys in request.files if file.name not in done]
    clear_parts(store, () if suffix else [split_generation(file.name)[0] for file, _ in missing])
    summary.resumed = len(files) - len(missing)
    outcomes = run_job_tasks(
        "decoding",
        ShardDecoder,
        settings_of(options, request, plan),
        {Task(file.name, (file, keys)): file.bytes for file, keys in missing},
        options,
        summary,
        log,
        stop,
        in_flight=1,  # see ShardDecoder
        max_bad_fraction=options.max_bad_fraction,
    )
    for outcome in outcomes:
        if outcome.result is not None:
            done[outcome.task.name] = outcome.result
        else:
            summary.failed_shards.append(Problem(outcome.task.name, "", outcome.failure))
    totals: Counter[str] = Counter()
    for file in files:
        if file.name in done:
            totals.update({name: done[file.name].get(name, 0) for name in COUNTS})
            summary.add_record(done[file.name], file.record["source"]["url"])
    if summary.bad == sum(file.record["bad"] for file in files):  # they were bad before
        summary.lists_all = list_command(request.dataset.url)
    _note_sizes(summary, totals, options)
    note_above_limit(summary, totals)
    return summary


def _parameters(options: DecodeOptions, request: Request, store: Store) -> dict[str, Any]:
    """Everything that the output depends on."""
    dataset, rule = request.dataset, request.rule
    columns: dict[str, Any] = {}
    if options.format == "parquet":
        columns["columns"] = field_columns(dataset, options, store)
    limits = {
        "max_side": options.max_side,
        "max_pixels": options.max_pixels,
        "side_pictures": options.side_pictures or None,
    }
    return {
        "dataset": dataset.url,
        "dataset_fingerprint": dataset.fingerprint,
        "layers": None,
        **rule.to_json(),
        "format": options.format,
        "image_format": options.image_format,
        "codec_options": options.codec_options,
        "quality": written_quality(options),
        **request.parameters,
        **columns,
        **{name: limit for name, limit in limits.items() if limit is not None},
    }


def _remove_superseded(
    store: Store, files: Sequence[DataFile], done: Mapping[str, dict[str, Any]], suffix: str
) -> None:
    """Remove output of older generations, which a worker that died may have left."""
    newest = dict(split_generation(file.name) for file in files if file.name in done)
    packed = {name.removesuffix(suffix) for name in store.sizes() if name.endswith(suffix)}
    for name in sorted({*(packed if suffix else ()), *done}):
        base, generation = split_generation(name)
        if generation < newest.get(base, 0):
            remove_decoded(store, name, suffix)


def _note_sizes(summary: Summary, totals: Mapping[str, int], options: DecodeOptions) -> None:
    """Note the bytes that were read and written, including those of earlier runs."""
    if totals["left_out"]:
        summary.notes.append(
            f"{plural(totals['left_out'], 'picture')} among the side fields left out, because they "
            "are stored as files at full size; --side-pictures includes them"
        )
    if totals["on_white"]:
        summary.notes.append(
            f"{plural(totals['on_white'], 'picture')} with transparency put on white, because jpg "
            "has none; --image-format png, webp or avif keeps it"
        )
    if not totals["decoded_bytes"]:
        return
    kept, streams = summary.ok - totals["streams"], totals["streams"]
    sources = []
    if streams:
        mean = totals["layers"] / streams
        sources.append(f"{size(totals['layer_bytes'])} of streams ({mean:.2f} layers on average)")
    if kept:
        sources.append(f"{size(totals['original_bytes'])} of {plural(kept, 'original')}")
    summary.notes.append(
        f"pictures: {' and '.join(sources)} -> {size(totals['decoded_bytes'])} of "
        f"{options.image_format}"
    )
    if kept and "decoder" in options.codec_options:
        summary.notes.append(
            f"warning: --decoder {options.codec_options['decoder']} had no part in "
            f"{plural(kept, 'picture')}, because they were read from their originals: fewer "
            "--layers come from the streams"
        )
