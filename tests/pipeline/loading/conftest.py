"""A dataset to load from."""

from pathlib import Path

import pytest

from pipeline.reader.dataset import Dataset
from tests.pipeline.conftest import Make
from tests.pipeline.loading.pictures import SIZES
from tests.pipeline.makers import png, write_tar


@pytest.fixture
def dataset(make_dataset: Make, tmp_path: Path) -> Dataset:
    """Pictures of three sizes in two files, of which the first has two row groups and a bad row."""
    files: list[tuple[str, bytes]] = []
    for n in range(340):
        files += [(f"a{n:04d}.png", png(n, *SIZES[n % 4])), (f"a{n:04d}.cls", b"%d" % (n % 10))]
    files.insert(20, ("broken.png", b"no picture"))
    write_tar(tmp_path / "a.tar", files)
    write_tar(
        tmp_path / "b.tar", [(f"b{n:04d}.png", png(n, *SIZES[n % 4])) for n in range(1000, 1060)]
    )
    return make_dataset([str(tmp_path / "a.tar"), str(tmp_path / "b.tar")])
