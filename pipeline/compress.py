"""The compressing job from the driver's side: plan, run what is missing, manifest, summary."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from codec import Codec, load_codec
from codec.images import MAX_PIXELS
from codec.zoo import CARD_FILE, MODEL_FILE, card_file

from . import cluster
from .commit import FORMAT_VERSION, Ledger, Plan, check_inputs, publish_manifest, shard_name
from .dataset import PLAN_NAME
from .options import OptionError, check_codec_options
from .progress import Problem, ProgressBar, Summary, megabytes, ratio
from .records import SCHEMA_VERSION
from .scheduler import Outcome, Policy, Task, run_tasks
from .shards import Shard, expand_inputs
from .storage import Store, scratch_folder, storage_errors
from .worker import CompressSettings, ShardCompressor


@dataclass(frozen=True)
class CompressOptions:
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
    batch_size: int = 32
    device: str = "auto"
    workers: int | None = None
    address: str | None = None
    policy: Policy = field(default_factory=Policy)
    scratch: str | None = None


def compress(options: CompressOptions) -> Summary:
    """Compress shards into the dataset ``options.output``, doing only what is missing.

    Raises StrataError (of some kind) for what must be put right before anything can be done:
    inputs, model, options, output, cluster. Bad samples and shards are in the summary instead.
    """
    model = load_codec(options.model, device="cpu")
    plan = Plan(PLAN_NAME, _parameters(options, model))
    shards = expand_inputs(options.inputs)
    store = Store(options.output)
    ledger = Ledger(store, plan.fingerprint)
    with storage_errors(store.url, "cannot be written"):
        plan.check(store)
        check_inputs(shards, ledger.records())
        create_only = _prepare_output(store, plan, model)
        done, lost = ledger.completed("data", ".parquet")
    names = {shard_name(shard, plan.fingerprint): shard for shard in shards}
    missing = {name: shard for name, shard in names.items() if name not in done}

    summary = Summary("compressed", shards=len(shards), resumed=len(names) - len(missing))
    if not create_only:
        summary.notes.append(
            f"warning: {store.url} ignores create-only writes: run one job at a time on it"
        )
    summary.notes += [f"warning: {name} was damaged or lost and is done again" for name in lost]
    if missing:
        with scratch_folder(options.scratch) as scratch:
            outcomes = _run(replace(options, scratch=str(scratch)), plan, missing, summary)
        for outcome in outcomes:
            if outcome.result is not None:
                done[outcome.task.name] = outcome.result
            else:
                url = names[outcome.task.name].url
                problem = Problem(url, "", f"{outcome.error} (attempts: {outcome.attempts})")
                summary.failed_shards.append(problem)
    number = publish_manifest(store, plan, done)
    _summarise(summary, {name: done[name] for name in names if name in done})
    summary.notes.append(f"{store.url}: manifest {number}, {len(done)} data files")
    return summary


def _parameters(options: CompressOptions, model: Codec) -> dict[str, Any]:
    """Everything that the dataset's bytes depend on."""
    layers, fit = _layers(options, model)
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
    folder = f"models/{model.model_id}"
    store.create_from(f"{folder}/{MODEL_FILE}", model.model_path)
    card = card_file(model.model_path)
    if card.is_file():
        store.create_from(f"{folder}/{CARD_FILE}", card)
    return create_only


def _run(
    options: CompressOptions, plan: Plan, missing: Mapping[str, Shard], summary: Summary
) -> list[Outcome]:
    cluster.connect(options.address)
    shape = cluster.share(options.workers, options.device, len(missing))
    settings = CompressSettings(
        output=Store(options.output).url,
        fingerprint=plan.fingerprint,
        model_id=plan.parameters["model_id"],
        layers=plan.parameters["layers"],
        fit=plan.parameters["fit_source"],
        codec_options=options.codec_options,
        min_side=options.min_side,
        max_pixels=options.max_pixels,
        batch_size=options.batch_size,
        device=shape.device,
        threads=shape.threads,
        scratch=options.scratch,
    )
    tasks = [Task(name, (name, shard)) for name, shard in missing.items()]
    bar = ProgressBar({name: shard.size for name, shard in missing.items()})

    def on_progress(new: list[Outcome], under_way: dict[str, dict[str, Any]]) -> None:
        for outcome in new:
            result = outcome.result or {}
            bar.finish_shard(outcome.task.name, {**result, "samples": result.get("rows", 0)})
        bar.show(under_way)

    try:
        outcomes = run_tasks(
            ShardCompressor, settings, tasks, shape, options.policy, on_progress, on_ready=bar.start
        )
    finally:
        bar.close()
    summary.seconds = time.monotonic() - bar.started
    summary.new_samples = sum((o.result or {}).get("rows", 0) for o in outcomes)
    return outcomes


def _summarise(summary: Summary, records: Mapping[str, Mapping[str, Any]]) -> None:
    totals: Counter[str] = Counter()
    for record in records.values():
        totals.update({key: record[key] for key in _ADDED})
        totals["tar_bytes"] += record["source"]["size"]
        summary.reasons.update(record["reasons"])
        for key, status, reason in record["problems"]:
            if status == "bad":
                summary.problems.append(Problem(record["source"]["url"], key, reason))
    summary.ok, summary.bad, summary.filtered = totals["ok"], totals["bad"], totals["filtered"]
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


_ADDED = ("ok", "bad", "filtered", "pixels", "picture_bytes", "stream_bytes", "bytes")
