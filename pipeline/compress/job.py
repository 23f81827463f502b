"""The driver of a compress job: writes the plan, runs what is missing, writes the manifest."""

import sys
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from codec import Codec, load_codec
from codec.images.files import MAX_PIXELS
from codec.images.perception import can_judge

from ..dataset.job import run_dataset_job
from ..dataset.layout import (
    DATA,
    FORMAT_VERSION,
    INDEX,
    PLAN_NAME,
    data_path,
    generation_name,
    shard_name,
)
from ..dataset.ledger import as_recorded, check_inputs
from ..dataset.models import publish_model
from ..dataset.part_lists import Planner
from ..dataset.plan import Plan
from ..dataset.records import Records, list_command
from ..dataset.rows import SCHEMA_VERSION
from ..running.job import RunningOptions, Stop, run_job_tasks
from ..running.options import OptionError, check_codec_options
from ..running.outputs import refuse_output_in_inputs
from ..running.progress.events import EventLog, job_log
from ..running.progress.summary import Summary
from ..running.tasks import Outcome, Task
from ..sources.base import Columns, Shard
from ..sources.kinds import InputFormat
from ..sources.listing import Inputs, expand_braces, find_inputs
from ..sources.samples import MAX_SAMPLE_BYTES
from ..stores.store import Store
from ..stores.urls import refuse_secrets
from .keeping import PREVIEW_LAYERS
from .quality import target_quality
from .settings import SAVE_SECONDS, CompressSettings, KeepOriginal, StoreLayers
from .summary import CompressSummary, add_totals
from .worker import ShardCompressor, ShardJob


@dataclass(frozen=True)
class CompressOptions(RunningOptions):
    """See ``strata compress --help``.

    ``codec`` None means the model's. ``store_layers`` is a number, or "fit": the most layers that
    are not larger than the picture's file. None means the fewest layers that reach
    ``target_quality`` (a SSIMULACRA2, "80", or a PSNR, "38dB"), or else the model's
    ``archive_layers``. ``codec_options`` are the given options of the codec for encoding.
    """

    inputs: tuple[str, ...]
    output: str
    model: str
    input_format: InputFormat | None = None
    image_column: str | None = None
    key_column: str | None = None
    codec: str | None = None
    store_layers: StoreLayers = None
    lossless: bool = False
    codec_options: dict[str, Any] = field(default_factory=dict)
    min_side: int = 0
    max_pixels: int = MAX_PIXELS
    max_sample_bytes: int = MAX_SAMPLE_BYTES
    keep_original: KeepOriginal = "larger"
    target_quality: str | None = None
    retry: Literal["bad"] | None = None
    max_bad_fraction: float = 0.5
    save_seconds: float = SAVE_SECONDS


def compress(options: CompressOptions, stop: Stop = lambda: "") -> CompressSummary:
    """Compress shards into the dataset ``options.output``, doing only what is missing.

    The job ends early, after its running tasks, when ``stop`` returns a reason. Raises StrataError
    before it starts if inputs, model, options, output or cluster must be corrected. Bad samples and
    shards are in the summary.
    """
    refuse_secrets(*options.inputs, options.output, options.model)
    with job_log(options.log, "compress", options) as log:
        summary = _compress(options, stop, log)
        log.finish(summary)
        return summary


def _compress(options: CompressOptions, stop: Stop, log: EventLog) -> CompressSummary:
    found, store = inputs_of(options), Store(options.output, options.output_options)
    log.write("inputs_found", inputs=found.lines())
    more = "; the summary says what is left out" if found.notes else ""
    print(f"{found.lines()[0]}{more}", file=sys.stderr, flush=True)
    model = load_codec(options.model, device="cpu")  # after the checks that take less time
    plan = Plan(PLAN_NAME, planned_parameters(options, model))
    names: dict[str, Shard] = {}
    summary = CompressSummary("compressed", notes=list(found.notes))

    def sources(done: Records, lost: Records) -> Mapping[str, str]:
        shards = as_recorded(found.shards, ChainMap[str, dict[str, Any]](done, lost))
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
    add_totals(summary, records, plan.parameters)
    summary.lists_all = list_command(store.url)
    return summary


def inputs_of(options: CompressOptions) -> Inputs:
    """See ``find_inputs``. Raises OptionError if the output lies in the inputs."""
    store = Store(options.output, options.output_options)
    urls = expand_braces(options.inputs)
    refuse_output_in_inputs(store, (DATA, INDEX), urls, options.input_options)
    columns = Columns(options.image_column, options.key_column)
    return find_inputs(options.inputs, options.input_options, options.input_format, columns)


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
    settings = replace(
        settings_of(plan.parameters, codec_options),
        output=output,
        fingerprint=plan.fingerprint,
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


def settings_of(
    planned: Mapping[str, Any], codec_options: Mapping[str, Any] | None = None
) -> CompressSettings:
    """The workers' settings in a plan; ``codec_options`` are added to the plan's."""
    target = planned["target_quality"]
    return CompressSettings(
        output="",
        fingerprint="",
        model_id=planned["model_id"],
        layers=planned["layers"],
        store_layers=planned["store_layers"],
        lossless=planned["lossless"],
        codec_options={**planned.get("codec_options", {}), **(codec_options or {})},
        min_side=planned["min_side"],
        max_pixels=planned["max_pixels"],
        max_sample_bytes=planned.get("max_sample_bytes", MAX_SAMPLE_BYTES),
        keep_original=planned["keep_original"],
        target_quality=target and target_quality(target),
        columns=Columns(**planned.get("columns", {})),
    )


def _data_path(record: Mapping[str, Any]) -> str:
    return data_path(generation_name(record["base"], record["generation"]))


def planned_parameters(options: CompressOptions, model: Codec) -> dict[str, Any]:
    """Everything that the dataset's bytes depend on."""
    layers, store_layers = _layers(options, model)
    target = _target(options)
    where = f"the {model.codec} model {model.name}"
    check_codec_options(model, "encode", options.codec_options, where)
    # Absent if empty, so that a plan depends only on the options that were given.
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
        "store_layers": store_layers,
        "lossless": model.lossless and store_layers == model.num_layers,
        "min_side": options.min_side,
        "max_pixels": options.max_pixels,
        "keep_original": options.keep_original,
        "target_quality": target,
        **chosen,
    }


def _layers(options: CompressOptions, model: Codec) -> tuple[int, StoreLayers]:
    """The number of layer columns, and how many layers each picture stores."""
    if options.codec not in (None, model.codec):
        raise OptionError(
            f"--codec {options.codec}: the model {options.model} is a {model.codec} model"
        )
    given = options.store_layers
    if options.lossless:
        if not model.lossless:
            raise OptionError(
                f"--lossless: the {model.codec} model {model.name} has no lossless layer"
            )
        if given not in (None, model.num_layers):
            raise OptionError("--lossless keeps all layers: leave out --store-layers")
        return model.num_layers, model.num_layers
    if given == "fit":
        if options.target_quality is not None:
            raise OptionError("--target-quality: leave out --store-layers fit, or give a number")
        return model.archive_layers, "fit"
    if isinstance(given, int) and not 1 <= given <= model.num_layers:
        raise OptionError(
            f"--store-layers {given}: the model {model.name} has {model.num_layers} layers"
        )
    if options.keep_original == "always":
        # All columns exist, so that readers who want more layers than are stored get the original.
        preview = None if options.target_quality else PREVIEW_LAYERS
        return max(model.archive_layers, given or 0), given or preview
    if given is None:
        all_layers = None if options.target_quality else model.archive_layers
        return model.archive_layers, all_layers
    return given, given


def _target(options: CompressOptions) -> str | None:
    """``--target-quality`` in the spelling of plans."""
    if options.target_quality is None:
        return None
    try:
        target = target_quality(options.target_quality)
    except ValueError as error:
        raise OptionError(f"--target-quality {error}") from None
    if not target.decibels and not can_judge():
        raise OptionError(
            f"--target-quality {target}: SSIMULACRA2 is not installed (pip install ssimulacra2); "
            "a PSNR can be asked for without it, such as 38dB"
        )
    return str(target)
