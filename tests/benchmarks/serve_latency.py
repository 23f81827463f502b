#!/usr/bin/env python
"""Latency of previews over HTTP: several clients, every picture another one, the server warm.

    python tests/benchmarks/serve_latency.py                  # Ray Serve, as jobs/serve_previews.py
    python tests/benchmarks/serve_latency.py --server uvicorn # the same application alone
    python tests/benchmarks/serve_latency.py --soak 10000     # memory over mixed requests, 5 % bad

The pictures are 768x512: Kodak's (from the folder of shared data) or, without them, smooth noise.
Every request is for another picture or another size (256 pixels, 255, ...), so that no answer comes
out of a cache. Processor time by stage is what the server's own /metrics say; "rest" is what its
processes used besides (HTTP, routing, the event loop, the codec's other threads; on Ray Serve, its
proxy is another process, shown as "proxy"). Clients run on the same machine, and take of the same
processors.
"""

import argparse
import http.client
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from codec.images.files import write_image
from pipeline.reader.dataset import Dataset, open_dataset
from tests.codec.small_models import noise_pictures
from tests.integration.conftest import free_port
from tests.integration.processes import descendants
from tests.pipeline.makers import write_tar
from tests.pipeline.serving.datasets import write_dataset

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
SHARED = Path(os.environ.get("STRATA_SHARED", ROOT.parent / "shared"))
FIGURES_EVERY = 6.0  # seconds: a replica of Serve tells the others so often
TICKS = os.sysconf("SC_CLK_TCK")


def make_dataset(folder: Path, model: str, count: int, layers: int) -> Dataset:
    """A dataset of pictures of 768x512, with its first ``layers`` layers."""
    shard = SHARED / "data" / "dev" / "kodak-000000.tar"
    if not shard.exists():
        pictures = noise_pictures(count, 768)[:, :, :512].permute(0, 2, 3, 1).numpy()
        files = [(f"noise{n:02d}.png", write_image(x)) for n, x in enumerate(pictures)]
        shard = write_tar(folder / "noise.tar", files)
    return write_dataset(str(folder / "archive"), [shard], model, layers=layers)


@contextmanager
def server(
    kind: str, dataset: str, threads: int | None, replicas: int | None
) -> Iterator[tuple[int, int]]:
    """Its port, and the process below which everything runs."""
    port = free_port()
    environment = os.environ | {"STRATA_DATASET": dataset, "PYTHONPATH": str(ROOT)}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0"}
    if kind == "uvicorn":
        command = ["-m", "uvicorn", "--factory", "pipeline.serving.local:app"]
        command += ["--port", str(port), "--no-access-log", "--log-level", "warning"]
        environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    else:
        command = [str(ROOT / "jobs" / "serve_previews.py"), "--input", dataset]
        command += ["--port", str(port)]
        command += ["--replicas", str(replicas)] if replicas else []
        command += ["--cpus-per-replica", str(threads)] if threads else []
    process = subprocess.Popen([sys.executable, *command], env=environment)
    try:
        for _ in range(1200):
            try:
                if get(http.client.HTTPConnection(HOST, port, timeout=5), "/healthz")[0] == 200:
                    break
            except OSError:
                time.sleep(0.1)
            if process.poll() is not None:
                raise SystemExit("the server has ended")
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def get(connection: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def clients(port: int, count: int, paths: list[str]) -> tuple[list[float], Counter[int], float]:
    """Seconds of every request, the statuses, and the seconds that all took together."""
    seconds: list[float] = []
    statuses: Counter[int] = Counter()
    left, lock = iter(paths), threading.Lock()

    def run() -> None:
        connection = http.client.HTTPConnection(HOST, port, timeout=120)
        while True:
            with lock:
                path = next(left, None)
            if path is None:
                return
            started = time.perf_counter()
            status, _ = get(connection, path)
            with lock:
                seconds.append(time.perf_counter() - started)
                statuses[status] += 1

    started = time.perf_counter()
    running = [threading.Thread(target=run) for _ in range(count)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    return seconds, statuses, time.perf_counter() - started


def figures(port: int) -> dict[str, float]:
    """What /metrics say, of all replicas together."""
    time.sleep(FIGURES_EVERY)
    _, text = get(http.client.HTTPConnection(HOST, port, timeout=30), "/metrics")
    total: Counter[str] = Counter()
    for line in text.decode().splitlines():
        if line[0] != "#":
            name, value = line.rsplit(" ", 1)
            name = re.sub(r'replica="\w+",?', "", name).replace(",}", "}").replace("{}", "")
            total[name] += float(value)  # type: ignore[assignment]
    return total  # type: ignore[return-value]


def processor_seconds(root: int, name: str) -> float:
    """Of the processes at and below ``root`` whose command line has ``name``."""
    total = 0
    for pid in [root, *descendants(root)]:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if name in command:
            total += int(numbers[11]) + int(numbers[12])
    return total / TICKS


def resident(root: int) -> float:
    """MiB of the largest process at or below ``root`` that holds a model."""
    sizes = []
    for pid in [root, *descendants(root)]:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
        if b"ServeReplica" in command or b"uvicorn" in command:
            sizes.append(pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20))
    return max(sizes, default=0.0)


def latency(port: int, pid: int, keys: list[str], given: argparse.Namespace) -> None:
    def path(number: int) -> str:
        turn, which = divmod(number, len(keys))
        side = given.max_side - turn
        return f"/v1/images/{quote(keys[which], safe='')}?layers={given.layers}&max_side={side}"

    clients(port, given.clients, [path(number) for number in range(len(keys))])  # to warm up
    replica = "uvicorn" if given.server == "uvicorn" else "ServeReplica"
    before = figures(port)
    cpu = processor_seconds(pid, replica), processor_seconds(pid, "ProxyActor")
    paths = [path(len(keys) + number) for number in range(given.requests)]
    seconds, statuses, wall = clients(port, given.clients, paths)
    after = figures(port)
    total = processor_seconds(pid, replica) - cpu[0]
    proxy = processor_seconds(pid, "ProxyActor") - cpu[1]
    ms = 1000 * np.quantile(seconds, [0.5, 0.9, 0.99, 1.0])
    print(f"{given.server}: {len(seconds)} requests of {given.clients} clients, {dict(statuses)}")
    print("latency in ms: p50 {:.0f}, p90 {:.0f}, p99 {:.0f}, most {:.0f}".format(*ms), end="; ")
    print(f"{len(seconds) / wall:.1f} requests a second")
    stages: dict[str, float] = {}
    for stage in ("find", "read", "decode", "write"):
        name = f'strata_preview_stage_cpu_seconds_total{{stage="{stage}"}}'
        stages[stage] = after.get(name, 0) - before.get(name, 0)
    stages["rest"] = total - sum(stages.values())
    stages["proxy"] = proxy
    parts = ", ".join(f"{name} {1000 * each / len(seconds):.1f}" for name, each in stages.items())
    print(f"processor ms a request: {1000 * (total + proxy) / len(seconds):.1f} ({parts})")
    batches = after["strata_preview_batch_pictures_count"]
    batches -= before["strata_preview_batch_pictures_count"]
    print(f"{len(seconds) / batches:.2f} pictures a batch; resident {resident(pid):.0f} MiB")


def soak(port: int, pid: int, keys: list[str], given: argparse.Namespace) -> None:
    """Mixed requests, of which 5 % are bad; the memory after each tenth."""
    random.seed(0)

    def path() -> str:
        key = quote(random.choice(keys), safe="")
        if random.random() < 0.05:
            return random.choice(
                [
                    f"/v1/images/{random.random()}",
                    f"/v1/images/{key}?layers=99",
                    f"/v1/images/{key}?max_side=1",
                    f"/v1/images/{key}?format=exe",
                    f"/v1/images?after={random.random()}",
                    "/v1/images/%FF%00..%2F..%2F",
                    "/static/..%2Fapp.py",
                    f"/nothing/{random.random()}",
                ]
            )
        return random.choices(
            [
                f"/v1/images/{key}?layers=1&max_side={random.randint(16, 256)}"
                f"&format={random.choice(['webp', 'jpeg', 'png'])}",
                f"/v1/images/{key}?layers=1&max_side=256",
                f"/v1/images/{key}/info",
                f"/v1/images?limit={random.randint(1, 100)}&search={random.choice('km019')}",
                "/v1/dataset",
                "/metrics",
                f"/v1/originals/{key}",
            ],
            [4, 6, 4, 3, 1, 1, 1],
        )[0]

    print(f"{'requests':>9} {'resident MiB':>13} {'of it cache':>12}  statuses")
    tenth = given.soak // 10
    total: Counter[int] = Counter()
    for part in range(11):
        cache = figures(port)["strata_preview_cache_bytes"] / (1 << 20)
        print(f"{part * tenth:>9} {resident(pid):>13.1f} {cache:>12.1f}", end="  ")
        print(json.dumps(dict(total)), flush=True)
        if part < 10:
            _, statuses, _ = clients(port, given.clients, [path() for _ in range(tenth)])
            total += statuses


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", choices=["serve", "uvicorn"], default="serve")
    parser.add_argument("--input", help="a dataset that is there already")
    parser.add_argument("--model", default="uqdm")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--max-side", type=int, default=256)
    parser.add_argument("--threads", type=int, help="of each replica (default: the server's)")
    parser.add_argument("--replicas", type=int, help="default: the job's")
    parser.add_argument("--soak", type=int, default=0, metavar="REQUESTS")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.input:
            dataset = open_dataset(given.input)
        else:
            dataset = make_dataset(Path(folder), given.model, 24, given.layers)
        keys = list(itertools.islice(dataset.keys(), 1000))
        with server(given.server, dataset.url, given.threads, given.replicas) as (port, pid):
            (soak if given.soak else latency)(port, pid, keys, given)


if __name__ == "__main__":
    main()
