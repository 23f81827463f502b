"""Jobs check arguments before they import torch and Ray, which takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.running.command_line import STARTING
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
        (
            "compress_dataset",
            ["--input", "x", *OUTPUT, "--workers", "0"],
            ["--input", "x", *OUTPUT],
        ),
        ("decode_dataset", ["--input", "x", *OUTPUT, "--layers", "0"], ["--input", "x", *OUTPUT]),
        ("verify_dataset", ["--input", "x", "--no-decode"], ["--input", "x"]),
        ("index_keys", ["--input", "x", "--input-options", "y"], ["--input", "x"]),
        (
            "evaluate",
            ["--data", "x", *OUTPUT, "--peers", "none"],
            ["--data", "x", *OUTPUT, "--model", "uqdm"],
        ),
        ("serve_previews", ["--input", "x", "--port", "0"], ["--input", "x"]),
    ],
)
def test_help_and_refusals_import_neither_torch_nor_ray(
    job: str, wrong: list[str], missing: list[str], tmp_path: Path
) -> None:
    """``missing`` names inputs that are not there, which needs neither of them, too."""
    attempts = [["--help"], wrong, missing]
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
    assert "there is no " in said[2]
    assert said[2].startswith(STARTING)


@pytest.mark.parametrize(
    "job",
    [
        *("compress_dataset", "decode_dataset", "evaluate", "index_keys", "serve_previews"),
        *("train", "verify_dataset"),
    ],
)
def test_an_unset_variable_does_not_mean_this_folder(job: str, tmp_path: Path) -> None:
    given = {"evaluate": "--data", "train": "--data"}.get(job, "--input")
    attempts = [[given, ""], [f"{given}="], [given, "x", " "], [given, "x", "--output", ""]]
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(JOBS / f"{job}.py"), json.dumps(attempts)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [code for code, _, _ in answers] == [2] * 4
    for (_, said, _), option in zip(answers, [given, given, given, "--output"], strict=True):
        assert f"{option}: its value is empty: is a variable not set?" in said
    assert list(tmp_path.iterdir()) == []


def test_training_gives_a_sign_of_life_before_torch(tmp_path: Path) -> None:
    program = """
import runpy, sys

class Watched:
    def write(self, text):
        sys.__stdout__.write(f"{text.strip()} {'torch' in sys.modules}")
        sys.exit(0)
    def flush(self): pass
    def fileno(self): return 2

sys.stderr = Watched()
runpy.run_path(sys.argv[1], run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(JOBS / "train.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{STARTING} False"
