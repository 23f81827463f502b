"""What a job answers before it works, it answers at once: torch and Ray take seconds to import."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.scripts import JOBS

SLOW = ("torch", "ray", "s3fs", "scipy", "pandas")
# Runs a job with some arguments after the other in one process, and prints what became of each.
RUN = f"""
import contextlib, io, json, runpy, sys

script, attempts = sys.argv[1], json.loads(sys.argv[2])
for arguments in attempts:
    sys.argv = [script, *arguments]
    said = io.StringIO()
    code = None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code
    imported = [name for name in {SLOW} if name in sys.modules]
    print(json.dumps([code, said.getvalue(), imported]))
"""
OUTPUT = ["--output", "out"]


@pytest.mark.parametrize(
    ("job", "wrong", "missing"),
    [
        ("compress_dataset", ["--input", "x", *OUTPUT, "--workers", "0"], None),
        ("decode_dataset", ["--input", "x", *OUTPUT, "--layers", "0"], ["--input", "x", *OUTPUT]),
        ("verify_dataset", ["--input", "x", "--no-decode"], ["--input", "x"]),
        ("index_keys", ["--input", "x", "--input-options", "y"], ["--input", "x"]),
        ("evaluate", ["--data", "x", *OUTPUT, "--peers", "none"], None),
        ("serve_previews", ["--input", "x", "--port", "0"], ["--input", "x"]),
    ],
)
def test_help_and_refusals_import_neither_torch_nor_ray(
    job: str, wrong: list[str], missing: list[str] | None, tmp_path: Path
) -> None:
    """``missing`` names a dataset that is not there, which needs neither of them, too."""
    attempts = [["--help"], wrong, *([missing] if missing else [])]
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(JOBS / f"{job}.py"), json.dumps(attempts)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(code, imported) for code, _, imported in answers] == [
        (0, []),
        *[(2, [])] * (len(attempts) - 1),
    ]
    said = [text for _, text, _ in answers]
    assert "Exit code 0" in said[0]
    assert wrong[-2] in said[1] or wrong[-1] in said[1]
    assert not missing or "there is no dataset here" in said[2]
