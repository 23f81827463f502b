"""How a job's speed grows with its workers: where processors do not limit."""

import tempfile
from pathlib import Path
from typing import Any

from pipeline.compress.job import CompressOptions, compress

from .corpus import repeat_shard
from .sleeping import MODEL, sleeping_workers
from .watching import events, load, ray_with, say

SECONDS = 0.1  # of sleep for each picture
PICTURES = 50  # of 64x64 in a shard
# Enough shards for each number of workers: starting sixteen of them on two cores takes a minute.
SHARDS = {1: 20, 2: 40, 16: 16 * 60}


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="strata-workers-") as name:
        folder = Path(name)
        asleep = {str(count): _asleep(folder / f"asleep-{count}", count) for count in SHARDS}
    return {"seconds_per_picture": SECONDS, "asleep": _ratios(asleep)}


def _asleep(folder: Path, workers: int) -> dict[str, Any]:
    inputs = repeat_shard(folder / "in", SHARDS[workers], PICTURES, 64)
    with sleeping_workers(SECONDS), ray_with(16):
        options = CompressOptions(
            (str(inputs),),
            str(folder / "out"),
            MODEL,
            store_layers=1,
            workers=workers,
            batch_size=10,
            log=str(folder / "log"),
        )
        return run(options, workers)


def run(options: CompressOptions, workers: int) -> dict[str, Any]:
    """A whole job; its speed from the moment its first worker is ready."""
    busy = load()
    summary = compress(options)
    assert summary.exit_code == 0, summary.lines()
    log = Path(options.log or "")
    ready = [event["time"] for event in events(log, "worker_ready")]
    assert len(ready) == workers, ready
    figures = {
        "images": summary.new_samples,
        "seconds": round(summary.seconds, 1),
        "images_per_second": round(summary.new_samples / summary.seconds, 2),
        "seconds_from_first_to_last_worker": round(max(ready) - min(ready), 1),
        "load_before": busy,
    }
    say(f"  {workers} workers: {figures}")
    return figures


def _ratios(runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    alone = runs["1"]["images_per_second"]
    return {
        workers: one | {"times_one_worker": round(one["images_per_second"] / alone, 2)}
        for workers, one in runs.items()
    }


def table(figures: dict[str, Any]) -> None:
    say("workers, images/s, times one worker")
    for workers, one in figures["asleep"].items():
        say(f"  {workers:>3s} {one['images_per_second']:9.2f} {one['times_one_worker']:7.2f}")
