"""The driver of an evaluation: makes the tasks, runs those that have no record, writes the report.

The name of a record depends on everything that the record depends on: the version of the shard, the
samples, the contender and the metrics. So the same command goes on where it stopped, and a command
with another model or fewer pictures uses the records that both need.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..dataset.models import publish_model
from ..dataset.plan import fingerprint
from ..running.job import RunningOptions, Stop, run_job_tasks
from ..running.progress.events import EventLog, job_log
from ..running.progress.summary import Problem, Summary, plural
from ..running.tasks import Task
from ..sources.kinds import InputFormat
from ..sources.listing import expand_inputs
from ..sources.samples import SIDE_FIELDS, Sample
from ..sources.shards import Shard, open_shard
from ..sources.tar_members import ShardError
from ..stores.store import StorageError, Store, scratch_folder, storage_errors
from ..stores.urls import refuse_secrets
from .contenders import Contender, check_names, model_contenders, peer_contenders
from .figures import Evaluation, collect
from .measuring import installed
from .page import page
from .plots import plots
from .report import report, results
from .worker import RECORDS, EvaluateSettings, EvaluationTask, Evaluator

FORMAT = 3  # of records; raise it when a figure is defined in another way
TASK_SAMPLES, TASK_BYTES = 32, 2 << 20  # at most in a task, which is lost if its worker is killed
REPORT, TABLES, PAGE = "report.json", "results.md", "report.html"


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RunningOptions):
    """See ``strata evaluate --help``. ``peers`` None means all that are installed; ``command`` is
    shown in the report.
    """

    data: tuple[str, ...]
    output: str
    models: tuple[str, ...] = ()
    peers: tuple[str, ...] | None = None
    first: int | None = None
    layers: int | None = None
    input_format: InputFormat | None = None
    show: int = 2
    show_bpp: tuple[float, ...] = (0.1, 0.3, 1.0)
    command: str = ""


@dataclass
class EvaluationSummary(Summary):
    """``ok`` pictures were measured with all contenders; ``bad`` ones failed with one of them."""

    contenders: int = 0
    tasks: int = 0

    def lines(self) -> list[str]:
        first = (
            f"measured {plural(self.ok, 'picture')} of {plural(self.shards, 'shard')}, "
            f"{plural(self.contenders, 'contender')} "
            f"({self.tasks} tasks, {self.resumed} of them done before); {self.bad} bad, "
            f"{self.filtered} filtered, {len(self.failed_shards)} tasks or shards failed"
        )
        return [first, *super().lines()[1:]]


def evaluate(options: EvaluateOptions, stop: Stop = lambda: "") -> EvaluationSummary:
    """Measure what is missing, and write the report of everything.

    The job ends early, after its running tasks, when ``stop`` returns a reason. Raises StrataError
    before it starts if options, models, inputs or output are wrong.
    """
    refuse_secrets(*options.data, options.output)
    with job_log(options.log, "evaluate", options) as log:
        summary = _evaluate(options, stop, log)
        log.finish(summary)
        return summary


def _evaluate(options: EvaluateOptions, stop: Stop, log: EventLog) -> EvaluationSummary:
    store = Store(options.output, options.output_options)
    shards = expand_inputs(options.data, options.input_options, options.input_format)
    metrics = installed()
    contenders, models = model_contenders(
        options.models, options.layers, options.input_options, options.scratch
    )
    peers, notes = peer_contenders(options.peers)
    contenders += peers
    check_names(contenders)
    summary = EvaluationSummary("measured", shards=len(shards), contenders=len(contenders))
    summary.notes += notes
    with storage_errors(store.url, "cannot be written"):
        for _, model in models:
            publish_model(store, model.model_id, model.model_path)
    tasks = _tasks(_pieces(shards, options, summary), contenders, options, metrics)
    lost = list(summary.failed_shards)
    mark = fingerprint({"evaluation": FORMAT})
    with storage_errors(store.url, "cannot be read"):
        there = store.sizes(RECORDS)
    missing = {
        Task(task.name, (task,)): size
        for task, size in tasks.items()
        if f"{task.name}.json" not in there
    }
    summary.tasks, summary.resumed = len(tasks), len(tasks) - len(missing)
    outcomes = run_job_tasks(
        "measuring",
        Evaluator,
        EvaluateSettings(store.url, mark, metrics),
        missing,
        options,
        summary,
        log,
        stop,
        in_flight=1,
        keep_results=False,
    )
    failed = {one.task.name: one.error for one in outcomes if one.result is None}
    summary.failed_shards += [Problem(name, "", error) for name, error in failed.items()]
    with storage_errors(store.url, "cannot be read"):
        found = collect(store, mark, list(tasks), metrics, failed)
    _conclude(found, summary)
    if not found.series:
        summary.notes.append("there is no report: no picture was measured with all contenders")
        return summary
    found.problems += [{"of": "all", "what": one.shard, "reason": one.reason} for one in lost]
    reported = report(found, models, contenders, options.data, options.command)
    reported["notes"] += notes
    if summary.stopped:
        reported["notes"].append(f"not everything was measured: {summary.stopped}")
    files = {
        REPORT: json.dumps(reported, indent=1) + "\n",
        TABLES: results(found, reported),
        PAGE: page(found, reported),
        **plots(found),
    }
    with storage_errors(store.url, "cannot be written"):
        for name, text in files.items():  # they are made from the records, so nothing is lost
            store.remove(name)
            store.create(name, text.encode("utf-8", "backslashreplace"))
    summary.notes.append(f"{store.url}/{PAGE}: the report, beside {REPORT} and {TABLES}")
    return summary


@dataclass(frozen=True)
class _Piece:
    """Some samples of a shard, from ``start`` on; ``shown`` are numbers of those in the report."""

    shard: Shard
    start: int
    samples: tuple[Sample, ...]
    shown: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + len(self.samples)

    @property
    def nbytes(self) -> int:
        return sum(map(_picture_bytes, self.samples))


def _pieces(
    shards: Sequence[Shard], options: EvaluateOptions, summary: EvaluationSummary
) -> list[_Piece]:
    """Cut the shards into pieces, up to the ``first`` pictures. Opens every shard once."""
    out: list[_Piece] = []
    pictures = beside = 0
    for shard in shards:
        if options.first is not None and pictures >= options.first:
            break
        try:
            with (
                scratch_folder(options.scratch) as scratch,
                open_shard(shard, scratch, options.input_options, options.gzip) as file,
            ):
                samples = file.samples
        except (ShardError, StorageError, OSError) as error:
            summary.failed_shards.append(Problem(shard.url, "", str(error)))
            continue
        start, nbytes = 0, 0
        shown: list[int] = []
        for number, sample in enumerate(samples):
            size = _picture_bytes(sample)
            full = number - start == TASK_SAMPLES or nbytes + size > TASK_BYTES
            if number > start and full:
                out.append(_Piece(shard, start, tuple(samples[start:number]), tuple(shown)))
                start, nbytes, shown = number, 0, []
            nbytes += size
            beside += sample.side_pictures
            if not sample.filtered:
                if pictures < options.show:
                    shown.append(number)
                pictures += 1
            if options.first is not None and pictures >= options.first:
                samples = samples[: number + 1]
                break
        if len(samples) > start:
            out.append(_Piece(shard, start, tuple(samples[start:]), tuple(shown)))
    if beside:
        summary.notes.append(f"warning: {plural(beside, 'picture')} not measured, {SIDE_FIELDS}")
    return out


def _picture_bytes(sample: Sample) -> int:
    field = sample.image_field
    return sum(member.size for name, member in sample.fields if name == field)


def _tasks(
    pieces: Sequence[_Piece],
    contenders: Sequence[Contender],
    options: EvaluateOptions,
    metrics: Sequence[str],
) -> dict[EvaluationTask, int]:
    """A task for each piece and contender, with its bytes, shard by shard; and one for each shown
    picture, with all contenders.
    """
    out: dict[EvaluationTask, int] = {}

    def add(piece: _Piece, start: int, stop: int, of: tuple[Contender, ...], *rates: float) -> None:
        what = "shown" if rates else of[0].spec.get("peer") or of[0].spec["model_id"][:8]
        identity: dict[str, Any] = {
            "format": FORMAT,
            "shard": [piece.shard.url, piece.shard.size, piece.shard.etag],
            "samples": [start, stop],
            "specs": [dict(one.spec) for one in of],
            "names": [one.group for one in of] if rates else [],
            "rates": rates,
            "metrics": list(metrics),
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode("utf-8", "replace"))
        name = f"{what}-{start:06d}-{digest.hexdigest()[:20]}"
        out[EvaluationTask(name, piece.shard, start, stop, of, rates)] = piece.nbytes

    for shard in dict.fromkeys(piece.shard for piece in pieces):
        own = [piece for piece in pieces if piece.shard == shard]
        for contender in contenders:
            for piece in own:
                add(piece, piece.start, piece.stop, (contender,))
        for piece in own:
            for number in piece.shown:
                add(piece, number, number + 1, tuple(contenders), *options.show_bpp)
    return out


def _conclude(found: Evaluation, summary: EvaluationSummary) -> None:
    summary.ok, summary.bad, summary.filtered = found.pictures, found.bad, found.filtered
    for problem in found.problems:
        name, _, key = problem["what"].rpartition(": ")
        summary.add_problem(Problem(name, key, f"{problem['of']}: {problem['reason']}"))
        summary.reasons[problem["reason"].split(":", 1)[0]] += 1
    if found.unequal:
        summary.notes.append(
            "some pictures are left out of all figures, because these contenders failed with some: "
            f"{', '.join(found.unequal)}"
        )
