"""evaluate.py killed without warning, and begun again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import RunHere
from tests.integration.processes import kill, marked
from tests.jobs.scripts import JOBS
from tests.pipeline.evaluate.inprocess import png_samples
from tests.pipeline.makers import write_tar

pytestmark = pytest.mark.integration

PATIENCE = 240  # seconds for what takes six
# The job is asked all the time whether to stop: it is killed there, once something was recorded.
DIES = """
import os, pathlib, runpy, signal, sys
from pipeline.running import command_line

def stop_reason():
    if any(pathlib.Path("report/records").glob("*.json")):
        os.kill(os.getpid(), signal.SIGKILL)
    return ""

command_line.stop_reason = stop_reason
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_killed_job_goes_on_where_it_was(
    ray_session: None, run_here: RunHere, tmp_path: Path
) -> None:
    write_tar(tmp_path / "a.tar", png_samples((48, 64), (40, 40)))
    arguments = ["--data", "a.tar", "--output", "report", "--workers", "1", "--layers", "3"]
    arguments += ["--model", "uqdm", "--peers", "jpeg", "webp", "png", "avif"]
    mark = f"STRATA_TEST_JOB={tmp_path}"
    settings = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    settings |= {"PYTHONPATH": str(JOBS.parent), "OMP_NUM_THREADS": "1"}
    settings |= dict([mark.split("=", 1)])
    said = tmp_path / "said.txt"
    with said.open("wb") as output:
        job = subprocess.Popen(
            [sys.executable, "-c", DIES, str(JOBS / "evaluate.py"), *arguments],
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=settings,
        )
        try:
            code = job.wait(PATIENCE)
        finally:
            job.kill()
            while left := marked(mark):  # its Ray outlives it
                kill(left)
    assert code == -signal.SIGKILL, said.read_text()
    records = tmp_path / "report" / "records"
    done = {path.name: path.stat().st_mtime_ns for path in records.glob("*.json")}
    assert done

    code, out, errors = run_here(JOBS / "evaluate.py", *arguments)
    assert code == 0, errors
    assert f"(7 tasks, {len(done)} of them done before)" in out
    assert len(list(records.glob("*.json"))) == 7  # five contenders, two pictures that are shown
    for name, when in done.items():
        assert (records / name).stat().st_mtime_ns == when
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    assert told["pictures"]["count"] == 2
    assert {"uqdm", "JPEG", "WebP", "PNG", "AVIF"} == {one["name"] for one in told["series"]}
