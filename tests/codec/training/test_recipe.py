"""What recipes share: training files, figures, settings as flags."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from codec import InvalidModelError, UnknownModelError
from codec.training.data import Pictures
from codec.training.flags import add_flags, given_flags
from codec.training.recipe import TRAINING_FILE, TrainingFile, saver, write_training_file
from tests.codec import toy, toy_recipes
from tests.codec.toy_recipes import ObjectiveConfig


def build(**overrides: object) -> toy_recipes.ToyTrainable:
    return toy_recipes.build(toy_recipes.RECIPES["toy"], Pictures(8), 0, overrides)


def test_a_training_file_gives_back_weights_and_settings(tmp_path: Path) -> None:
    trainable = build(stage=2, lpips_weights=Path("somewhere"))
    weights = {n: v + 1 for n, v in trainable.model.state_dict().items()}
    write_training_file(tmp_path / TRAINING_FILE, trainable, weights)
    file = TrainingFile.find(tmp_path)
    assert file.codec == "cdc"
    assert file.objective == {"rate_weight": 0.25, "stage": 2, "perceptual": False}
    restored = toy_recipes.restore(tmp_path, {"perceptual": True})
    assert restored.objective_config == {**file.objective, "perceptual": True}
    state = restored.model.state_dict()
    assert torch.equal(state["counted"], weights["counted"])  # exactly, as it was counted
    assert torch.equal(state["calls"], torch.tensor(8))
    assert torch.equal(state["frozen"], weights["frozen"].half().float())
    assert not dict(restored.model.named_parameters())["frozen"].requires_grad


def test_what_is_no_training_file_is_refused(tmp_path: Path) -> None:
    trainable = build()
    weights = trainable.model.state_dict()
    del weights["counted"]
    write_training_file(tmp_path / TRAINING_FILE, trainable, weights)
    with pytest.raises(InvalidModelError, match="lacks counted"):
        toy_recipes.restore(tmp_path, {})
    (tmp_path / TRAINING_FILE).write_bytes(b"rubbish")
    with pytest.raises(InvalidModelError, match="damaged"):
        TrainingFile.find(tmp_path)
    (tmp_path / TRAINING_FILE).unlink()
    with pytest.raises(UnknownModelError):
        TrainingFile.find(tmp_path)


def test_a_save_is_measured_at_each_quality(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.use(monkeypatch)
    trainable = build()
    pictures = [np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)]
    save = saver(trainable, tmp_path, pictures, "cpu", {"recipe": "toy"})
    before = {n: v.clone() for n, v in trainable.model.state_dict().items()}
    weights = {**before, "scale": before["scale"] + 3}
    measured = save(weights, {"steps": 1, "hours": 0.1})
    assert list(measured) == ["quality 0", "quality 1"]
    poor, good = measured["quality 0"], measured["quality 1"]
    assert len(poor["bpp"]) == len(poor["psnr"]) == 3
    assert poor["bpp"][-1] < good["bpp"][-1]
    assert poor["psnr"][-1] < good["psnr"][-1] < 60  # not lossless, and a number all the same
    assert torch.equal(trainable.model.state_dict()["scale"], before["scale"])  # as it was
    assert float(toy_recipes.restore(tmp_path, {}).model.state_dict()["scale"][0]) == 4
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["objective"]["rate_weight"] == 0.25
    assert card["learning_curve"] == [{"step": 1, "hours": 0.1, **measured}]


def test_settings_as_flags(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, ObjectiveConfig)
    assert given_flags(parser.parse_args([]), ObjectiveConfig) == {}
    given = parser.parse_args(
        ["--rate-weight", "2", "--stage", "2", "--no-perceptual", "--lpips-weights", "a/b"]
    )
    expected = {
        "rate_weight": 2.0,
        "stage": 2,
        "perceptual": False,
        "lpips_weights": Path("a/b"),
    }
    assert given_flags(given, ObjectiveConfig) == expected
    for wrong in (["--stage", "3"], ["--rate-weight", "x"]):
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)
    assert wrong[0] in capsys.readouterr().err
    assert "worth of a bit, 100 % at 1 (default: 0.5)" in parser.format_help()

    @dataclass(frozen=True)
    class Odd:
        sizes: tuple[int, ...] = ()

    with pytest.raises(TypeError, match="sizes"):
        add_flags(parser, Odd)
