"""evaluate.py as a process: killed, and begun again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.processes import descendants, kill
from tests.jobs.scripts import JOBS
from tests.pipeline.evaluation.inprocess import png_samples
from tests.pipeline.makers import write_tar

PATIENCE = 300.0  # seconds for anything that should happen at all


class _Job:
    """The job as a process of its own, on a private cluster, in a folder of its own."""

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        command = [sys.executable, str(JOBS / "evaluate.py"), *arguments, "--workers", "1"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.output = folder / "said.txt"
        with self.output.open("ab") as out:
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=out, stderr=subprocess.STDOUT, env=environment
            )

    def wait(self) -> int:
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.kill()

    def kill(self) -> None:
        """The driver and all that it has started, at once."""
        below = descendants(self.process.pid)
        self.process.send_signal(signal.SIGKILL)
        kill(below)
        self.process.wait(PATIENCE)

    def said(self) -> str:
        return self.output.read_text()


@pytest.mark.integration
@pytest.mark.timeout(2 * PATIENCE + 60)
def test_a_killed_job_goes_on_where_it_was(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", png_samples((48, 64), (40, 40)))
    arguments = ["--data", "a.tar", "--output", "report", "--model", "uqdm-small"]
    arguments += ["--peers", "jpeg", "webp", "png", "jpeg2000", "avif"]
    records = tmp_path / "report" / "records"
    job = _Job(tmp_path, arguments)
    try:
        deadline = time.monotonic() + PATIENCE
        while not list(records.glob("*.json")):
            assert job.process.poll() is None, job.said()
            assert time.monotonic() < deadline, job.said()
            time.sleep(0.02)
    finally:
        job.kill()
    done = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert done

    again = _Job(tmp_path, arguments)
    assert again.wait() == 0, again.said()
    assert f"(6 tasks, of which {len(done)} were done already)" in again.said()
    assert len(list(records.glob("*.json"))) == 6
    for name, when in done.items():
        assert (records / name).stat().st_mtime_ns == when
    told: dict[str, Any] = json.loads((tmp_path / "report" / "report.json").read_text())
    assert told["pictures"]["count"] == 2
    assert {"uqdm-small", "JPEG", "WebP", "AVIF"} <= {one["name"] for one in told["series"]}
    (model,) = (one for one in told["series"] if one["model"])
    assert model["points"][-1]["exact"] == 2
