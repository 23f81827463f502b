"""Figures for TensorBoard and W&B, whose packages are optional."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from codec.errors import MissingPackageError
from codec.training.tracking import Trackers, flatten


def test_numbers_are_found_by_path() -> None:
    figures = {"loss": 1, "validation": {"psnr": [20.5, None], "about": "x"}}
    assert flatten(figures) == {"loss": 1.0, "validation/psnr/0": 20.5}


def test_a_missing_package_is_named_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackageError, match=r"--log wandb needs .* '\.\[wandb\]'"):
        Trackers.check(("wandb",))


def test_tensorboard_gets_event_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    trackers = Trackers.check(("tensorboard",))
    trackers(1, {"loss": 2.0})  # before the start nothing happens
    trackers.start(tmp_path, {})
    trackers(100, {"loss": 2.0})
    trackers.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in file.read_bytes()


def test_a_run_that_goes_on_is_the_same_one_at_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, Any]] = []
    logged: list[tuple[dict[str, float], int]] = []

    class Run:
        def log(self, scalars: dict[str, float], step: int) -> None:
            logged.append((scalars, step))

        def finish(self) -> None:
            pass

    package: Any = ModuleType("wandb")
    package.util = ModuleType("wandb.util")
    package.util.generate_id = lambda: f"id{len(started)}"
    package.init = lambda **given: started.append(given) or Run()
    monkeypatch.setitem(sys.modules, "wandb", package)
    for step in (100, 200):
        trackers = Trackers.check(("wandb",))
        trackers.start(tmp_path, {"recipe": "tiny"})
        trackers(step, {"loss": 1.0})
        trackers.close()
    assert [given["id"] for given in started] == ["id0", "id0"]
    assert started[0]["config"] == {"recipe": "tiny"}
    assert logged == [({"loss": 1.0}, 100), ({"loss": 1.0}, 200)]
