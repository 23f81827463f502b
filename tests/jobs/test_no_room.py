"""Full disks, a scratch folder that cannot be made, a Ray that does not start: exit code 2."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.running.command_line import exit_code
from tests.conftest import ROOT
from tests.jobs.scripts import JOBS
from tests.pipeline.makers import samples, tar_bytes
from tests.pipeline.streams import rows, write_dataset


def said(
    job: str, *arguments: str, limit: Callable[[], None] | None = None, **variables: str
) -> str:
    """What a job says on its way to the exit code 2."""
    done = subprocess.run(
        [sys.executable, JOBS / f"{job}.py", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 2, done.stderr
    return done.stderr


def no_file_may_grow() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    write_dataset(str(tmp_path / "set"), [list(rows(["a", "b"], (5,)))], 1)
    return str(tmp_path / "set")


def test_a_scratch_folder_that_cannot_be_made(dataset: str) -> None:
    told = said("index_keys", "--input", dataset, "--scratch", "/dev/null/x")
    assert "/dev/null/x: temporary files cannot be written: Not a directory" in told
    assert "--scratch" in told


def test_a_disk_without_room_for_temporary_files(dataset: str, tmp_path: Path) -> None:
    given = ["--input", dataset, "--scratch", str(tmp_path)]
    told = said("index_keys", *given, limit=no_file_may_grow)
    assert f"{tmp_path}: temporary files cannot be written: File too large" in told


def test_a_disk_that_fills_up_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> None:
        with open("/dev/full", "w") as file:
            file.write("x")

    assert exit_code(job) == 2
    assert "No space left on device: free some space" in capsys.readouterr().err


def test_where_nothing_may_be_written_no_space_helps(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> None:
        raise OSError(errno.EROFS, "Read-only file system", "x")

    assert exit_code(job) == 2
    assert "Read-only file system: 'x': choose other folders" in capsys.readouterr().err


@pytest.mark.integration
@pytest.mark.slow
def test_a_ray_that_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(samples(2)))
    given = ["--input", str(tmp_path / "a.tar"), "--output", str(tmp_path / "set")]
    told = said("compress_dataset", *given, RAY_TMPDIR="/dev/null/x")
    assert "Ray does not start on this machine: NotADirectoryError" in told
    assert "RAY_TMPDIR" in told
