"""How much of the codec's speed the whole job keeps: images/s with one worker, start-up aside.

    python tests/benchmarks/pipeline_overhead.py [--shard TAR] [--model NAME] [--rounds N]

The same shard, batches and number of threads for both, taking turns. On a machine that does other
things as well, wall-clock times say little; the processor time per image is printed beside them.
Exit code 1 when both are below 85 %.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from codec import Codec, load_codec  # noqa: E402
from codec.images import read_image, write_image  # noqa: E402
from codec.zoo import DEFAULT_MODELS  # noqa: E402
from pipeline import cluster  # noqa: E402
from pipeline.compress import CompressOptions, compress  # noqa: E402
from pipeline.dataset import open_dataset  # noqa: E402
from pipeline.pictures import batches_by_size  # noqa: E402
from pipeline.shards import expand_inputs, open_shard  # noqa: E402
from pipeline.worker import BATCH_PIXELS  # noqa: E402
from tests.pipeline.makers import write_tar  # noqa: E402

TARGET = 0.85


def make_shard(path: Path, count: int, side: int) -> Path:
    """Crops of a public-domain photograph that scikit-image bundles."""
    from skimage import data

    photo = data.astronaut()
    files = []
    for number in range(count):
        top, left = 37 * number % (512 - side), 101 * number % (512 - side)
        crop = photo[top : top + side, left : left + side]
        files.append((f"{number:05d}.png", write_image(crop, None, "png")))
        files.append((f"{number:05d}.json", b'{"n": %d}' % number))
    return write_tar(path, files)


@dataclass(frozen=True)
class Cost:
    """Seconds per image, of wall clock and of processor time."""

    wall: float
    cpu: float


def bare(codec: Codec, shard: Path, batch_size: int) -> Cost:
    """``Codec.encode`` alone; pictures are read and decoded beforehand."""
    (found,) = expand_inputs([str(shard)])
    with open_shard(found, shard.parent) as opened:
        images = [
            read_image(opened.read(dict(sample.fields)[sample.image_field or ""])).rgb
            for sample in opened.samples
        ]
    batches = list(batches_by_size([i.shape[:2] for i in images], batch_size, BATCH_PIXELS))
    started, cpu_started = time.perf_counter(), time.process_time()
    for batch in batches:
        codec.encode([images[number] for number in batch], layers=codec.archive_layers)
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    return Cost(wall / len(images), cpu / len(images))


def job(model: str, shard: Path, output: Path, batch_size: int) -> Cost:
    """The whole job, from the moment the worker has loaded its model to the last commit."""
    summary = compress(
        CompressOptions((str(shard),), str(output), model, workers=1, batch_size=batch_size)
    )
    assert summary.exit_code == 0, summary.lines()
    (file,) = open_dataset(str(output)).files
    return Cost(summary.seconds / file.rows, file.record["cpu_seconds"] / file.rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shard", type=Path, help="a tar (default: 96 crops of 64x64)")
    parser.add_argument("--model", default=DEFAULT_MODELS["uqdm"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    with tempfile.TemporaryDirectory() as folder:
        shard = options.shard or make_shard(Path(folder) / "crops.tar", 96, 64)
        codec = load_codec(options.model)
        alone: list[Cost] = []
        whole: list[Cost] = []
        cluster.connect(None)
        try:
            for number in range(options.rounds):
                alone.append(bare(codec, shard, options.batch_size))
                output = Path(folder) / f"set-{number}"
                whole.append(job(options.model, shard, output, options.batch_size))
                print(f"codec {alone[-1]}, job {whole[-1]} (seconds per image)", flush=True)
            alone.append(bare(codec, shard, options.batch_size))
        finally:
            cluster.disconnect()
    wall = mean(cost.wall for cost in alone) / mean(cost.wall for cost in whole)
    cpu = mean(cost.cpu for cost in alone) / mean(cost.cpu for cost in whole)
    print(
        f"codec {1 / mean(cost.wall for cost in alone):.2f} images/s, "
        f"job {1 / mean(cost.wall for cost in whole):.2f} images/s\n"
        f"the job keeps {wall:.0%} of the codec's speed by the clock, {cpu:.0%} by processor time "
        f"(target {TARGET:.0%})"
    )
    return 0 if max(wall, cpu) >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
