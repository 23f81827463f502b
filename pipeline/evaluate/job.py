"""The evaluating job from the driver's side: contenders, pictures, what is missing, the report.

A record is named by all that it depends on: the version of the shard, which of its samples, the
contender, and what is measured. So the same command goes on from what is there, and one with
another model, or fewer pictures, takes over what they have in common.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codec.errors import InvalidModelError

from ..dataset.layout import model_path
from ..dataset.ledger import fingerprint
from ..running.job import RunningOptions, Stop, run_job_tasks
from ..running.options import OptionError
from ..running.progress.events import EventLog, job_log
from ..running.progress.summary import Problem, Summary
from ..running.tasks import Task
from ..sources.shards import Sample, Shard, expand_inputs, open_shard
from ..sources.tar_members import ShardError
from ..stores.store import StorageError, Store, scratch_folder, storage_errors
from ..stores.urls import refuse_secrets
from .contenders import (
    Contender,
    ModelFile,
    anchor_name,
    check_names,
    model_contenders,
    peer_contenders,
)
from .document import Document
from .earlier import Earlier
from .figures import Evaluation, collect, given_series
from .page import page
from .report import pictures, report, results
from .worker import (
    RECORDS,
    WEIGHTS,
    EvaluateSettings,
    EvaluationTask,
    Evaluator,
)

FORMAT = 1  # of records; a new number where any figure is defined in another way
TASK_SAMPLES, TASK_BYTES = 32, 2 << 20  # of a task: what a killed worker has to do again
REPORT, TABLES, PAGE = "report.json", "results.md", "report.html"


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RunningOptions):
    """What is measured. See ``jobs/evaluate.py --help`` for the options; ``command`` is printed.

    ``peers`` None means all that are installed. ``given`` are curves that others measured:
    rates and PSNRs by name. ``earlier`` is the report.json of an evaluation of the same pictures,
    whose other curves are taken over, and whose peers are not measured again unless they are named.
    ``markdown`` is a document to fill, ``section`` its name for this.
    """

    data: tuple[str, ...]
    output: str
    models: tuple[str, ...] = ()
    peers: tuple[str, ...] | None = None
    first: int | None = None
    layers: int | None = None
    anchor: str = ""
    show: int = 2
    show_bpp: tuple[float, ...] = (0.15, 0.4, 1.0)
    lpips: str | None = None
    given: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    earlier: str | None = None
    markdown: str | None = None
    section: str = ""
    command: str = ""


@dataclass
class EvaluationSummary(Summary):
    """``ok`` are pictures that every contender did, ``bad`` those that one of them failed at."""

    contenders: int = 0
    tasks: int = 0

    def lines(self) -> list[str]:
        first = (
            f"measured {self.ok} pictures of {self.shards} shards, {self.contenders} contenders "
            f"({self.tasks} tasks, of which {self.resumed} were done already); {self.bad} bad, "
            f"{self.filtered} filtered, {len(self.failed_shards)} tasks or shards failed"
        )
        return [first, *super().lines()[1:]]


def evaluate(options: EvaluateOptions, stop: Stop = lambda: "") -> EvaluationSummary:
    """Measure what is missing, and write the report of all of it.

    ``stop`` is asked now and then whether to finish what is under way and end. Raises StrataError
    for what must be put right before anything can be done: options, models, inputs, output.
    """
    refuse_secrets(*options.data, options.output)
    with job_log(options.log, "evaluate", options) as log:
        summary = _evaluate(options, stop, log)
        log.finish(summary)
        return summary


def _evaluate(options: EvaluateOptions, stop: Stop, log: EventLog) -> EvaluationSummary:
    contenders, models = model_contenders(
        options.models, options.layers, options.input_options, options.scratch
    )
    earlier = None if options.earlier is None else Earlier.read(Path(options.earlier))
    peers, notes = peer_contenders(options.peers, earlier.groups if earlier else ())
    contenders += peers
    check_names(contenders)
    measured = {one.group for one in contenders} | (earlier.measured if earlier else set())
    if clash := set(options.given) & measured:
        raise OptionError(f"--given {min(clash)}: that is measured here; give it another name")
    document = None
    if options.markdown is not None:
        document = Document(Path(options.markdown), options.section)
        document.check()
    anchor = anchor_name(contenders, options.anchor, earlier.curves if earlier else ())
    store = Store(options.output, options.output_options)
    shards = expand_inputs(options.data, options.input_options)
    summary = EvaluationSummary("measured", shards=len(shards), contenders=len(contenders))
    summary.notes += notes
    with storage_errors(store.url, "cannot be written"):
        lpips = _publish(store, models, options.lpips)
    pieces = _pieces(shards, options, summary)
    lost = list(summary.failed_shards)
    tasks = _tasks(pieces, contenders, options, lpips)
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
        EvaluateSettings(store.url, mark, options.show_bpp, lpips),
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
        found = collect(store, mark, list(tasks), failed)
    _conclude(found, summary)
    if not found.series:
        summary.notes.append("there is no report: no picture was measured by all contenders")
        return summary
    found.digest = _digest(pieces)
    found.series += [given_series(name, points) for name, points in options.given.items()]
    of_models = [one.to_json() for one in models]
    sources: list[dict[str, Any]] = []
    if earlier is not None:
        earlier.check(pictures(found))
        kept = earlier.complete(found)
        sources = earlier.sources(kept)
        of_models += earlier.models(of_models, kept)
    reported = report(found, of_models, options.data, options.command, anchor, sources)
    for one in lost:
        reported["problems"].append({"of": "all", "what": one.shard, "reason": one.reason})
    if summary.stopped:
        reported["notes"].append(f"not everything was measured: {summary.stopped}")
    files = {
        REPORT: json.dumps(reported, indent=1) + "\n",
        TABLES: results(found, reported),
        PAGE: page(found, reported),
    }
    with storage_errors(store.url, "cannot be written"):
        for name, text in files.items():  # made of the records, so nothing is lost
            store.remove(name)
            store.create(name, text.encode("utf-8", "backslashreplace"))
    summary.notes.append(f"{store.url}/{PAGE}: the report, beside {REPORT} and {TABLES}")
    if document is not None and summary.stopped:
        summary.notes.append(f"{document.path} stays as it was until everything is measured")
    elif document is not None:
        summary.notes += [f"{document.path}: filled", *document.fill(found, reported)]
    return summary


def _publish(store: Store, models: Sequence[ModelFile], lpips: str | None) -> str | None:
    """Put models and weights where every worker finds them. Returns the weights' name."""
    for model in models:
        store.create_from(model_path(model.model_id), model.path)
    if lpips is None:
        return None
    path = Path(lpips)
    if not path.is_file():
        raise InvalidModelError(f"--lpips {lpips}: there is no such file")
    from .lpips import load_lpips

    load_lpips(path)  # or every picture would fail for it
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    name = digest[:32] + path.suffix
    store.create_from(f"{WEIGHTS}/{name}", path)
    return name


@dataclass(frozen=True)
class _Piece:
    """Samples of a shard from ``start`` on, and which of them are shown."""

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


def _digest(pieces: Sequence[_Piece]) -> str:
    """Of the pictures' keys and sizes in bytes: the same set has the same, wherever it lies."""
    lines = sorted(
        f"{_picture_bytes(sample)} {sample.key}\n"
        for piece in pieces
        for sample in piece.samples
        if not sample.filtered
    )
    return hashlib.sha256("".join(lines).encode("utf-8", "replace")).hexdigest()[:16]


def _pieces(
    shards: Sequence[Shard], options: EvaluateOptions, summary: EvaluationSummary
) -> list[_Piece]:
    """Cut the shards into pieces, up to the ``first`` pictures; looks into every shard once."""
    out: list[_Piece] = []
    pictures = 0
    for shard in shards:
        if options.first is not None and pictures >= options.first:
            break
        try:
            with (
                scratch_folder(options.scratch) as scratch,
                open_shard(shard, scratch, options.input_options) as file,
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
            if not sample.filtered:
                if pictures < options.show:
                    shown.append(number)
                pictures += 1
            if options.first is not None and pictures >= options.first:
                samples = samples[: number + 1]
                break
        if len(samples) > start:
            out.append(_Piece(shard, start, tuple(samples[start:]), tuple(shown)))
    return out


def _picture_bytes(sample: Sample) -> int:
    field = sample.image_field
    return sum(member.size for name, member in sample.fields if name == field)


def _tasks(
    pieces: Sequence[_Piece],
    contenders: Sequence[Contender],
    options: EvaluateOptions,
    lpips: str | None,
) -> dict[EvaluationTask, int]:
    """Every piece with every contender, with its bytes; a shard's together, models first."""
    out: dict[EvaluationTask, int] = {}
    for shard in dict.fromkeys(piece.shard for piece in pieces):
        own = [piece for piece in pieces if piece.shard == shard]
        for contender in contenders:
            for piece in own:
                name = _record_name(piece, contender, options, lpips)
                task = EvaluationTask(name, shard, piece.start, piece.stop, contender, piece.shown)
                out[task] = piece.nbytes
    return out


def _record_name(
    piece: _Piece, contender: Contender, options: EvaluateOptions, lpips: str | None
) -> str:
    shard = piece.shard
    identity: dict[str, Any] = {
        "format": FORMAT,
        "shard": [shard.url, shard.size, shard.etag],
        "samples": [piece.start, piece.stop],
        "spec": dict(contender.spec),
        "shown": [list(piece.shown), list(options.show_bpp)] if piece.shown else None,
        "lpips": lpips,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode("utf-8", "replace"))
    what = contender.spec.get("peer") or contender.spec["model_id"][:8]
    return f"{what}-{piece.start:06d}-{digest.hexdigest()[:20]}"


def _conclude(found: Evaluation, summary: EvaluationSummary) -> None:
    summary.ok, summary.bad, summary.filtered = found.pictures, found.bad, found.filtered
    for problem in found.problems:
        name, _, key = problem["what"].rpartition(": ")
        summary.add_problem(Problem(name, key, f"{problem['of']}: {problem['reason']}"))
        summary.reasons[problem["reason"].split(":", 1)[0]] += 1
    if found.unequal:
        summary.notes.append(
            "some contenders have no figures of some pictures, which are left out of all figures "
            f"but swd_set: {', '.join(found.unequal)}"
        )
