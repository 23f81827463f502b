"""What copying a data file with its streams cut short reads, writes and takes of a processor.

    python tests/benchmarks/distribution.py

Streams are random bytes of five layers (0.3, 0.9, 2.5, 7 and 30 KB), on a file system that counts.
"""

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.decode.copy_worker import ShardCopier
from pipeline.decode.dataset_worker import HandOutSettings
from pipeline.decode.layer_rule import LayerRule
from pipeline.decode.request import DecodeOptions
from tests.pipeline.counting import CountingFileSystem
from tests.pipeline.streams import rows, write_dataset

PICTURES, LAYERS = 1000, 5
FEW = tuple(f"k{number:05d}" for number in range(0, PICTURES, 50))
CASES = {
    "--layers 1": (LayerRule(LAYERS, 1), None),
    "--layers 2": (LayerRule(LAYERS, 2), None),
    "--max-bytes 4000": (LayerRule(LAYERS, max_bytes=4000), None),
    "all layers": (LayerRule(LAYERS, LAYERS), None),
    f"--keys, {len(FEW)} of them, all layers": (LayerRule(LAYERS, LAYERS), FEW),
}


def main() -> None:
    keys = [f"k{number:05d}" for number in range(PICTURES)]
    dataset = write_dataset("counting://bucket/set", [rows(keys)])
    print("| what | streams copied, MB | read, MB | requests | ms of a core per picture |")
    print("|---|---|---|---|---|")
    first = next(iter(CASES.items()))
    for round, (name, (rule, chosen)) in enumerate([first, *CASES.items()]):
        with tempfile.TemporaryDirectory() as output:
            options = DecodeOptions(dataset.url, output)
            worker = ShardCopier(HandOutSettings(options, "f", rule))
            worker.ready()
            CountingFileSystem.requests.clear()
            started = time.process_time()
            record = worker.run("x-0123456789ab", dataset.files[0], chosen)
            spent = time.process_time() - started
        if not round:  # the first one also loads code
            continue
        read = CountingFileSystem.bytes_read(".parquet")
        print(
            f"| `{name}` | {record['stream_bytes'] / 1e6:.2f} | {read / 1e6:.2f} | "
            f"{len(CountingFileSystem.requests)} | {1e3 * spent / record['rows']:.2f} |"
        )


if __name__ == "__main__":
    main()
