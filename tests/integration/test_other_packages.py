"""Packages of the same names, in the user's folder or among those installed, disturb nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import open_dataset
from tests.jobs.scripts import JOBS
from tests.pipeline.makers import samples, tar_bytes

pytestmark = [pytest.mark.integration, pytest.mark.slow]
STRATA = Path(sys.executable).with_name("strata")
WRONG = "raise SystemExit('this is another package')\n"


@pytest.mark.parametrize("installed", [False, True])
def test_packages_of_the_same_names_disturb_nothing(installed: bool, tmp_path: Path) -> None:
    """Neither commands, which are run in that folder, nor workers, nor what these start."""
    others = tmp_path / "others" if installed else tmp_path
    for name in ("codec", "pipeline", "jobs"):
        (others / name).mkdir(parents=True)
        (others / name / "__init__.py").write_text(WRONG)
    for name in ("codec", "pipeline", "ray_"):
        (others / f"{name}.py").write_text(WRONG)
    (tmp_path / "a.tar").write_bytes(tar_bytes(samples(3)))
    variables = {"PYTHONPATH": str(others)} if installed else {"PYTHONPATH": ""}

    def run(*command: str | Path) -> None:
        done = subprocess.run(
            [*command, "--workers", "1"],
            cwd=tmp_path,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "another package" not in done.stdout + done.stderr

    script = JOBS / "compress_dataset.py"
    run(STRATA, "compress", "--input", "a.tar", "--output", "one", "--store-layers", "1")
    run(STRATA, "decode", "--input", "one", "--output", "tars")
    run(sys.executable, script, "--input", "a.tar", "--output", "two", "--store-layers", "1")
    run(sys.executable, JOBS / "decode_dataset.py", "--input", "two", "--output", "more")
    for name in ("one", "two"):
        assert len(open_dataset(str(tmp_path / name))) == 3
    assert sorted(path.name for path in (tmp_path / "tars").glob("*.tar"))
    assert sorted(path.name for path in (tmp_path / "more").glob("*.tar"))
