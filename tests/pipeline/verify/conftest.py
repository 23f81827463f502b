"""The dataset that is damaged and repaired."""

import shutil
from pathlib import Path

import pytest

from tests.pipeline.makers import ToyCodec
from tests.pipeline.verify.archives import Archive, make


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verification")


@pytest.fixture
def archive(toy: ToyCodec, without_ray: None, place: Path) -> Archive:
    """The dataset as it was made: once, and always at the place that its records name."""
    made, used = place / "made", place / "used"
    if not made.exists():
        used.mkdir()
        make(used)
        used.rename(made)
    shutil.rmtree(used, ignore_errors=True)
    shutil.copytree(made, used)  # with the shards' times, which tell their versions apart
    return Archive(used / "set")
