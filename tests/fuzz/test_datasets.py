"""Some rounds of the fuzzer of datasets, in a child process, which may crash."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_damaged_datasets_are_read_right_or_refused_in_words() -> None:
    done = subprocess.run(
        [sys.executable, "tests/fuzz/fuzz_datasets.py", "150", "100"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "150 rounds" in done.stdout
