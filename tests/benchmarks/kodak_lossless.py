"""Kodak through the whole job with --lossless: every row, every prefix of layers, bytes read.

    python tests/benchmarks/kodak_lossless.py [--shard TAR] [--model NAME] [--pictures N]

Prints a table (layers, bpp, PSNR, bytes read against bytes needed) and exits with 1 unless all
rows are there, every prefix decodes, the last layer is exact and no reading of k layers costs more
than 110 % of these columns and the footer. Needs a WebDataset tar of pictures; by default Kodak's
from STRATA_SHARED or ../shared.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from codec import Codec, EncodedImage  # noqa: E402
from codec.images.files import read_image  # noqa: E402
from codec.models.zoo import DEFAULT_MODELS  # noqa: E402
from pipeline import Dataset, open_dataset  # noqa: E402
from pipeline.compress.job import CompressOptions, compress  # noqa: E402
from pipeline.dataset.rows import column_bytes, stream_columns  # noqa: E402
from pipeline.running import cluster  # noqa: E402
from pipeline.sources.listing import expand_inputs  # noqa: E402
from pipeline.sources.shards import open_shard  # noqa: E402
from tests.pipeline.counting import CountingFileSystem  # noqa: E402
from tests.pipeline.makers import write_tar  # noqa: E402

ALLOWED = 1.1


def default_shard() -> Path:
    shared = Path(os.environ.get("STRATA_SHARED", ROOT.parent / "shared"))
    return shared / "data" / "dev" / "kodak-000000.tar"


def load(shard: Path, count: int, folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """The first ``count`` pictures, as a shard of their own and as arrays by key."""
    files: list[tuple[str, bytes]] = []
    pictures: dict[str, np.ndarray] = {}
    (found,) = expand_inputs([str(shard)])
    with open_shard(found, folder) as opened:
        for sample in opened.samples[:count]:
            for name, member in sample.fields:
                files.append((member.name, opened.read(member)))
                if name == sample.image_field:
                    pictures[sample.key] = read_image(files[-1][1]).rgb
    return write_tar(folder / shard.name, files), pictures


def counted_copy(dataset: Dataset) -> Dataset:
    """The same dataset on the file system that counts what is read."""
    fs = CountingFileSystem()
    fs.put(dataset.url, "counting://kodak", recursive=True)
    return open_dataset("counting://kodak")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shard", type=Path, default=default_shard())
    parser.add_argument("--model", default=DEFAULT_MODELS["uqdm"])
    parser.add_argument("--pictures", type=int, default=10**6, help="only the first N")
    options = parser.parse_args()
    if not options.shard.is_file():
        parser.error(f"{options.shard} is not there: name a tar with --shard")
    with tempfile.TemporaryDirectory() as folder:
        shard, originals = load(options.shard, options.pictures, Path(folder))
        try:
            summary = compress(
                CompressOptions(
                    (str(shard),),
                    f"{folder}/set",
                    options.model,
                    lossless=True,
                    keep_original="bad",
                    workers=1,
                )
            )
        finally:
            cluster.disconnect()
        summary.print()
        dataset = open_dataset(f"{folder}/set")
        return 0 if check(counted_copy(dataset), originals) and not summary.exit_code else 1


def check(dataset: Dataset, originals: dict[str, np.ndarray]) -> bool:
    """Print the table; whether everything holds."""
    sound = list(dataset.keys()) == list(originals)
    codec = dataset.codec()
    (file,) = dataset.files
    with fsspec.open(f"{dataset.url}/{file.path}") as opened:
        columns = column_bytes(pq.read_metadata(opened))
    whole = {record.key: record.encoded for record in dataset.read()}
    errors = progressive_errors(codec, whole, originals)
    pixels = sum(image.shape[0] * image.shape[1] for image in originals.values())
    print("layers     bpp    PSNR      read    needed")
    for layers in range(1, dataset.num_layers + 1):
        again = open_dataset(dataset.url)  # an open one keeps the footer
        CountingFileSystem.requests.clear()
        records = list(again.read(layers))
        read = CountingFileSystem.bytes_read(".parquet")
        needed = file.footer_bytes + sum(columns[name] for name in stream_columns(layers))
        bits = 8 * sum(record.encoded.nbytes for record in records)
        error = errors[layers - 1]
        quality = f"{10 * np.log10(255**2 / error):.2f}" if error else "exact"
        print(f"{layers:6d} {bits / pixels:7.3f} {quality:>7} {read:9d} {needed:9d}", flush=True)
        sound &= needed <= read <= ALLOWED * needed and len(records) == len(originals)
        sound &= all(r.encoded == whole[r.key].truncate(layers) for r in records)
    return bool(sound and not errors[-1])


def progressive_errors(
    codec: Codec, streams: dict[str, EncodedImage], originals: dict[str, np.ndarray]
) -> list[float]:
    """Mean squared error after each layer, each picture weighing the same."""
    errors = np.zeros(codec.num_layers)
    for key, stream in streams.items():
        for layer, (image,) in enumerate(codec.decode_progressively([stream])):
            errors[layer] += np.square(image.astype(float) - originals[key]).mean()
    return list(errors / len(originals))


if __name__ == "__main__":
    sys.exit(main())
