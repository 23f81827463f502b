"""The compressing job from the driver's side: plan, run what is missing, manifest, summary."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from codec import Codec, load_codec
from codec.images.files import MAX_PIXELS
from codec.images.packing import PACKAGE, can_pack

from ..dataset.job import Records, run_dataset_job
from ..dataset.layout import PLAN_NAME, data_path, generation_name, shard_name
from ..dataset.ledger import FORMAT_VERSION, Plan, as_recorded, check_inputs
from ..dataset.models import publish_model
from ..dataset.part_lists import Planner
from ..dataset.rows import SCHEMA_VERSION
from ..running.job import RunningOptions, Stop, run_job_tasks
from ..running.options import OptionError, check_codec_options
from ..running.progress.events import EventLog, job_log
from ..running.progress.summary import Summary, megabytes, plural, ratio
from ..running.tasks import Outcome, Task
from ..sources.base import Columns, Shard
from ..sources.kinds import InputFormat
from ..sources.listing import find_inputs
from ..sources.samples import MAX_SAMPLE_BYTES, SIDE_FIELDS
from ..stores.store import Store
from ..stores.urls import refuse_secrets
from .settings import SAVE_SECONDS, CompressSettings, KeepOriginal
from .worker import ShardCompressor, ShardJob


@dataclass(frozen=True)
class CompressOptions(RunningOptions):
    """See ``jobs/compress_dataset.py --help``.

    ``codec`` None means the model's, ``store_layers`` None means ``auto``. ``codec_options`` are
    those that were given of the codec's own options for encoding.
    """

    inputs: tuple[str, ...]
    output: str
    model: str
    input_format: InputFormat | None = None
    image_column: str | None = None
    key_column: str | None = None
    codec: str | None = None
    store_layers: int | None = None
    lossless: bool = False
    codec_options: dict[str, Any] = field(default_factory=dict)
    min_side: int = 0
    max_pixels: int = MAX_PIXELS
    max_sample_bytes: int = MAX_SAMPLE_BYTES
    keep_original: KeepOriginal = "bad"
    min_psnr: float | None = None
    retry: Literal["bad"] | None = None
    max_bad_fraction: float = 0.5
    save_seconds: float = SAVE_SECONDS


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
    store = Store(options.output, options.output_options)
    columns = Columns(options.image_column, options.key_column)
    found = find_inputs(options.inputs, options.input_options, options.input_format, columns)
    log.write("inputs_found", inputs=found.lines())
    for line in found.lines():
        print(line, file=sys.stderr, flush=True)
    model = load_codec(options.model, device="cpu")  # after what takes less time to be refused
    plan = Plan(PLAN_NAME, _parameters(options, model))
    names: dict[str, Shard] = {}
    summary = Summary("compressed", notes=list(found.notes))

    def sources(done: Records) -> Mapping[str, str]:
        shards = as_recorded(found.shards, done)
        if found.folders:
            planner = Planner(store, found.folders)
            shards += planner.shards(done)
            summary.notes += planner.notes
        check_inputs(shards, done)
        names.update((shard_name(shard, plan.fingerprint), shard) for shard in shards)
        summary.shards = len(names)
        return {name: shard.url for name, shard in names.items()}

    def run(done: Records) -> Sequence[Outcome]:
        jobs = [ShardJob(name, shard) for name, shard in names.items() if name not in done]
        again = [name for name in names if name in done and done[name]["bad"]]
        if options.retry != "bad":
            again = []
        summary.resumed = len(names) - len(jobs) - len(again)
        jobs += [
            ShardJob(name, names[name], done[name]["generation"] + 1, _data_path(done[name]))
            for name in again
        ]
        return run_shards(
            jobs,
            plan,
            store.url,
            options,
            summary,
            log,
            stop,
            codec_options=options.codec_options,
            max_bad_fraction=options.max_bad_fraction,
            save_seconds=options.save_seconds,
            keep_results=False,  # they are in the ledger
        )

    records = run_dataset_job(
        store,
        plan,
        sources,
        run,
        summary,
        publish_model=lambda: publish_model(store, model.model_id, model.model_path),
    )
    _summarise(summary, records)
    if options.keep_original in ("larger", "always") and not can_pack():
        summary.notes.append(
            "originals that are JPEG files are kept as they are: they would be some 20 % smaller "
            f"with {PACKAGE} (pip install {PACKAGE})"
        )
    return summary


def run_shards(
    jobs: Sequence[ShardJob],
    plan: Plan,
    output: str,
    options: RunningOptions,
    summary: Summary,
    log: EventLog,
    stop: Stop = lambda: "",
    *,
    codec_options: Mapping[str, Any] | None = None,
    max_bad_fraction: float = 0.5,
    save_seconds: float = SAVE_SECONDS,
    keep_results: bool = True,
) -> Sequence[Outcome]:
    """Compress shards into the dataset ``output``, by its plan; adds this run to the summary.

    ``codec_options`` are given in addition to the plan's.
    """
    if not jobs:
        return []
    planned = plan.parameters
    settings = CompressSettings(
        output=output,
        fingerprint=plan.fingerprint,
        model_id=planned["model_id"],
        layers=planned["layers"],
        fit=planned["fit_source"],
        codec_options={**planned.get("codec_options", {}), **(codec_options or {})},
        min_side=planned["min_side"],
        max_pixels=planned["max_pixels"],
        max_sample_bytes=planned.get("max_sample_bytes", MAX_SAMPLE_BYTES),
        keep_original=planned["keep_original"],
        min_psnr=planned["min_psnr"],
        columns=Columns(**planned.get("columns", {})),
        save_seconds=save_seconds,
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
        max_bad_fraction=max_bad_fraction,
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
    # Absent when empty, so that archives from before there were these options can be added to.
    planned = {
        name: value
        for name, value in options.codec_options.items()
        if name not in model.resource_options
    }
    chosen: dict[str, Any] = {"codec_options": planned} if planned else {}
    if options.max_sample_bytes != MAX_SAMPLE_BYTES:
        chosen["max_sample_bytes"] = options.max_sample_bytes
    columns = {"image": options.image_column, "key": options.key_column}
    if any(columns.values()):
        chosen["columns"] = columns
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


def _summarise(summary: Summary, records: Mapping[str, Mapping[str, Any]]) -> None:
    totals: Counter[str] = Counter()
    for record in records.values():
        totals.update({key: record[key] for key in _ADDED})
        totals["side_pictures"] += record.get("side_pictures", 0)
        totals["tar_bytes"] += record["source"]["size"]
        summary.add_record(record, record["source"]["url"])
    if totals["pixels"]:
        picture, stream = totals["picture_bytes"], totals["stream_bytes"]
        summary.notes.append(
            f"pictures: {megabytes(picture)} -> {megabytes(stream)}, ratio "
            f"{ratio(picture, stream)}, {8 * stream / totals['pixels']:.3f} bpp"
        )
    if totals["side_pictures"]:
        summary.notes.append(
            f"warning: {plural(totals['side_pictures'], 'picture')} not encoded but kept as files, "
            f"{SIDE_FIELDS}"
        )
    if records:
        files = totals["bytes"]
        summary.notes.append(
            f"shards:   {megabytes(totals['tar_bytes'])} of input -> {megabytes(files)} of Parquet "
            f"(side fields and metadata included), ratio {ratio(totals['tar_bytes'], files)}"
        )


_ADDED = ("pixels", "picture_bytes", "stream_bytes", "bytes")
