"""Memory of driver and worker over a job of many small pictures: does anything pile up?"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.compress.job import CompressOptions, compress

from .corpus import repeat_shard, write_shards
from .sleeping import MODEL as SLEEPING_MODEL
from .sleeping import sleeping_workers
from .watching import ROOT, Sample, events, load, ray_with, say, watching

SHARDS, PICTURES, SIDE, MODEL = 20, 500, 64, "cdc-small"
MANY, FEW = 1000, 8  # shards, pictures in each
FLAT = 0.05  # of the middle third's peak


def measure() -> dict[str, Any]:
    return _many_pictures() | {"many_shards": _many_shards()}


def _many_shards() -> dict[str, Any]:
    """A codec that does nothing, so that the driver has as much to do as it can have."""
    with tempfile.TemporaryDirectory(prefix="strata-memory-") as name:
        folder = Path(name)
        inputs, log = repeat_shard(folder / "in", MANY, FEW, SIDE), folder / "log"
        with sleeping_workers(0), ray_with(2), watching(log) as watched:
            options = CompressOptions(
                (str(inputs),),
                str(folder / "out"),
                SLEEPING_MODEL,
                store_layers=1,
                workers=2,
                log=str(log),
            )
            summary = compress(options)
        assert summary.exit_code == 0, summary.lines()
        times = [event["time"] for event in events(log, "shard_done")]
    looks = [look for look in watched.driver if times[0] <= look.time <= times[-1]]
    shards = np.arange(1, len(times) + 1)
    figures = _summary(looks, times, shards, times[-1] - times[0])
    figures["growth_mb_per_1000_shards"] = figures.pop("growth_mb_per_1000_pictures")
    return {"shards": MANY, "shards_per_second": round(MANY / summary.seconds, 2)} | figures


def _many_pictures() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="strata-memory-") as name:
        folder = Path(name)
        inputs, log = write_shards(folder / "in", SHARDS, PICTURES, SIDE), folder / "log"
        command = [sys.executable, "jobs/compress_dataset.py", "--model", MODEL, "--workers", "1"]
        paths = ["--input", str(inputs), "--output", str(folder / "out"), "--log", str(log)]
        busy = load()
        with watching(log) as watched:
            subprocess.run(
                [*command, *paths],
                cwd=ROOT,
                check=True,
                timeout=3000,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        done = events(log, "shard_done")
        (ready,) = events(log, "worker_ready")
        (end,) = events(log, "job_finished")
    times = [ready["time"], *(event["time"] for event in done)]
    pictures = np.cumsum([0, *(event["rows"] for event in done)])
    seconds = times[-1] - times[0]
    out: dict[str, Any] = {
        "pictures": int(pictures[-1]),
        "images_per_second": round(end["new_samples"] / end["seconds"], 1),
        "load_before": busy,
    }
    for who, looks in (("driver", watched.driver), ("worker", watched.workers[0])):
        kept = [look for look in looks if times[0] <= look.time <= times[-1]]
        out[who] = _summary(kept, times, pictures, seconds)
    return out


def _summary(
    looks: Sequence[Sample], times: Sequence[float], pictures: np.ndarray, seconds: float
) -> dict[str, Any]:
    when = np.array([look.time for look in looks])
    megabytes = np.array([look.resident for look in looks]) / 1e6
    part = np.minimum(2, (3 * (when - times[0]) / seconds).astype(int))
    peaks = [float(megabytes[part == third].max()) for third in range(3)]
    done = np.interp(when, times, pictures)
    late = done > pictures[-1] / 5
    slope = np.polyfit(done[late] / 1000, megabytes[late], 1)[0]
    return {
        "peak_mb_by_third": [round(peak, 1) for peak in peaks],
        "growth_mb_per_1000_pictures": round(float(slope), 3),
        "flat": peaks[2] <= (1 + FLAT) * peaks[1],
    }


def table(figures: dict[str, Any]) -> None:
    say(f"{figures['pictures']} pictures, {figures['images_per_second']} images/s")
    say("             peak MB, first / middle / last third   MB per 1,000 pictures")
    for who in ("driver", "worker"):
        one = figures[who]
        peaks = " / ".join(f"{peak:7.1f}" for peak in one["peak_mb_by_third"])
        say(
            f"  {who:10s} {peaks}               {one['growth_mb_per_1000_pictures']:+.3f}   "
            f"{'flat' if one['flat'] else 'GROWS'}"
        )
    many = figures["many_shards"]
    say(
        f"driver of {many['shards']} shards: {many['growth_mb_per_1000_shards']:+.2f} MB per 1,000 "
        f"shards, {many['shards_per_second']} shards/s"
    )
