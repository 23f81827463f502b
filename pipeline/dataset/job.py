"""The steps of a job that writes a dataset: plan, what is missing, records, manifest.

The jobs differ in what a data file is made of: of a shard (compress/job.py), or of another
dataset's data file (decode/copy_job.py).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..running.progress.summary import Problem, Summary, plural
from ..running.tasks import Outcome
from ..sources.listing import file_of
from ..stores.store import Store, storage_errors
from .data_file import DatasetError
from .layout import COMMITS, DATA, INDEX, MANIFESTS, SUFFIX, data_path, record_path
from .ledger import Ledger
from .manifest import latest_manifest, open_manifest
from .manifest_writer import NewerManifestError, publish_manifest
from .plan import Plan
from .records import Records

_UNFINISHED = (
    "the manifest cannot be written (what is committed stays, the same command goes on from there)"
)
_LOST = "its file was lost after it was recorded: run the job again"


def run_dataset_job(
    store: Store,
    plan: Plan,
    sources: Callable[[Records, Records], Mapping[str, str]],
    run: Callable[[Records], Sequence[Outcome]],
    summary: Summary,
    *,
    publish_model: Callable[[], object],
    completed: Callable[[Ledger], tuple[Records, Records]] = lambda ledger: ledger.completed(
        DATA, SUFFIX
    ),
    failed_before: Sequence[Mapping[str, Any]] = (),
) -> Records:
    """Write what is missing of a dataset, and a manifest that lists all of it.

    Args:
        sources: given the records of what is done and of what is lost, the source of each data file
            of this job, as messages name it. Raises StrataError where the job must not go on from
            these records.
        run: does what these records lack, and records it. Its outcomes need no results.
        summary: gets the shards that failed, and notes.
        publish_model: gives the dataset its copy of the model.
        completed: what is done, and what was and is lost; see ``Ledger.completed``.
        failed_before: what the manifest lists as failed beside what fails here, and what failed
            before and has not been done since.

    Records are by the names of their data files without the generation. Returns those of this job's
    data files. What is lost and has no source here stays in the manifest, so that readers and
    checks find it, and counts as a failure. Raises StrataError for what must be put right before
    anything can be done.
    """
    ledger = Ledger(store, plan.fingerprint)
    with storage_errors(store.url, "cannot be written"):
        plan.check(store)
        number = latest_manifest(store)  # before the records: see publish_manifest
        done, lost = completed(ledger)
        named = sources(done, lost)
        ours = lost.named((name, name) for name in lost if name in named)
        ledger.drop(DATA, SUFFIX, ours)
        create_only = plan.establish(store)
        publish_model()
        for folder in ("", DATA, INDEX, COMMITS, MANIFESTS):
            store.clear_parts(folder)
    if not create_only:
        summary.notes.append(
            f"warning: {store.url} ignores create-only writes: run one job at a time on it"
        )
    summary.notes += [f"warning: {name} was damaged or lost and is done again" for name in ours]
    outcomes = run(done)
    failures = {one.task.name: one.failure for one in outcomes if one.result is None}
    reread = bool(outcomes)  # this job has added records, and so may others have
    with storage_errors(store.url, _UNFINISHED):
        while True:
            if reread:
                done = Records(plan.fingerprint)  # all records twice would take memory
                number = latest_manifest(store)
                done, lost = completed(ledger)
            summary.failed_shards = [
                Problem(named[name], "", error) for name, error in failures.items()
            ]
            if summary.stopped:
                break
            summary.failed_shards += [
                Problem(source, "", _LOST)
                for name, source in named.items()
                if name not in done and name not in failures
            ]
            # A copy has records of data files that have no row in it, and therefore no file.
            listed = done.where(lambda record: bool(record["bytes"]))
            failed = [{"url": one.shard, "error": one.reason} for one in summary.failed_shards]
            others = lost.named((name, name) for name in lost if name not in named)
            listed.update(others)
            summary.failed_shards += [_left(store, record) for record in others.values()]
            before = [*_still_failed(store, number, named, listed), *failed_before]
            once = {one["url"]: one for one in (*before, *failed)}
            try:
                number = publish_manifest(store, plan, listed, once.values(), after=number)
            except NewerManifestError:
                reread = True
                continue
            files = plural(len(listed), "data file")
            summary.notes.append(f"{store.url}: manifest {number}, {files}")
            break
    records = done.named((name, name) for name in named if name in done)
    if gone := sum(record.get("deleted", 0) for record in records.values()):
        summary.notes.append(
            f"deleted from these for good: {plural(gone, 'sample')}, without a row"
        )
    return records


def _still_failed(
    store: Store, number: int, named: Mapping[str, str], listed: Mapping[str, Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """What the newest manifest lists as failed, and neither this job nor another has done since."""
    try:
        before = open_manifest(store, number).failed if number else []
    except DatasetError:  # damaged: its records are read anyway
        before = []
    if not before:
        return []
    done = {file_of(url) for url in named.values()}
    for record in listed.values():
        done |= {record["source"]["url"], (record.get("origin") or record["source"])["url"]}
    return [one for one in before if file_of(one["url"]) not in done]


def _left(store: Store, record: Mapping[str, Any]) -> Problem:
    """A data file that is lost, and that this job cannot do again."""
    return Problem(
        f"{store.url}/{data_path(record['name'])}",
        "",
        f"is damaged or lost, and its source {record['source']['url']} is not among the inputs: "
        "give that too, or run strata verify --repair. To do without it, remove "
        f"{record_path(record['name'])}",
    )
