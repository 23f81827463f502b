"""What training gets: pictures/s of StrataImages, encoded and decoded, beside the codec alone.

    python tests/benchmarks/loading.py [--model NAME] [--layers K] [--count N] [--workers N]

A dataset of ``count`` crops is written first, unless ``--dataset URL`` names one. ``reading`` hands
streams on without decoding: what the order, Parquet and hand-over cost. ``codec`` decodes streams
that lie in memory, 32 at once; ``decoding`` is all of it in this process, ``workers`` in a
DataLoader of so many. On a busy machine wall-clock times say little; processor time per picture of
this process is beside them.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from torch.utils.data import DataLoader  # noqa: E402

from codec import load_codec  # noqa: E402
from codec.images.files import write_image  # noqa: E402
from pipeline import StrataImages, open_dataset  # noqa: E402
from tests.benchmarks.scale.corpus import crops  # noqa: E402
from tests.pipeline.makers import write_tar  # noqa: E402
from tests.recipes.writing import write_dataset  # noqa: E402

BATCH = 32


def write(folder: Path, model: str, count: int, side: int) -> str:
    codec = load_codec(model)
    names = (f"{number:06d}.png" for number in range(count))
    files = [
        (n, write_image(x, None, "png")) for n, x in zip(names, crops(count, side), strict=True)
    ]
    shard = write_tar(folder / "x.tar", files)
    return write_dataset([str(shard)], str(folder / "set"), codec, codec.archive_layers).url


def measure(name: str, run: Callable[[], Iterable[object]], pictures: int) -> None:
    started, processor = time.perf_counter(), time.process_time()
    for _ in run():
        pass
    wall = time.perf_counter() - started
    cpu = time.process_time() - processor
    print(f"{name:<12} {pictures / wall:10.1f} images/s {1e3 * cpu / pictures:10.2f} ms of a core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset")
    parser.add_argument("--model", default="uqdm")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="strata-loading-") as folder:
        url = given.dataset or write(Path(folder), given.model, given.count, given.side)
        dataset = open_dataset(url)
        pictures, layers, codec = len(dataset), given.layers, dataset.codec(given.device)
        streams = [record.encoded for record in islice(dataset.read(layers), 10 * BATCH)]

        def images(encoded: bool = False) -> StrataImages:
            return StrataImages(
                url,
                layers,
                shuffle_buffer=500,
                batch_size=BATCH,
                encoded=encoded,
                device="cpu" if encoded else given.device,
            )

        def alone() -> Iterable[object]:
            for start in range(0, len(streams), BATCH):
                yield codec.decode(streams[start : start + BATCH])

        codec.decode(streams[:BATCH])  # the first call of a model is slower
        print(f"{pictures} pictures, {layers} layer(s), {given.device}")
        measure("reading", lambda: images(encoded=True), pictures)
        measure("codec", alone, len(streams))
        measure("decoding", images, pictures)
        if given.workers and given.device == "cpu":
            loader = DataLoader(images(), batch_size=None, num_workers=given.workers)
            measure(f"{given.workers} worker(s)", lambda: loader, pictures)


if __name__ == "__main__":
    main()
