"""The compressing job from the driver's side: plan, run what is missing, manifest, summary."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from codec import Codec, load_codec
from codec.images.files import MAX_PIXELS

from ..dataset.layout import DATA, PLAN_NAME, SUFFIX, data_path, generation_name, shard_name
from ..dataset.ledger import (
    FORMAT_VERSION,
    Ledger,
    NewerManifestError,
    Plan,
    check_inputs,
    latest_manifest,
    publish_manifest,
)
from ..dataset.models import publish_model
from ..dataset.rows import SCHEMA_VERSION
from ..running.cluster import WorkerShape
from ..running.job import RunningOptions, Stop, run_job_tasks
from ..running.options import OptionError, check_codec_options
from ..running.progress.events import EventLog, job_log
from ..running.progress.summary import Problem, Summary, megabytes, ratio
from ..running.tasks import Outcome, Task
from ..sources.shards import Shard, expand_inputs
from ..stores.store import Store, storage_errors
from ..stores.urls import refuse_secrets
from .encoder import CompressSettings, KeepOriginal
from .worker import ShardCompressor, ShardJob

_UNFINISHED = (
    "the manifest cannot be written (what is committed stays, the same command goes on from there)"
)


@dataclass(frozen=True)
class CompressOptions(RunningOptions):
    """What the person asked for; see the job's --help.

    ``codec`` None means the model's, ``store_layers`` None means ``auto``. ``codec_options`` are
    those that were given of the codec's own options for encoding.
    """

    inputs: tuple[str, ...]
    output: str
    model: str
    codec: str | None = None
    store_layers: int | None = None
    lossless: bool = False
    codec_options: dict[str, Any] = field(default_factory=dict)
    min_side: int = 0
    max_pixels: int = MAX_PIXELS
    keep_original: KeepOriginal = "bad"
    min_psnr: float | None = None
    retry: Literal["bad"] | None = None
    max_bad_fraction: float = 0.5


def compress(options: CompressOptions, stop: Stop = lambda: "") -> Summary:
    """Compress shards into the dataset ``options.output``, doing only what is missing.

    ``stop`` is asked now and then whether to finish what is under way and end; it returns why.
    Raises StrataError (of some kind) for what must be put right before anything can be done:
    inputs, model, options, output, cluster. Bad samples and shards are in the summary instead.
    """
    refuse_secrets(*options.inputs, options.output, options.model)
    with job_log(options.log, "compress", options) as log:
        summary = _compress(options, stop, log)
        log.finish(summary)
        return summary


def _compress(options: CompressOptions, stop: Stop, log: EventLog) -> Summary:
    model = load_codec(options.model, device="cpu")
    plan = Plan(PLAN_NAME, _parameters(options, model))
    shards = expand_inputs(options.inputs, options.input_options)
    store = Store(options.output, options.output_options)
    ledger = Ledger(store, plan.fingerprint)
    with storage_errors(store.url, "cannot be written"):
        plan.check(store)
        number = latest_manifest(store)  # before the records: see publish_manifest
        done, lost = ledger.completed(DATA, SUFFIX)
        check_inputs(shards, done)
        create_only = _prepare_output(store, plan, model)
    names = {shard_name(shard, plan.fingerprint): shard for shard in shards}
    jobs = [ShardJob(name, shard) for name, shard in names.items() if name not in done]
    resumed = len(names) - len(jobs)
    if options.retry == "bad":
        again = [name for name in names if name in done and done[name]["bad"]]
        jobs += [
            ShardJob(name, names[name], done[name]["generation"] + 1, _data_path(done[name]))
            for name in again
        ]
        resumed -= len(again)

    summary = Summary("compressed", shards=len(shards), resumed=resumed)
    if not create_only:
        summary.notes.append(
            f"warning: {store.url} ignores create-only writes: run one job at a time on it"
        )
    summary.notes += [f"warning: {name} was damaged or lost and is done again" for name in lost]
    # The results are in the ledger.
    outcomes = run_shards(jobs, plan, options, summary, log, stop, keep_results=False)
    failures = {
        outcome.task.name: f"{outcome.error} (attempts: {outcome.attempts})"
        for outcome in outcomes
        if outcome.result is None
    }
    reread = bool(outcomes)  # this job has added records, and so may others have
    with storage_errors(store.url, _UNFINISHED):
        while True:
            if reread:
                del done  # not all records twice in memory
                number = latest_manifest(store)
                done, _ = ledger.completed(DATA, SUFFIX)
            summary.failed_shards = _failed_shards(names, failures, done, summary.stopped)
            if summary.stopped:
                break
            failed = [{"url": p.shard, "error": p.reason} for p in summary.failed_shards]
            try:
                number = publish_manifest(store, plan, done, failed, after=number)
            except NewerManifestError:
                reread = True
                continue
            summary.notes.append(f"{store.url}: manifest {number}, {len(done)} data files")
            break
    _summarise(summary, {name: done[name] for name in names if name in done})
    return summary


def _failed_shards(
    names: Mapping[str, Shard],
    failures: Mapping[str, str],
    done: Mapping[str, Any],
    stopped: str,
) -> list[Problem]:
    """The shards that could not be compressed, and those whose file has vanished since it was."""
    problems = [Problem(names[name].url, "", error) for name, error in failures.items()]
    if not stopped:  # else they may not have been begun
        lost = "its file was lost after it was recorded: run the job again"
        problems += [
            Problem(shard.url, "", lost)
            for name, shard in names.items()
            if name not in done and name not in failures
        ]
    return problems


def run_shards(
    jobs: Sequence[ShardJob],
    plan: Plan,
    options: CompressOptions,
    summary: Summary,
    log: EventLog,
    stop: Stop = lambda: "",
    *,
    keep_results: bool = True,
) -> Sequence[Outcome]:
    """Compress shards by a plan, on as many workers as there are; adds this run to the summary."""
    planned = plan.parameters

    def settings(shape: WorkerShape) -> CompressSettings:
        return CompressSettings(
            output=Store(options.output, options.output_options).url,
            fingerprint=plan.fingerprint,
            model_id=planned["model_id"],
            layers=planned["layers"],
            fit=planned["fit_source"],
            codec_options={**planned.get("codec_options", {}), **options.codec_options},
            min_side=planned["min_side"],
            max_pixels=planned["max_pixels"],
            keep_original=planned["keep_original"],
            min_psnr=planned["min_psnr"],
            batch_size=options.batch_size,
            device=shape.device,
            threads=shape.threads,
            scratch=options.scratch,
            input_options=options.input_options,
            output_options=options.output_options,
        )

    return run_job_tasks(
        "compressing",
        ShardCompressor,
        settings,
        {Task(job.name, (job,)): job.shard.size for job in jobs},
        options,
        summary,
        log,
        stop,
        max_bad_fraction=options.max_bad_fraction,
        keep_results=keep_results,
    )


def _data_path(record: Mapping[str, Any]) -> str:
    return data_path(generation_name(record["base"], record["generation"]))


def _parameters(options: CompressOptions, model: Codec) -> dict[str, Any]:
    """Everything that the dataset's bytes depend on."""
    layers, fit = _layers(options, model)
    if options.min_psnr is not None and options.keep_original not in ("larger", "always"):
        raise OptionError(
            f"--min-psnr {options.min_psnr:g}: needs --keep-original larger (or always), because a "
            "picture that stays below it is kept as its original"
        )
    where = f"the {model.codec} model {model.name}"
    check_codec_options(model, "encode", options.codec_options, where)
    # Absent when empty, so that archives from before codecs had options can be added to.
    planned = {
        name: value
        for name, value in options.codec_options.items()
        if name not in model.resource_options
    }
    chosen = {"codec_options": planned} if planned else {}
    return {
        "format": FORMAT_VERSION,
        "schema": SCHEMA_VERSION,
        "codec": model.codec,
        "model_id": model.model_id,
        "model_layers": model.num_layers,
        "layers": layers,
        "lossless": model.lossless and layers == model.num_layers and not fit,
        "fit_source": fit,
        "min_side": options.min_side,
        "max_pixels": options.max_pixels,
        "keep_original": options.keep_original,
        "min_psnr": options.min_psnr,
        **chosen,
    }


def _layers(options: CompressOptions, model: Codec) -> tuple[int, bool]:
    """The number of layer columns, and whether pictures drop layers to fit their file's size."""
    if options.codec not in (None, model.codec):
        raise OptionError(
            f"--codec {options.codec}: the model {options.model} is a {model.codec} model"
        )
    if options.lossless:
        if not model.lossless:
            raise OptionError(
                f"--lossless: the {model.codec} model {model.name} has no lossless layer"
            )
        if options.store_layers not in (None, model.num_layers):
            raise OptionError("--lossless keeps all layers: leave out --store-layers")
        return model.num_layers, False
    if options.store_layers is None:
        return model.archive_layers, True
    if not 1 <= options.store_layers <= model.num_layers:
        raise OptionError(
            f"--store-layers {options.store_layers}: the model {model.name} has "
            f"{model.num_layers} layers"
        )
    return options.store_layers, False


def _prepare_output(store: Store, plan: Plan, model: Codec) -> bool:
    """Write the plan and the model. Returns whether the store honours create-only writes."""
    create_only = plan.establish(store)
    publish_model(store, model.model_id, model.model_path)
    return create_only


def _summarise(summary: Summary, records: Mapping[str, Mapping[str, Any]]) -> None:
    totals: Counter[str] = Counter()
    for record in records.values():
        totals.update({key: record[key] for key in _ADDED})
        totals["tar_bytes"] += record["source"]["size"]
        summary.add_record(record, record["source"]["url"])
    if totals["pixels"]:
        picture, stream = totals["picture_bytes"], totals["stream_bytes"]
        summary.notes.append(
            f"pictures: {megabytes(picture)} -> {megabytes(stream)}, ratio "
            f"{ratio(picture, stream)}, {8 * stream / totals['pixels']:.3f} bpp"
        )
    if records:
        files = totals["bytes"]
        summary.notes.append(
            f"shards:   {megabytes(totals['tar_bytes'])} of tars -> {megabytes(files)} of Parquet "
            f"(side fields and metadata included), ratio {ratio(totals['tar_bytes'], files)}"
        )


_ADDED = ("pixels", "picture_bytes", "stream_bytes", "bytes")
