"""What the job adds to the codec, for some kinds of work (``pipeline_overhead.py``)."""

from typing import Any

from tests.benchmarks.pipeline_overhead import TARGET
from tests.benchmarks.pipeline_overhead import measure as measure_one

from .watching import say

# model, side, pictures: half a minute each
CASES = (("uqdm", 64, 512), ("uqdm", 256, 64), ("cdc-small", 64, 4096), ("cdc-small", 256, 256))
ROUNDS = 3


def measure() -> dict[str, Any]:
    out = {}
    for model, side, count in CASES:
        say(f"{model} at {side}x{side}")
        out[f"{model} {side}x{side}"] = measure_one(model, side, count, ROUNDS)
    return out


def table(figures: dict[str, Any]) -> None:
    say("                        codec      job  images/s    kept: clock   processor time")
    for name, one in figures.items():
        ok = "" if one["kept_by_the_clock"] >= TARGET else f"   below {TARGET:.0%}"
        say(
            f"{name:20s} {one['codec_images_per_second']:8.2f} {one['job_images_per_second']:8.2f}"
            f"{one['kept_by_the_clock']:23.1%} {one['kept_by_processor_time']:16.1%}{ok}"
        )
