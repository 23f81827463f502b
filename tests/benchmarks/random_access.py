"""Measures reading a thousand pictures of ten thousand by key, over S3, against a scan.

    python tests/benchmarks/random_access.py

The dataset is ten files of a thousand pictures with five layers, 300 bytes to 30 KB; their keys are
in no order, so that every index may hold every key. It lies behind ``range_server.py``, which
answers each request after ``--delay`` seconds, at ``--rate`` bytes per second, and counts. Every
way is timed from a dataset that was just opened, so that fetching includes reading the indexes. The
figures go into docs/results/random-access.json.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.dataset.manifest import Manifest  # noqa: E402
from pipeline.reader.dataset import Dataset, open_dataset  # noqa: E402
from tests.benchmarks.range_server import BUCKET, serving  # noqa: E402
from tests.pipeline.streams import SIZES, rows, write_dataset  # noqa: E402

RESULTS = ROOT / "docs" / "results" / "random-access.json"
SHARDS, PICTURES, WANTED = 10, 1000, 1000


def without_index(dataset: Dataset) -> Dataset:
    files = [{k: v for k, v in file.record.items() if k != "index"} for file in dataset.files]
    plan = {"parameters": dataset.parameters, "fingerprint": dataset.fingerprint}
    return Dataset(dataset.store, plan, Manifest.of({"files": files, "totals": dataset.totals}))


def measure(delay: float, rate: float, repeats: int) -> dict[str, Any]:
    keys = [f"{number:08x}" for number in random.Random(0).sample(range(1 << 32), 10 * PICTURES)]
    wanted = random.Random(1).sample(keys, WANTED)
    with tempfile.TemporaryDirectory() as folder:
        shards = [rows(keys[n::SHARDS], seed=n) for n in range(SHARDS)]
        made = write_dataset(f"{folder}/set", shards)
        total = sum(file.bytes for file in made.files)
        indexes = sum(file.index["bytes"] for file in made.files if file.index)
        with serving(Path(folder), delay, rate) as (endpoint, counted):
            options = {"key": "x", "secret": "x", "endpoint_url": endpoint}

            def opened() -> Dataset:
                return open_dataset(f"s3://{BUCKET}/set", options)

            chosen = set(wanted)
            ways: dict[str, Callable[[Dataset], int]] = {
                "fetch, first layer": lambda d: sum(1 for _ in d.fetch(wanted, 1)),
                "fetch, all layers": lambda d: sum(1 for _ in d.fetch(wanted)),
                "fetch without index, first layer": lambda d: sum(
                    1 for _ in without_index(d).fetch(wanted, 1)
                ),
                "scan, first layer": lambda d: sum(r.key in chosen for r in d.read(1)),
                "scan, all layers": lambda d: sum(r.key in chosen for r in d.read()),
            }
            figures: dict[str, Any] = {}
            for name, way in ways.items():
                runs = []
                for _ in range(repeats):
                    dataset = opened()
                    counted()
                    started, busy = time.perf_counter(), time.process_time()
                    assert way(dataset) == WANTED
                    seconds, busy = time.perf_counter() - started, time.process_time() - busy
                    runs.append((seconds, busy, *counted()))
                seconds, busy, requests, nbytes = sorted(runs)[len(runs) // 2]
                figures[name] = {
                    "seconds": round(seconds, 3),
                    "processor_seconds": round(busy, 3),
                    "requests": requests,
                    "megabytes": round(nbytes / 1e6, 2),
                }
                told = f"{seconds:8.2f} s {busy:8.2f} s of processor {requests:6} requests"
                print(f"{name:34} {told} {nbytes / 1e6:9.2f} MB")
            single = one_by_one(opened(), wanted[:100], counted)
            print(f"one by one: {single}")
    return {
        "delay_seconds": delay,
        "megabytes_per_second": rate / 1e6,
        "pictures": len(keys),
        "wanted": WANTED,
        "files": SHARDS,
        "layer_bytes": list(SIZES),
        "dataset_megabytes": round(total / 1e6, 1),
        "index_bytes_per_picture": round(indexes / len(keys), 1),
        "ways": figures,
        "one_by_one": single,
    }


def one_by_one(
    dataset: Dataset, keys: list[str], counted: Callable[[], tuple[int, int]]
) -> dict[str, Any]:
    """First layers of single pictures, once the indexes are loaded: what a preview waits for."""
    dataset.lookup.find(keys)
    entries = [dataset.locate(key) for key in keys]
    own = sum(entry.lengths[0] for entry in entries if entry is not None)
    counted()
    times = []
    for key in keys:
        started = time.perf_counter()
        list(dataset.fetch([key], 1))
        times.append(time.perf_counter() - started)
    requests, nbytes = counted()
    return {
        "milliseconds_median": round(1000 * sorted(times)[len(times) // 2], 1),
        "requests_each": requests / len(keys),
        "bytes_each": nbytes / len(keys),
        "bytes_of_the_layers": own / len(keys),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--delay", type=float, default=0.03, help="seconds (default: %(default)s)")
    parser.add_argument(
        "--rate", type=float, default=80e6, help="bytes per second of a connection (default: 80e6)"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--machine", default="two cores of a cloud machine")
    options = parser.parse_args()
    figures = measure(options.delay, options.rate, options.repeats)
    kept = {"machine": options.machine, "load": round(os.getloadavg()[0], 1), **figures}
    options.results.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
