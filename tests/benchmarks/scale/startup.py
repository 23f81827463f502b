"""From the command to the first picture: seconds, and where they go."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from .corpus import write_shard
from .watching import ROOT, events, load, say

ROUNDS = 3
# Runs the job like its script, and says how long the driver's slow calls take.
_TIMED = """
import sys, time
start = time.perf_counter()
def timed(module, name):
    real = getattr(module, name)
    def call(*args, **kwargs):
        begun = time.perf_counter()
        try:
            return real(*args, **kwargs)
        finally:
            print("PART", name, time.perf_counter() - begun, flush=True)
    setattr(module, name, call)
sys.path[:0] = [{root!r}, {root!r} + "/jobs"]
import torch
print("PART import_torch", time.perf_counter() - start, flush=True)
begun = time.perf_counter()
import compress_dataset, pipeline.running.cluster, pipeline.compress.job
print("PART import_the_rest", time.perf_counter() - begun, flush=True)
timed(pipeline.compress.job, "load_codec")
timed(pipeline.running.cluster, "connect")
pipeline.compress.job.compress(compress_dataset.parse(sys.argv[1:]))
"""
# What a worker's process does before it is ready, in a process of its own.
_WORKER = """
import time
start = time.perf_counter()
import ray._private.workers.default_worker
print("PART worker_import_ray", time.perf_counter() - start, flush=True)
begun = time.perf_counter()
import pipeline.compress.worker
print("PART worker_import_pipeline", time.perf_counter() - begun, flush=True)
begun = time.perf_counter()
from codec import load_codec
load_codec({model!r}, device="cpu")
print("PART worker_load_model", time.perf_counter() - begun, flush=True)
"""


def measure() -> dict[str, Any]:
    out: dict[str, Any] = {"load_before": load()}
    with tempfile.TemporaryDirectory(prefix="strata-startup-") as name:
        folder = Path(name)
        shard = write_shard(folder / "one.tar", 1, 64)
        for model in ("uqdm", "cdc-small"):
            runs = [_run(folder / f"{model}-{n}", shard, model) for n in range(ROUNDS)]
            out[model] = {
                "median_seconds": round(median(run["first_commit"] for run in runs), 2),
                "runs": runs,
            }
        output = folder / "parts"
        arguments = ["--input", str(shard), "--output", str(output), "--model", "uqdm"]
        parts = _parts(_TIMED.format(root=str(ROOT)), arguments)
        parts |= _parts(_WORKER.format(model="uqdm"), [])
    return out | {"parts": parts}


def _run(output: Path, shard: Path, model: str) -> dict[str, float]:
    """Seconds from the command to what its log says, and to the commit record on disk."""
    log = output.with_suffix(".log")
    command = [sys.executable, "jobs/compress_dataset.py", "--model", model, "--workers", "1"]
    paths = ["--input", str(shard), "--output", str(output), "--log", str(log)]
    started = time.time()
    process = subprocess.Popen(
        [*command, *paths], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = started + 300
    while not any((output / "commits").glob("[!.]*.json")):
        assert process.poll() is None
        assert time.time() < deadline
        time.sleep(0.02)
    committed = time.time() - started
    assert process.wait(60) == 0
    ended = time.time() - started
    when = {event["event"]: event["time"] - started for event in events(log)}
    times = {
        "job_started": when["job_started"],
        "worker_reported": when["worker_ready"],
        "first_commit": committed,
        "ended": ended,
    }
    say(f"  {model}: { ({name: round(value, 2) for name, value in times.items()}) }")
    return {name: round(value, 2) for name, value in times.items()}


def _parts(program: str, arguments: list[str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=300,
    )
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("PART ")]
    return {name: round(float(seconds), 2) for _, name, seconds in lines}


def table(figures: dict[str, Any]) -> None:
    for model in ("uqdm", "cdc-small"):
        say(f"{model}: {figures[model]['median_seconds']} s to the first commit (median)")
    for name, seconds in figures["parts"].items():
        say(f"  {name:28s} {seconds:6.2f}")
