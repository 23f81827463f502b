"""How to share two cores: one worker with one thread, one with two, or two with one each."""

import tempfile
from pathlib import Path
from typing import Any

from pipeline.compress.job import CompressOptions

from .corpus import write_shards
from .watching import ray_with, say
from .workers import run

MODEL, ROUNDS = "cdc-small", 2
# side: shards, pictures in each
CASES = {64: (16, 256), 256: (8, 64)}
SHARES = {
    "one worker, one thread": (1, 1),
    "one worker, two threads": (1, 2),
    "two workers, one thread each": (2, 2),
}


def measure() -> dict[str, Any]:
    """In turns; of each the faster round, because what else the machine does only slows down."""
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="strata-cores-") as name:
        for side, (shards, pictures) in CASES.items():
            folder = Path(name) / str(side)
            inputs = write_shards(folder / "in", shards, pictures, side)
            best: dict[str, dict[str, Any]] = {}
            for number in range(ROUNDS):
                for share, (workers, cpus) in SHARES.items():
                    output = folder / f"{workers}-{cpus}-{number}"
                    options = CompressOptions(
                        (str(inputs),), str(output), MODEL, workers=workers, log=f"{output}.log"
                    )
                    with ray_with(cpus):
                        figures = run(options, workers)
                    before = best.get(share, figures)
                    best[share] = max(figures, before, key=lambda one: one["images_per_second"])
            alone = best["one worker, one thread"]["images_per_second"]
            for figures in best.values():
                figures["times_one_thread"] = round(figures["images_per_second"] / alone, 2)
            out[f"{MODEL} {side}x{side}"] = best
    return out


def table(figures: dict[str, Any]) -> None:
    for what, shares in figures.items():
        say(f"{what}: images/s, times one thread")
        for share, one in shares.items():
            say(f"  {share:30s} {one['images_per_second']:9.2f} {one['times_one_thread']:7.2f}")
