"""A dataset to load from."""

import shutil
from pathlib import Path

import pytest

from pipeline.reader.dataset import Dataset, open_dataset
from tests.pipeline.conftest import Make
from tests.pipeline.loading.pictures import SIZES
from tests.pipeline.makers import png, write_tar


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loading")


@pytest.fixture
def dataset(make_dataset: Make, place: Path, tmp_path: Path) -> Dataset:
    """Pictures of three sizes in two files, of which the first has two row groups and a bad row.

    It is made once; each test has a copy.
    """
    made = place / "dataset"
    if not made.exists():
        files: list[tuple[str, bytes]] = []
        for n in range(340):
            files += [(f"a{n:04d}.png", png(n, *SIZES[n % 4])), (f"a{n:04d}.cls", b"%d" % (n % 10))]
        files.insert(20, ("broken.png", b"no picture"))
        write_tar(place / "a.tar", files)
        write_tar(
            place / "b.tar", [(f"b{n:04d}.png", png(n, *SIZES[n % 4])) for n in range(1000, 1060)]
        )
        make_dataset([str(place / "a.tar"), str(place / "b.tar")], str(place / "making"))
        (place / "making").rename(made)
    return open_dataset(str(shutil.copytree(made, tmp_path / "dataset")))
