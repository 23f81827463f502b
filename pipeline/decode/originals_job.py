"""The driver of ``--format originals``: restores the corpus, as far as its files are kept."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..dataset.layout import shard_stem, split_generation
from ..dataset.ledger import Ledger
from ..dataset.plan import Plan
from ..reader.dataset import DataFile
from ..running.job import Stop, run_job_tasks
from ..running.progress.events import EventLog
from ..running.progress.summary import Problem, plural, size
from ..running.tasks import Task
from ..stores.store import Store, storage_errors
from .dataset_worker import settings_of
from .originals_worker import COUNTS, ShardRestorer
from .request import DecodeOptions, DecodeSummary, Request, begin_summary
from .targets import DECODE_COMMITS, DECODE_PLAN, clear_parts, finished_files


def restore_originals(
    options: DecodeOptions, request: Request, stop: Stop, log: EventLog
) -> DecodeSummary:
    """Write the tars from which the dataset was made, as far as they are missing."""
    dataset, store = request.dataset, Store(options.output, options.output_options)
    plan = Plan(
        DECODE_PLAN,
        {
            "dataset": dataset.url,
            "dataset_fingerprint": dataset.fingerprint,
            "format": options.format,
            **request.parameters,
        },
    )
    ledger = Ledger(store, plan.fingerprint, DECODE_COMMITS)
    summary = begin_summary("restored the files of", request, options)
    with storage_errors(store.url, "cannot be written"):
        if not plan.establish(store):
            summary.notes.append(f"warning: {store.url} ignores create-only writes")
        done, lost = finished_files(ledger, ledger.records(), ".tar")
    clear_parts(store)
    summary.notes += [f"warning: {name}.tar was lost and is written again" for name in lost]
    names = _names(dataset.files, done)
    wanted = {names[file.name]: (file, keys) for file, keys in request.files}
    tasks = {
        Task(name, (name, file, keys)): file.bytes
        for name, (file, keys) in wanted.items()
        if name not in done or done[name]["of"] != file.name
    }
    summary.resumed = len(wanted) - len(tasks)
    outcomes = run_job_tasks(
        "restoring",
        ShardRestorer,
        settings_of(options, request, plan),
        tasks,
        options,
        summary,
        log,
        stop,
        in_flight=1,  # see ShardRestorer
    )
    for outcome in outcomes:
        if outcome.result is not None:
            done[outcome.task.name] = outcome.result
        else:
            summary.failed_shards.append(Problem(outcome.task.name, "", outcome.failure))
    totals: Counter[str] = Counter()
    for name, (file, _) in wanted.items():
        if name in done and done[name]["of"] == file.name:
            totals.update({count: done[name][count] for count in COUNTS})
            summary.add_record(done[name], file.record["source"]["url"])
    summary.notes.append(
        f"files:    {plural(totals['files'], 'file')}, {size(totals['file_bytes'])}, byte for byte"
    )
    if totals["without"]:
        summary.notes.append(
            f"{plural(totals['without'], 'sample')} cannot be restored whole, because the archive "
            "does not keep all of their files: read the pictures with --format webdataset, or "
            "leave them out with --filter 'original is not None'"
        )
    return summary


def _names(files: Sequence[DataFile], done: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """The tar's name for each data file: that of its shard, unless another shard has the same name.

    A tar keeps its name when the dataset grows.
    """
    taken = {split_generation(record["of"])[0]: name for name, record in done.items()}
    bases = {file.name: split_generation(file.name)[0] for file in files}
    stems = Counter(map(shard_stem, set(bases.values())))
    standing = set(taken.values())
    names = {}
    for name, base in bases.items():
        stem = shard_stem(base)
        alone = stems[stem] == 1 and stem not in standing
        names[name] = taken.get(base, stem if alone else base)
    return names
