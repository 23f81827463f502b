"""The command and its script, each on a Ray of its own, in a folder with packages of our names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import open_dataset
from tests.jobs.scripts import JOBS
from tests.pipeline.makers import samples, write_tar

pytestmark = [pytest.mark.integration, pytest.mark.slow]
STRATA = [str(Path(sys.executable).with_name("strata")), "compress"]
SCRIPT = [sys.executable, str(JOBS / "compress_dataset.py")]
WRONG = "raise SystemExit('this is another package')\n"


@pytest.mark.parametrize(
    ("installed", "command", "other"), [(False, STRATA, SCRIPT), (True, SCRIPT, STRATA)]
)
def test_packages_of_the_same_names_disturb_nothing(
    installed: bool, command: list[str], other: list[str], tmp_path: Path
) -> None:
    """In the user's folder, or installed: neither commands nor workers nor what these start."""
    others = tmp_path / "others" if installed else tmp_path
    for name in ("codec", "pipeline", "jobs"):
        (others / name).mkdir(parents=True)
        (others / name / "__init__.py").write_text(WRONG)
    for name in ("codec", "pipeline", "ray_"):
        (others / f"{name}.py").write_text(WRONG)
    write_tar(tmp_path / "a.tar", [*samples(3), ("b.png", b"broken")])
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    environment |= {"HOME": str(home), "PYTHONPATH": str(others) if installed else ""}

    def run(command: list[str], shard: str) -> subprocess.CompletedProcess[str]:
        few = ["--store-layers", "1", "--workers", "1"]
        done = subprocess.run(
            [*command, "--input", shard, "--output", "set", *few],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert "another package" not in done.stdout + done.stderr
        return done

    done = run(other, "none.tar")
    assert done.returncode == 2
    assert "none.tar: there is no such file" in done.stderr
    done = run(command, "a.tar")
    assert done.returncode == 1, done.stderr
    assert "compressed 3 pictures of 1 shard; 1 bad, 0 filtered, 0 shards failed" in done.stdout
    assert f"{tmp_path}/a.tar : 'b' : " in done.stdout
    assert not (home / ".ray").exists()  # a token there would lock `ray start` for this user
    assert len(open_dataset(str(tmp_path / "set"))) == 3
