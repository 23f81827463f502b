"""The command line of models: list, show, import, calibrate."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codec import load_codec
from codec.__main__ import main
from codec.models import zoo
from codec.uqdm.paper import calibration
from tests.benchmarks.portability import Products
from tests.codec.small_models import write_nested_model
from tests.codec.uqdm.paper.test_scheme import small_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nested_model(tmp_path_factory.mktemp("model"))


def test_command_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["list"]):
        assert main(command) == 0
        assert zoo.DEFAULT_MODELS["uqdm"] in capsys.readouterr().out
    assert main(["show", str(model)]) == 0
    shown = capsys.readouterr().out
    assert zoo.model_id(model) in shown
    assert json.loads(shown[shown.index("{") :])["config"]["quantizer"] == "nested"
    assert main(["import", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]) == 1
    assert "nothing" in capsys.readouterr().err


def test_calibrating_an_exact_model_proves_it_and_leaves_it_as_it_is(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "checked"
    assert main(["calibrate", str(model), "--pictures", "2", "--out", str(out)]) == 0
    assert zoo.model_id(model) in capsys.readouterr().out
    assert (out / zoo.MODEL_FILE).read_bytes() == model.read_bytes()
    seen = zoo.read_card(out / zoo.MODEL_FILE)["calibration"]
    assert seen["difference"] == 0
    assert seen["sums"] > 100_000
    assert seen["executions"] == 8


def test_a_model_that_is_not_exact_is_found_out(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a device would be whose sums are not."""

    def sloppy(func: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        out = func(*args, **kwargs)
        return out + (out.abs() > 1000).float()

    before = zoo.read_card(model)
    with Products(sloppy):
        assert main(["calibrate", str(model), "--pictures", "1"]) == 1
    assert "not exact" in capsys.readouterr().err
    assert zoo.read_card(model) == before


def test_calibrating_a_float_model_stores_its_guards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, tensors = small_model(steps=2)
    path, out = tmp_path / "model" / zoo.MODEL_FILE, tmp_path / "out"
    before = zoo.write_model(path, config, tensors, {"test": True})
    monkeypatch.setattr(calibration, "EXECUTIONS", calibration.FEW_EXECUTIONS)
    command = ["calibrate", str(path.parent), "--pictures", "1", "--safety", "5"]
    assert main([*command, "--out", str(out)]) == 0
    assert before in capsys.readouterr().out  # streams of the file as it was still need that
    assert zoo.model_id(path) == before
    card = zoo.read_card(out / zoo.MODEL_FILE)
    assert card["test"]
    seen = card["calibration"]
    guards = zoo.read_model(out / zoo.MODEL_FILE)[1]["guards"].numpy()
    for column, name in enumerate(("mean", "scale")):
        np.testing.assert_allclose(guards[:, column], 5 * np.array(seen["differences"][name]), 0.01)
    assert load_codec(out).encode([np.zeros((9, 9, 3), np.uint8)], layers=1)[0].info.protected
    assert main([*command[:2], "--pictures", "1", "--data", str(tmp_path / "no.tar")]) == 1
    assert "no.tar" in capsys.readouterr().err
