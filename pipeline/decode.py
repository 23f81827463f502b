"""The decoding job from the driver's side: plan, run what is missing, summary."""

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from . import cluster
from .commit import Ledger, Plan
from .dataset import DataFile, open_dataset
from .decoder import COMMITS, DecodeSettings, ShardDecoder
from .options import OptionError, check_codec_options
from .progress import Problem, ProgressBar, Summary
from .scheduler import Outcome, Policy, Task, run_tasks
from .storage import Store, scratch_folder, storage_errors

PLAN_NAME = ".strata/decode.json"


@dataclass(frozen=True)
class DecodeOptions:
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
    batch_size: int = 32
    device: str = "auto"
    workers: int | None = None
    address: str | None = None
    policy: Policy = field(default_factory=Policy)
    scratch: str | None = None


def decode(options: DecodeOptions) -> Summary:
    """Decode a dataset into tars or files, doing only what is missing.

    Raises StrataError for what must be put right before anything can be done; bad samples and
    shards are in the summary instead.
    """
    dataset = open_dataset(options.dataset)
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
    store = Store(options.output)
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
    missing = [file for file in dataset.files if file.name not in done]
    summary.resumed = len(dataset.files) - len(missing)
    if missing:
        with scratch_folder(options.scratch) as scratch:
            own = replace(options, scratch=str(scratch))
            outcomes = _run(own, plan, layers, missing, summary)
        for outcome in outcomes:
            if outcome.result is not None:
                done[outcome.task.name] = outcome.result
            else:
                problem = f"{outcome.error} (attempts: {outcome.attempts})"
                summary.failed_shards.append(Problem(outcome.task.name, "", problem))
    for file in dataset.files:
        if file.name in done:
            _add(summary, file, done[file.name])
    return summary


def _run(
    options: DecodeOptions, plan: Plan, layers: int, missing: list[DataFile], summary: Summary
) -> list[Outcome]:
    cluster.connect(options.address)
    shape = cluster.share(options.workers, options.device, len(missing))
    settings = DecodeSettings(
        dataset=Store(options.dataset).url,
        output=Store(options.output).url,
        fingerprint=plan.fingerprint,
        layers=layers,
        format=options.format,
        image_format=options.image_format,
        codec_options=options.codec_options,
        quality=options.quality,
        batch_size=options.batch_size,
        device=shape.device,
        threads=shape.threads,
        scratch=options.scratch,
    )
    bar = ProgressBar({file.name: file.bytes for file in missing})

    def on_progress(new: list[Outcome], under_way: dict[str, dict[str, Any]]) -> None:
        for outcome in new:
            bar.finish_shard(outcome.task.name, {"samples": (outcome.result or {}).get("rows", 0)})
        bar.show(under_way)

    tasks = [Task(file.name, (file,)) for file in missing]
    try:
        outcomes = run_tasks(
            ShardDecoder, settings, tasks, shape, options.policy, on_progress, on_ready=bar.start
        )
    finally:
        bar.close()
    summary.seconds = time.monotonic() - bar.started
    summary.new_samples = sum((o.result or {}).get("rows", 0) for o in outcomes)
    return outcomes


def _add(summary: Summary, file: DataFile, record: dict[str, Any]) -> None:
    summary.ok += record["ok"]
    summary.bad += record["bad"]
    summary.filtered += record["filtered"]
    reasons: Counter[str] = Counter()
    for key, status, reason in record["problems"]:
        reasons[reason.split(":", 1)[0]] += 1
        if status == "bad":
            summary.problems.append(Problem(file.record["source"]["url"], key, reason))
    summary.reasons += reasons
