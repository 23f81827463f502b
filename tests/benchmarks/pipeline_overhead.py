"""How much of the codec's speed the whole job keeps: images/s with one worker, start-up aside.

    python tests/benchmarks/pipeline_overhead.py [--model NAME] [--side N] [--count N] [--rounds N]

The same shards, batches and number of threads for both, taking turns; the ratio is the median over
the rounds. On a machine that does other things as well, wall-clock times say little; the processor
time per image is printed beside them. Exit code 1 when the job keeps less than 90 %.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from codec import Codec, load_codec  # noqa: E402
from codec.batches import batches_by_size  # noqa: E402
from codec.models.zoo import DEFAULT_MODELS  # noqa: E402
from pipeline.compress.encoder import CPU_BATCH_PIXELS  # noqa: E402
from pipeline.compress.job import CompressOptions, compress  # noqa: E402
from tests.benchmarks.scale.corpus import crops, write_shards  # noqa: E402
from tests.benchmarks.scale.watching import events, load, ray_with, say, watching  # noqa: E402

TARGET = 0.9
SHARDS = 4


@dataclass(frozen=True)
class Cost:
    """Seconds per image, of wall clock and of processor time; busy stages as shares of the time."""

    wall: float
    cpu: float
    stages: dict[str, float]


def bare(codec: Codec, shards: int, count: int, side: int, batch_size: int) -> Cost:
    """``Codec.encode`` alone, on the pictures of the shards, decoded beforehand."""
    wall = cpu = 0.0
    for shard in range(shards):
        images = list(crops(count, side, shard * count))
        sizes = [i.shape[:2] for i in images]
        batches = list(batches_by_size(sizes, batch_size, CPU_BATCH_PIXELS))
        started, cpu_started = time.perf_counter(), time.process_time()
        for batch in batches:
            codec.encode([images[number] for number in batch], layers=codec.archive_layers)
        wall += time.perf_counter() - started
        cpu += time.process_time() - cpu_started
    return Cost(wall / shards / count, cpu / shards / count, {})


def job(model: str, inputs: Path, output: Path, batch_size: int) -> Cost:
    """The whole job, from the moment the worker has loaded its model to the last commit."""
    log = output.with_suffix(".log")
    options = CompressOptions(
        (str(inputs),), str(output), model, workers=1, batch_size=batch_size, log=str(log)
    )
    with watching(log, 0.1) as watched:
        summary = compress(options)
    assert summary.exit_code == 0, summary.lines()
    images = summary.new_samples
    stages = {summary.slowest_stage: round(summary.slowest_share, 3)}
    return Cost(summary.seconds / images, watched.cpu() / images, stages)


def measure(
    model: str, side: int, count: int, rounds: int, batch_size: int = 32
) -> dict[str, object]:
    """``count`` pictures of ``side`` pixels in four shards, in turns: codec, job, codec, ...

    Each job is compared with the mean of the codec before and after it.
    """
    threads = len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    busy = load()
    each = count // SHARDS
    with tempfile.TemporaryDirectory(prefix="strata-overhead-") as name, ray_with(threads):
        folder = Path(name)
        inputs = write_shards(folder / "in", SHARDS, each, side)
        codec = load_codec(model)
        bare(codec, 1, min(each, batch_size), side, batch_size)  # the first calls are slower
        alone = [bare(codec, SHARDS, each, side, batch_size)]
        whole: list[Cost] = []
        for number in range(rounds):
            whole.append(job(model, inputs, folder / f"set-{number}", batch_size))
            alone.append(bare(codec, SHARDS, each, side, batch_size))
            say(f"  codec {alone[-1]}, job {whole[-1]} (seconds per image)")
        done = events(folder / "set-0.log", "shard_done")
    streams = sum(event["stream_bytes"] for event in done)
    turns = list(zip(alone, alone[1:], whole, strict=False))
    wall = [(before.wall + after.wall) / 2 / between.wall for before, after, between in turns]
    cpu = [(before.cpu + after.cpu) / 2 / between.cpu for before, after, between in turns]
    return {
        "images": SHARDS * each,
        "rounds": rounds,
        "codec_images_per_second": round(1 / median(cost.wall for cost in alone), 2),
        "job_images_per_second": round(1 / median(cost.wall for cost in whole), 2),
        "kept_by_the_clock": round(median(wall), 3),
        "kept_by_processor_time": round(median(cpu), 3),
        "job_processor_seconds": round(min(cost.cpu for cost in whole), 4),  # of an image
        "rounds_by_the_clock": [round(kept, 3) for kept in wall],
        "bits_per_pixel": round(8 * streams / (SHARDS * each * side**2), 4),
        "row_bytes": round((sum(event["bytes"] for event in done) - streams) / (SHARDS * each), 1),
        "load_before": busy,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODELS["uqdm"])
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--count", type=int, default=256, help="pictures in all")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    figures = measure(options.model, options.side, options.count, options.rounds)
    for name, value in figures.items():
        say(f"{name:26s} {value}")
    kept = figures["kept_by_the_clock"]
    assert isinstance(kept, float)
    return 0 if kept >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
