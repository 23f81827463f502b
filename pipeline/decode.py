"""The decoding job from the driver's side: plan, run what is missing, summary."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .cluster import WorkerShape
from .commit import Ledger, Plan, split_generation
from .dataset import DataFile, Dataset, open_dataset
from .decoder import COMMITS, DecodeSettings, ShardDecoder, remove_decoded
from .options import OptionError, check_codec_options
from .progress.events import EventLog, job_log
from .progress.summary import Problem, Summary
from .running import RunningOptions, Stop, run_job_tasks
from .storage import Store, storage_errors
from .tasks import Outcome, Task
from .urls import refuse_secrets

PLAN_NAME = ".strata/decode.json"


@dataclass(frozen=True)
class DecodeOptions(RunningOptions):
    """What the person asked for; ``layers`` None means all that are stored.

    ``codec_options`` are those that were given of the codec's own options for decoding.
    """

    dataset: str
    output: str
    layers: int | None = None
    format: Literal["webdataset", "files"] = "webdataset"
    image_format: str = "png"
    codec_options: dict[str, Any] = field(default_factory=dict)
    quality: int = 95


def decode(options: DecodeOptions, stop: Stop = lambda: "") -> Summary:
    """Decode a dataset into tars or files, doing only what is missing.

    ``stop`` is asked now and then whether to finish what is under way and end; it returns why.
    Raises StrataError for what must be put right before anything can be done; bad samples and
    shards are in the summary instead.
    """
    refuse_secrets(options.dataset, options.output)
    with job_log(options.log, "decode", options) as log:
        summary = _decode(options, stop, log)
        log.finish(summary)
        return summary


def _decode(options: DecodeOptions, stop: Stop, log: EventLog) -> Summary:
    dataset = open_dataset(options.dataset, options.input_options)
    layers = dataset.num_layers if options.layers is None else options.layers
    if not 1 <= layers <= dataset.num_layers:
        raise OptionError(f"--layers {layers}: {dataset.url} stores {dataset.num_layers} layers")
    if options.codec_options:
        check_codec_options(dataset.codec(), "decode", options.codec_options, dataset.url)
    plan = Plan(
        PLAN_NAME,
        {
            "dataset": dataset.url,
            "dataset_fingerprint": dataset.fingerprint,
            "layers": layers,
            "format": options.format,
            "image_format": options.image_format,
            "codec_options": options.codec_options,
            "quality": options.quality if options.image_format == "jpg" else None,
        },
    )
    store = Store(options.output, options.output_options)
    ledger = Ledger(store, plan.fingerprint, COMMITS)
    summary = Summary("decoded", shards=len(dataset.files))
    with storage_errors(store.url, "cannot be written"):
        if not plan.establish(store):
            summary.notes.append(f"warning: {store.url} ignores create-only writes")
        if options.format == "webdataset":
            done, lost = ledger.completed("", ".tar")
            summary.notes += [f"warning: {name}.tar was lost and is written again" for name in lost]
        else:
            done = ledger.records()
        _remove_superseded(store, dataset.files, done)
    missing = [file for file in dataset.files if file.name not in done]
    summary.resumed = len(dataset.files) - len(missing)
    for outcome in _run(options, dataset, plan, missing, summary, stop, log):
        if outcome.result is not None:
            done[outcome.task.name] = outcome.result
        else:
            problem = f"{outcome.error} (attempts: {outcome.attempts})"
            summary.failed_shards.append(Problem(outcome.task.name, "", problem))
    for file in dataset.files:
        if file.name in done:
            _add(summary, file, done[file.name])
    return summary


def _remove_superseded(
    store: Store, files: list[DataFile], done: dict[str, dict[str, Any]]
) -> None:
    """Remove tars of older generations that a worker which died left beside the new one."""
    newest = dict(split_generation(file.name) for file in files if file.name in done)
    tars = {name.removesuffix(".tar") for name in store.sizes() if name.endswith(".tar")}
    for name in sorted({*tars, *done}):
        base, generation = split_generation(name)
        if generation < newest.get(base, 0):
            remove_decoded(store, name)


def _run(
    options: DecodeOptions,
    dataset: Dataset,
    plan: Plan,
    missing: list[DataFile],
    summary: Summary,
    stop: Stop,
    log: EventLog,
) -> Sequence[Outcome]:
    """Decode what is missing, on as many workers as there are; adds this run to the summary."""

    def settings(shape: WorkerShape) -> DecodeSettings:
        return DecodeSettings(
            dataset=dataset.url,
            output=Store(options.output, options.output_options).url,
            fingerprint=plan.fingerprint,
            layers=plan.parameters["layers"],
            format=options.format,
            image_format=options.image_format,
            codec_options=options.codec_options,
            quality=options.quality,
            batch_size=options.batch_size,
            device=shape.device,
            threads=shape.threads,
            scratch=options.scratch,
            input_options=options.input_options,
            output_options=options.output_options,
        )

    return run_job_tasks(
        "decoding",
        ShardDecoder,
        settings,
        {Task(file.name, (file,)): file.bytes for file in missing},
        options,
        summary,
        log,
        stop,
        in_flight=1,  # see ShardDecoder
    )


def _add(summary: Summary, file: DataFile, record: dict[str, Any]) -> None:
    summary.ok += record["ok"]
    summary.bad += record["bad"]
    summary.filtered += record["filtered"]
    reasons: Counter[str] = Counter()
    for key, status, reason in record["problems"]:
        reasons[reason.split(":", 1)[0]] += 1
        if status == "bad":
            summary.add_problem(Problem(file.record["source"]["url"], key, reason))
    summary.reasons += reasons
