"""Closed or full output changes neither a job's work nor its exit code."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# A job of argv[1] bad samples, which leaves a file behind when it has come to its end.
JOB = """
import contextlib, os, sys
from pathlib import Path
from pipeline.running import command_line
from pipeline.running.progress.summary import Summary

def job():
    for number in range(200):
        print("a line of output", number)
        print("a line of errors", number, file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        os.write(1, b"a library prints")
    with open("opened", "w") as file:
        file.write("its own")
        assert file.fileno() > 2
    return Summary("compressed", ok=1, bad=int(sys.argv[1]))

code = command_line.run_job(job)
Path("done").touch()
sys.exit(code)
"""


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize(
    "streams",
    [">/dev/full", "2>/dev/full", ">/dev/full 2>&1", ">&-", "2>&-", "<&- >&- 2>&-", "| true"],
)
def test_output_that_goes_nowhere_changes_no_exit_code(
    streams: str, bad: int, tmp_path: Path
) -> None:
    (tmp_path / "job.py").write_text(JOB)
    command = f"{sys.executable} job.py {bad} {streams}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == bad, done.stderr
    assert (tmp_path / "done").exists()
    assert (tmp_path / "opened").read_text() == "its own"
    assert "Traceback" not in done.stderr


def test_what_can_be_printed_is(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    done = subprocess.run(
        [sys.executable, "job.py", "0"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("a line of output") == 200
    assert "compressed 1 picture" in done.stdout
    assert done.stderr.startswith("starting")
    assert done.stderr.count("a line of errors") == 200
