"""The jobs as commands: exit codes, messages and signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.conftest import RunHere
from tests.pipeline.makers import samples, write_tar

ROOT = Path(__file__).resolve().parents[2]
COMPRESS, DECODE = ROOT / "jobs" / "compress_dataset.py", ROOT / "jobs" / "decode_dataset.py"

pytestmark = pytest.mark.integration


def test_what_must_be_put_right_first(tmp_path: Path) -> None:
    """The command as people run it; more messages are below, without a process for each."""
    command = [sys.executable, str(COMPRESS), "--input", "none.tar", "--output", "set"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 2
    assert "none.tar: there is no such file" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input", "a.tar", "--output", "set", "--model", "nosuch"], "no model 'nosuch'"),
        (["--input", "a.tar", "--output", "set", "--store-layers", "99"], "--store-layers 99"),
        (["--input", "a.tar", "--output", "set", "--store-layers", "x"], "positive number or fit"),
        (
            ["--input", "a.tar", "--output", "set", "--lossless", "--store-layers", "1"],
            "leave out --store-layers",
        ),
        (
            ["--input", "a.tar", "--output", "set", "--target-quality", "good"],
            "--target-quality must be a SSIMULACRA2 (80) or a PSNR in dB (38dB)",
        ),
        (
            [
                "--input",
                "a.tar",
                "--output",
                "set",
                *(["--target-quality", "80", "--store-layers", "fit"]),
            ],
            "leave out --store-layers fit",
        ),
        (["--input", "a.tar", "--output", "set", "--quality", "1"], "uqdm has no option quality"),
        (["--input", "a.tar", "--output", "a.tar/set"], "lies in the input a.tar"),
        (["--input", "a.tar", "--output", "nosuch://x"], "nosuch"),
        (["--input", "a.tar", "--output", "set", "--workers", "0"], "must be at least 1"),
        (["--input", "a.tar"], "--output"),
    ],
)
def test_options_that_cannot_be(
    arguments: list[str], words: str, run_here: RunHere, tmp_path: Path
) -> None:
    write_tar(tmp_path / "a.tar", samples(1))
    code, _, errors = run_here(COMPRESS, *arguments)
    assert code == 2
    assert words in errors
    assert not (tmp_path / "set" / "data").exists()


def test_decoding_what_is_no_dataset(run_here: RunHere, tmp_path: Path) -> None:
    code, _, errors = run_here(DECODE, "--input", str(tmp_path), "--output", str(tmp_path / "out"))
    assert code == 2
    assert "there is no archive here" in errors


@pytest.mark.parametrize("script", [COMPRESS, DECODE])
def test_help_explains_every_option(run_here: RunHere, script: Path) -> None:
    code, output, _ = run_here(script, "--help")
    assert code == 0
    assert "Exit code 0" in output
    assert os.access(script, os.X_OK)


@pytest.mark.slow
def test_a_job_that_is_stopped_leaves_nothing_half_done(small_model: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", samples(2))
    for name in ("b.tar", "c.tar"):
        write_tar(tmp_path / name, samples(1500))
    arguments = ["--input", "a.tar", "b.tar", "c.tar", "--output", "set", "--lossless"]
    arguments += ["--model", small_model, "--workers", "1", "--drain-seconds", "2"]
    job = subprocess.Popen(
        [sys.executable, str(COMPRESS), *arguments],
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    commits = tmp_path / "set" / "commits"
    for _ in range(1200):
        if commits.is_dir() and list(commits.glob("*.json")):
            break
        time.sleep(0.1)
    job.send_signal(signal.SIGTERM)
    _, errors = job.communicate(timeout=150)
    assert job.returncode == 130
    assert "stopping: finishing or saving the running shards" in errors
    assert "go on from there" in errors
    time.sleep(1)
    data, recorded = (
        {path.stem for path in (tmp_path / "set" / folder).iterdir()}
        for folder in ("data", "commits")
    )
    assert data == recorded
    assert 1 <= len(data) < 3
    assert not list((tmp_path / "set").glob("manifest*"))
