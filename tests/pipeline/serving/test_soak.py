"""Memory over many requests, good and bad. tests/benchmarks/serve_latency.py --soak does more."""

import gc
import random
import tracemalloc
from pathlib import Path

from pipeline.reader.dataset import Dataset
from tests.pipeline.serving.conftest import Client, url

REQUESTS = 150  # in each part; what leaks, leaks in every request


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_memory_stays_as_it_is(dataset: Dataset, connect: Client) -> None:
    client = connect(dataset, cache_bytes=64_000)  # full long before the first part ends
    keys = list(dataset.keys())
    chance = random.Random(0)

    def some_requests() -> None:
        for _ in range(REQUESTS):
            key = chance.choice(keys)
            kind = chance.random()
            if kind < 0.05:
                bad = [url(key, layers=99), url(f"{chance.random()}"), "/v1/images?after=x", "/no"]
                assert 400 <= client.get(chance.choice(bad)).status_code < 500
            elif kind < 0.8:
                layers, side = chance.randint(1, 4), chance.randint(16, 64)
                format = chance.choice(["webp", "jpeg", "png"])
                address = url(key, layers=layers, max_side=side, format=format)
                assert client.get(address).status_code == 200
            elif kind < 0.9:
                assert client.get(url(key).replace("?", "/info")).status_code == 200
            else:
                assert client.get("/v1/images?limit=5").status_code == 200
        gc.collect()

    some_requests()
    tracemalloc.start()
    try:
        some_requests()
        before, settled = tracemalloc.get_traced_memory()[0], resident()
        some_requests()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 50_000, "a third of a kilobyte is kept of each request"
    assert resident() - settled < 24 << 20
