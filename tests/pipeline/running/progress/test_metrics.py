"""Metrics: what Prometheus reads from a real Ray; their errors never disturb a job."""

import io
import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from pipeline.running.progress import metrics
from pipeline.running.progress.metrics import METRICS, Metrics
from pipeline.running.progress.progress import Progress
from tests.pipeline.running.progress.reports import encoding, record, worker

ROOT = Path(__file__).resolve().parents[4]


class Recorder(Metrics):
    """Adds up what would go to Ray."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, float] = {}

    def _record(self, name: str, verb: str, value: float, tags: dict[str, str]) -> None:
        kind, _, keys = METRICS[name]
        assert verb == {"counter": "inc", "gauge": "set", "histogram": "observe"}[kind]
        assert set(tags) == set(keys)
        label = " ".join([name, *tags.values()])
        self.values[label] = value if verb == "set" else self.values.get(label, 0) + value


def run_a_job(recorded: Metrics) -> Progress:
    """Two shards, of which one fails, on two workers, of which one is started twice."""
    shown = Progress("x", {"a": 100, "b": 100, "c": 1}, metrics=recorded, out=io.StringIO())
    shown.start()
    busy = worker(bytes_in=1000, bytes_out=100, stage_seconds={"device": 4.0, "coder": 1.0})
    shown.show([busy, {"worker": 1}])
    again = worker(bytes_in=10, bytes_out=5, stage_seconds={"device": 0.5})
    shown.event("attempt_failed", shard="a", error="x", attempt=1)
    shown.show([again | {"pid": 9}, worker(1, shards={"a": encoding(3)})])
    sizes = {"picture_bytes": 500, "stream_bytes": 50}
    shown.finish("a", record(10, bad=1, seconds=4.0, **sizes))
    shown.finish("b", None, "damaged")
    shown.finish("c", record(7, found=True))
    return shown


def test_what_is_counted() -> None:
    recorded = Recorder()
    shown = run_a_job(recorded)
    expected = {
        "samples_total ok": 9,
        "samples_total bad": 1,
        "shards_total done": 1,
        "shards_total failed": 1,
        "shards_total found": 1,
        "bytes_in_total": 1010,
        "bytes_out_total": 105,
        "picture_bytes_total": 500,
        "stream_bytes_total": 50,
        "stage_busy_seconds_total device": 4.5,
        "stage_busy_seconds_total coder": 1.0,
        "attempts_failed_total": 1,
        "workers starting": 0,
        "workers idle": 1,
        "workers busy": 1,
        "shard_seconds": 4.0,
    }
    assert {name: value for name, value in recorded.values.items() if value} == {
        name: value for name, value in expected.items() if value
    }
    shown.close()
    assert recorded.values["workers idle"] == recorded.values["workers busy"] == 0


def test_a_fault_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(name: str) -> Any:
        raise RuntimeError("no agent")

    monkeypatch.setattr(metrics, "_instrument", broken)
    shown = run_a_job(Metrics())
    shown.close()
    assert capsys.readouterr().err.count("no metrics for Prometheus: RuntimeError: no agent") == 1
    assert shown.totals().shards_done == 2


def test_without_ray_nothing_happens() -> None:
    run_a_job(Metrics()).close()


WANTED = {
    'ray_strata_samples_total{status="ok"}': 9.0,
    'ray_strata_samples_total{status="bad"}': 1.0,
    'ray_strata_shards_total{outcome="failed"}': 1.0,
    "ray_strata_bytes_in_total{}": 1010.0,
    'ray_strata_stage_busy_seconds_total{stage="device"}': 4.5,
    'ray_strata_workers{state="busy"}': 1.0,
    "ray_strata_attempts_failed_total{}": 1.0,
    "ray_strata_shard_seconds_count{}": 1.0,
}


@pytest.mark.integration
@pytest.mark.slow
def test_prometheus_reads_them_from_the_node() -> None:
    """In a process of its own: that of the tests may have a Ray, and metrics of other jobs."""
    program = (
        "from tests.pipeline.running.progress.test_metrics import read_from_ray; read_from_ray()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name: found.get(name) for name in WANTED} == WANTED


def read_from_ray() -> None:
    """Run a job beside a real Ray and print what the node's agent tells Prometheus."""
    import ray

    ray.init(
        address="local",
        num_cpus=1,
        object_store_memory=128 << 20,
        include_dashboard=False,
        logging_level="WARNING",
        _system_config={"metrics_report_interval_ms": 500},  # else every ten seconds
    )
    try:
        (node,) = ray.nodes()
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        run_a_job(Metrics())
        found: dict[str, float] = {}
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not WANTED.items() <= found.items():
            time.sleep(0.5)
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    found = parse(answer.read().decode())
            except OSError:  # the agent is still starting
                continue
        print(json.dumps(found))
    finally:
        ray.shutdown()


def parse(text: str) -> dict[str, float]:
    """Prometheus' text format, with our own labels only."""
    values = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(ray_strata_\w+)\{(.*)\} (\S+)", line)
        if match:
            labels = re.findall(r'\b(?:status|outcome|stage|state)="[^"]*"', match[2])
            values[f"{match[1]}{{{','.join(labels)}}}"] = float(match[3])
    return values
