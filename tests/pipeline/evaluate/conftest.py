from pathlib import Path

import pytest

from tests.codec import toy
from tests.pipeline.evaluate.inprocess import Runner


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runner:
    """The job in this process."""
    return Runner(monkeypatch, tmp_path)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A small model with two qualities and three layers, which every ``load_codec`` here knows."""
    toy.use(monkeypatch)
    return str(toy.write_model(tmp_path / "toy").parent)
