"""What a hundred thousand shards cost the driver: listing them, going on, and the manifest."""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.compress.settings import CompressSettings
from pipeline.compress.worker import ShardCompressor, ShardJob
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.manifest_writer import publish_manifest
from pipeline.dataset.plan import Plan
from pipeline.dataset.records import to_json
from pipeline.sources.listing import expand_inputs
from pipeline.stores.store import Store
from tests.integration.servers import moto

from .corpus import write_shard
from .watching import load, say

LOCAL, REMOTE = 100_000, 2_000
MODEL = "cdc-small"


def measure() -> dict[str, Any]:
    out: dict[str, Any] = {"load_before": load()}
    with tempfile.TemporaryDirectory(prefix="strata-records-") as name:
        folder = Path(name)
        record = _real_record(folder)
        out["record_bytes"] = len(to_json(record))
        _fill(folder / "many", record, LOCAL)
        out["local"] = {"shards": LOCAL} | _apart(_driver, str(folder / "many"), {})
        manifest = next((folder / "many" / "out").glob("manifest-*.json"))
        out["local"]["manifest_mb"] = round(manifest.stat().st_size / 1e6, 1)
        with moto() as server:
            fs = server.filesystem()
            _fill(folder / "few", record, REMOTE)
            fs.put(str(folder / "few"), "strata/few", recursive=True)
            out["moto"] = {"shards": REMOTE} | _apart(
                _driver, f"{server.url}/few", server.options()
            )
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
    return Plan("dataset.json", {"measured": True})


def _fill(folder: Path, record: dict[str, Any], count: int) -> None:
    """Inputs, data files and commit records of ``count`` shards; the first two without content."""
    for name in ("in", "out/data", "out/commits"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        name = f"shard-{number:06d}"
        source = record["source"] | {"url": f"s3://some-bucket/some-folder/{name}.tar"}
        one = record | {"name": name, "base": name, "source": source, "bytes": 0}
        (folder / "in" / f"{name}.tar").touch()
        (folder / "out" / "data" / f"{name}.parquet").touch()
        (folder / "out" / "commits" / f"{name}.json").write_bytes(to_json(one))


def _driver(url: str, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds and memory (MB, over what it takes to import everything) of each step."""
    out: dict[str, Any] = {}
    before = _peak()
    store, plan = Store(f"{url}/out", options), _plan()
    steps: dict[str, Callable[[Any], Any]] = {
        "expand_inputs": lambda _: expand_inputs([f"{url}/in"], options),
        "completed": lambda _: Ledger(store, plan.fingerprint).completed("data", ".parquet")[0],
        "publish_manifest": lambda done: publish_manifest(store, plan, done),
    }
    kept: Any = None
    for name, step in steps.items():
        started, busy = time.perf_counter(), time.process_time()
        kept = step(kept)
        out[name] = {
            "seconds": round(time.perf_counter() - started, 2),
            "cpu_seconds": round(time.process_time() - busy, 2),
            "peak_mb_so_far": round((_peak() - before) / 1e6, 1),
        }
    return out


def _peak() -> int:
    """Most bytes this process ever held (``getrusage`` counts its parent's, too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it in a fresh process: what was in memory before must not hide what it needs."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def table(figures: dict[str, Any]) -> None:
    say(f"a commit record has {figures['record_bytes']} bytes")
    for where in ("local", "moto"):
        one = figures[where]
        say(f"{where}, {one['shards']} shards")
        for step in ("expand_inputs", "completed", "publish_manifest"):
            say(
                f"  {step:18s} {one[step]['seconds']:8.2f} s {one[step]['cpu_seconds']:8.2f} s CPU "
                f"{one[step]['peak_mb_so_far']:8.1f} MB"
            )
