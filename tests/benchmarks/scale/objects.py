"""From S3 to S3, on moto in a process of its own: speed, overlap of the stages, and requests."""

import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.compress.job import CompressOptions, compress
from pipeline.running.tasks import Policy
from tests.integration.faults import Exchange, FaultProxy
from tests.integration.servers import S3Server, moto

from .corpus import write_shard, write_shards
from .sleeping import MODEL, sleeping_workers
from .watching import events, load, ray_with, say

SLOW = 10e6  # bytes per second of each connection, where the network is to be a limit
LARGE = 90  # pictures of 512x512 in a shard of 40 MB


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="strata-s3-") as name, moto() as server:
        folder = Path(name)
        real = _real(folder, server)
        slow = _slow(folder, server)
        requests = _requests(folder, server)
    return {"cdc-small": real, "slow_network": slow, "requests": requests}


def _real(folder: Path, server: S3Server) -> dict[str, Any]:
    """Five shards of small pictures, with a codec that the processor limits."""
    _upload(server, write_shards(folder / "small", 5, 1500, 64), "small")
    with ray_with(2):
        return _run(server, "small", "cdc-small")


def _slow(folder: Path, server: S3Server) -> dict[str, Any]:
    """Five shards of 40 MB through 10 MB/s, where encoding takes as long as the network.

    Once with the three shards at a time that a worker has, once with one: the difference is what
    downloading and uploading take when nothing else is done meanwhile.
    """
    tar = write_shard(folder / "large" / "shard-0.tar", LARGE, 512)
    for number in range(5):
        server.filesystem().put_file(str(tar), f"strata/large/shard-{number}.tar")
    out: dict[str, Any] = {"shard_mb": round(tar.stat().st_size / 1e6, 1)}
    asleep = sleeping_workers(tar.stat().st_size / SLOW / LARGE)
    with FaultProxy(server.endpoint) as proxy, asleep, ray_with(2):
        proxy.throttle(SLOW, path="large")
        for in_flight in (1, 3):
            out[f"in_flight_{in_flight}"] = _run(
                server,
                "large",
                MODEL,
                endpoint=proxy.endpoint,
                keep_original="always",  # so that there is as much to upload
                policy=Policy(in_flight=in_flight),
                store_layers=1,
            )
    return out


def _requests(folder: Path, server: S3Server) -> dict[str, Any]:
    """What one shard more costs in requests, and what the job costs besides; and going on."""
    _upload(server, write_shards(folder / "tiny", 11, 4, 64), "tiny")
    counts = {}
    with FaultProxy(server.endpoint) as proxy, ray_with(2):
        for name, pattern in (
            ("one shard", "tiny/shard-000.tar"),
            ("eleven shards", "tiny"),
            ("eleven shards again", "tiny"),
        ):
            before = len(proxy.exchanges)
            _run(
                server,
                pattern,
                "cdc-small",
                endpoint=proxy.endpoint,
                output="one" if name == "one shard" else "eleven",
            )
            counts[name] = _kinds(proxy.exchanges[before:])
    one, eleven = counts["one shard"], counts["eleven shards"]
    per_shard = {kind: (eleven[kind] - one[kind]) / 10 for kind in sorted({*one, *eleven})}
    return {
        "per_shard": per_shard,
        "per_job": {kind: round(one[kind] - per_shard[kind], 1) for kind in per_shard},
        "resuming_eleven_shards": dict(sorted(counts["eleven shards again"].items())),
    }


def _kinds(exchanges: Sequence[Exchange]) -> Counter[str]:
    """Requests by what a store charges for."""
    kinds: Counter[str] = Counter()
    for one in exchanges:
        listing = one.method == "GET" and re.search(r"[?&](list-type|prefix)=", one.path)
        kinds["LIST" if listing else one.method] += 1
    return kinds


def _upload(server: S3Server, folder: Path, name: str) -> None:
    for path in sorted(folder.iterdir()):
        server.filesystem().put_file(str(path), f"strata/{name}/{path.name}")


def _run(
    server: S3Server,
    name: str,
    model: str,
    *,
    endpoint: str | None = None,
    output: str = "",
    policy: Policy | None = None,
    **options: Any,
) -> dict[str, Any]:
    busy = load()
    policy = policy or Policy()
    with tempfile.TemporaryDirectory(prefix="strata-s3-log-") as folder:
        log = Path(folder) / "log"
        summary = compress(
            CompressOptions(
                (f"{server.url}/{name}",),
                f"{server.url}/out/{output or f'{name}-{policy.in_flight}'}",
                model,
                workers=1,
                policy=policy,
                input_options=server.options(endpoint),
                output_options=server.options(endpoint),
                log=str(log),
                **options,
            )
        )
        done = events(log, "shard_done")
    assert summary.exit_code == 0, summary.lines()
    stages: Counter[str] = Counter()
    for event in done:
        stages.update(event["stage_seconds"])
    seconds = max(summary.seconds, 1e-9)
    figures = {
        "images": summary.new_samples,
        "seconds": round(seconds, 1),
        "images_per_second": round(summary.new_samples / seconds, 2),
        "mb_in_per_second": round(summary.bytes_in / seconds / 1e6, 2),
        "mb_out_per_second": round(summary.bytes_out / seconds / 1e6, 2),
        "stage_seconds": {stage: round(busy_for, 2) for stage, busy_for in stages.items()},
        "load_before": busy,
    }
    say(f"  {name}: {figures}")
    return figures


def table(figures: dict[str, Any]) -> None:
    for what, run in (
        ("cdc-small", figures["cdc-small"]),
        ("slow network, one shard at a time", figures["slow_network"]["in_flight_1"]),
        ("slow network, three", figures["slow_network"]["in_flight_3"]),
    ):
        say(
            f"{what:34s} {run['seconds']:7.1f} s {run['images_per_second']:8.2f} images/s "
            f"{run['mb_in_per_second']:6.2f} MB/s in {run['mb_out_per_second']:6.2f} MB/s out  "
            f"{run['stage_seconds']}"
        )
    for what, counts in figures["requests"].items():
        say(f"requests {what:24s} {counts}")
