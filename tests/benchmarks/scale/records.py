"""What a hundred thousand and a million shards cost drivers and readers: time, memory, requests."""

import json
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from pipeline.compress.settings import CompressSettings
from pipeline.compress.worker import ShardCompressor, ShardJob
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.manifest_writer import publish_manifest
from pipeline.dataset.plan import Plan
from pipeline.dataset.records import Records, to_json
from pipeline.reader.dataset import open_dataset
from pipeline.sources.listing import expand_inputs
from pipeline.stores.store import Store
from tests.integration.servers import moto

from .corpus import write_shard
from .watching import load, say

LOCAL, REMOTE = (100_000, 1_000_000), 2_000
MODEL = "cdc-small"
_LINKS = 10_000  # inputs that are one file
PER_LISTING = 1000  # names that an object store lists in one request


def measure() -> dict[str, Any]:
    out: dict[str, Any] = {"load_before": load()}
    with tempfile.TemporaryDirectory(prefix="strata-records-") as name:
        folder = Path(name)
        record = _real_record(folder)
        out["record_bytes"] = len(to_json(record))
        for shards in LOCAL:
            _fill(folder / f"of-{shards}", record, shards)
            out[f"local_{shards}"] = _job_and_readers(str(folder / f"of-{shards}"), {}, shards)
        with moto() as server:
            fs = server.filesystem()
            _fill(folder / "few", record, REMOTE)
            fs.put(str(folder / "few"), "strata/few", recursive=True)
            out["moto"] = _job_and_readers(f"{server.url}/few", server.options(), REMOTE)
    return out


def _real_record(folder: Path) -> dict[str, Any]:
    """The commit record of five hundred pictures, as a worker writes it."""
    from codec import load_codec
    from codec.models.zoo import MODEL_FILE

    (shard,) = expand_inputs([str(write_shard(folder / "one.tar", 500, 64))])
    codec = load_codec(MODEL)
    store = Store(str(folder / "one"))
    store.create_from(f"models/{codec.model_id}/{MODEL_FILE}", codec.model_path)
    settings = CompressSettings(store.url, _plan().fingerprint, codec.model_id, 8)
    ShardCompressor(settings).run(ShardJob("one", shard))
    return dict(json.loads(store.read("commits/one.json")))


def _plan() -> Plan:
    return Plan("dataset.json", {"format": 1, "layers": 8, "model_id": "0" * 64})


def _fill(folder: Path, record: dict[str, Any], shards: int) -> None:
    """Inputs, data files and commit records of so many shards; data files without content.

    Each shard has keys of its own, as in a corpus that is sorted by key. The records are an hour
    old, all but one.
    """
    for name in ("in", "out/data", "out/commits"):
        (folder / name).mkdir(parents=True)
    _plan().establish(Store(str(folder / "out")))
    then, random = time.time() - 3600, Random(0)
    for number in range(shards):
        name = f"shard-{number:012x}"
        source = record["source"] | {"url": f"s3://some-bucket/some-folder/{name}.tar"}
        index = {"path": f"index/{name}.parquet", "key_min": name, "key_max": f"{name}~"}
        index["footer_crc32"] = random.getrandbits(32)
        one = record | {"name": name, "base": name, "source": source}
        one["sha256"] = random.randbytes(32).hex()
        one["footer_crc32"] = random.getrandbits(32)
        one["index"] = record["index"] | index
        tar = folder / "in" / f"{name}.tar"
        if number % _LINKS:
            os.link(folder / "in" / f"shard-{number - number % _LINKS:012x}.tar", tar)
        else:
            write_shard(tar, 1, 16)
        data = folder / "out" / "data" / f"{name}.parquet"
        data.touch()
        os.truncate(data, record["bytes"])
        commit = folder / "out" / "commits" / f"{name}.json"
        commit.write_bytes(to_json(one))
        if number:
            os.utime(commit, (then, then))


def _job_and_readers(url: str, options: dict[str, Any], shards: int) -> dict[str, Any]:
    """Each in a process of its own: what was in memory before must not hide what it needs."""
    steps = {"first": _first, "again": _again, "all": _all, "key": _key}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        told = {name: pool.apply(step, (url, options), {}) for name, step in steps.items()}
    files = Store(f"{url}/out", options).sizes
    kept = {"root": files(), "parts": files("manifests")}
    sizes = {name: round(sum(some.values()) / 1e6, 1) for name, some in kept.items()}
    return {"shards": shards, "manifest_mb": sizes, **told}


def _first(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """A driver that finds all done, and no manifest: after workers did everything."""
    store = Store(f"{url}/out", options)
    steps: Steps = {
        "expand_inputs": lambda _: expand_inputs([f"{url}/in"], options),
        "completed": lambda _: _completed(store),
        "publish_manifest": lambda done: publish_manifest(store, _plan(), done),
    }
    return _measured(steps)


def _again(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """The same job, started once more, that adds a data file."""
    store = Store(f"{url}/out", options)

    def one_more(done: Records) -> Records:
        record = next(iter(done.values()))
        name = "shard-ffffffffffff"
        source = record["source"] | {"url": "s3://some-bucket/some-folder/more.tar"}
        index = record["index"] | {"path": f"index/{name}.parquet"}
        done[name] = {**record, "name": name, "source": source, "index": index}
        return done

    steps: Steps = {
        "completed": lambda _: _completed(store),
        "one_more": one_more,
        "publish_manifest": lambda done: publish_manifest(store, _plan(), done),
    }
    return _measured(steps)


def _completed(store: Store) -> Records:
    return Ledger(store, _plan().fingerprint).completed("data", ".parquet")[0]


def _all(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """A reader that looks at every data file."""
    steps: Steps = {
        "open": lambda _: open_dataset(f"{url}/out", options),
        "every_file": lambda dataset: sum(file.rows for file in dataset.files),
    }
    return _measured(steps)


def _key(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """A reader that looks for the data file of a key."""
    steps: Steps = {
        "open": lambda _: open_dataset(f"{url}/out", options),
        "a_key": lambda dataset: [*dataset.files.having([f"shard-{99:012x}-x"])],
    }
    return _measured(steps)


Steps = dict[str, Callable[[Any], Any]]


def _measured(steps: Steps) -> dict[str, Any]:
    """Seconds, memory (MB, over what it takes to import everything) and requests of each step."""
    out: dict[str, Any] = {}
    before, requests, kept = _peak(), _counting(), None
    for name, step in steps.items():
        requests.clear()
        started, busy = time.perf_counter(), time.process_time()
        kept = step(kept)
        out[name] = {
            "seconds": round(time.perf_counter() - started, 2),
            "cpu_seconds": round(time.process_time() - busy, 2),
            "peak_mb_so_far": round((_peak() - before) / 1e6, 1),
            "requests": dict(requests),
        }
    return out


def _counting() -> Counter[str]:
    """Counts the requests that an object store would get, in all stores of this process."""
    requests: Counter[str] = Counter()
    read, create = Store.read, Store.create
    many, listing = Store.read_many, Store.listing

    def counted_listing(self: Store, folder: str = "") -> Iterator[Any]:
        for number, one in zip(count(), listing(self, folder), strict=False):
            requests["LIST"] += number % PER_LISTING == 0
            yield one

    def counted_many(self: Store, names: Iterable[str], *more: Any) -> Iterator[tuple[str, bytes]]:
        before = requests["GET"]
        for total, one in enumerate(many(self, names, *more), 1):
            requests["GET"] = before + total  # each of them may be counted below, too
            yield one

    def counted_read(self: Store, *arguments: Any) -> bytes:
        requests["GET"] += 1
        return read(self, *arguments)

    def counted_create(self: Store, *arguments: Any) -> bool:
        requests["PUT"] += 1
        return create(self, *arguments)

    Store.read, Store.create = counted_read, counted_create  # type: ignore[method-assign]
    Store.read_many, Store.listing = counted_many, counted_listing  # type: ignore[method-assign]
    return requests


def _peak() -> int:
    """Most bytes this process ever held (``getrusage`` counts its parent's, too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def table(figures: dict[str, Any]) -> None:
    say(f"a commit record has {figures['record_bytes']} bytes")
    for where, one in figures.items():
        if not isinstance(one, dict) or "shards" not in one:
            continue
        say(f"{where}, {one['shards']} shards, manifest {one['manifest_mb']} MB")
        for what in ("first", "again", "all", "key"):
            for step, told in one[what].items():
                asked = " ".join(f"{n} {kind}" for kind, n in told["requests"].items() if n)
                say(
                    f"  {what:6s} {step:18s} {told['seconds']:8.2f} s {told['cpu_seconds']:8.2f} s "
                    f"CPU {told['peak_mb_so_far']:8.1f} MB  {asked}"
                )
