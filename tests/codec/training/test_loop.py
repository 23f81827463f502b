"""The training loop: what it trains, what it does not change, and where it resumes."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from codec import InvalidModelError
from codec.images.files import write_image
from codec.training.data import Pictures, ShardWindow, share_of
from codec.training.loop import TrainingConfig, learning_rate, train
from codec.training.run_folder import RunFolder, checkpoint_name
from tests.codec.toy_recipes import ToyModel
from tests.pipeline.makers import tar_bytes

CONFIG = TrainingConfig(steps=5, learning_rate=0.1, warmup=1, batch=2)


def pictures() -> Pictures:
    out = Pictures(crop=16)
    out.add(np.zeros((16, 16, 3), np.uint8))
    return out


class Objective(nn.Module):
    """A loss with a network of its own, which is moved but not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.target = nn.Parameter(torch.full((3,), 2.0))
        self.calls = 0

    def forward(
        self, model: nn.Module, images: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(model, ToyModel)
        self.calls += 1
        loss = (model.scale * (1 + model.frozen) - self.target).square().sum()
        return loss, {"loss": float(loss.detach())}


def run(out: Path, model: nn.Module, config: TrainingConfig = CONFIG) -> list[dict[str, Tensor]]:
    """The weights of each save."""
    saved: list[dict[str, Tensor]] = []

    def save(weights: dict[str, Tensor], card: dict[str, Any]) -> dict[str, Any]:
        saved.append({n: v.clone() for n, v in weights.items()})
        return {}

    train(model, Objective(), pictures(), config, RunFolder(out), save, log=lambda line: None)
    return saved


def test_what_is_frozen_stays_and_is_saved(tmp_path: Path) -> None:
    model = ToyModel()
    (saved,) = run(tmp_path, model)
    assert saved.keys() == model.state_dict().keys()
    assert torch.equal(saved["frozen"], torch.full((3,), 0.1))
    assert torch.equal(saved["counted"], model.state_dict()["counted"])
    assert (saved["scale"] > 1).all()
    state = torch.load(tmp_path / checkpoint_name(5), weights_only=True)
    assert list(state["ema"]) == ["scale"]
    assert torch.equal(saved["scale"], state["ema"]["scale"])
    assert not torch.equal(saved["scale"], model.scale)  # it is their average


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    config = TrainingConfig(steps=4, learning_rate=0.1, warmup=1, batch=2, final_rate=1.0)
    longer = TrainingConfig(steps=8, learning_rate=0.1, warmup=1, batch=2, final_rate=1.0)
    run(tmp_path / "parts", ToyModel(), config)
    (in_parts,) = run(tmp_path / "parts", ToyModel(), longer)
    (at_once,) = run(tmp_path / "whole", ToyModel(), longer)
    torch.testing.assert_close(in_parts["scale"], at_once["scale"])


def test_a_run_on_a_window_of_shards_goes_on_with_the_same_pictures(tmp_path: Path) -> None:
    contents = {}
    for number in range(4):
        picture = write_image(np.full((16, 16, 3), 60 * number, np.uint8), None, "png")
        contents[f"{number}.tar"] = tar_bytes([("a.png", picture)])

    def objective(
        model: nn.Module, images: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        seen.extend(images[:, 0, 0, 0].tolist())
        loss = (model.scale - images.float().mean() / 255).square().sum()
        return loss, {"loss": float(loss.detach())}

    def run_for(steps: int, out: Path) -> Tensor:
        share = share_of(list(contents), 0, 1)
        window = ShardWindow(share, lambda name: BytesIO(contents[name]), 16, 2, 3, 0, str)
        model = ToyModel()
        config = replace(CONFIG, steps=steps, final_rate=1.0)
        train(model, objective, window, config, RunFolder(out), lambda *_: {}, log=str)
        window.close()
        return model.scale.detach()

    seen: list[int] = []
    whole, expected = run_for(20, tmp_path / "whole"), list(seen)
    assert set(expected) == {0, 60, 120, 180}
    seen.clear()
    run_for(8, tmp_path / "parts")
    assert torch.equal(run_for(20, tmp_path / "parts"), whole)
    assert seen == expected


def test_a_checkpoint_may_hold_more_averages_than_are_trained_now(tmp_path: Path) -> None:
    run(tmp_path, ToyModel())
    path = tmp_path / checkpoint_name(5)
    state = torch.load(path, weights_only=True)
    state["ema"]["frozen"] = torch.zeros(3)
    torch.save(state, path)
    (saved,) = run(tmp_path, ToyModel(), TrainingConfig(steps=6, warmup=1, batch=2))
    assert torch.equal(saved["frozen"], torch.full((3,), 0.1))
    del state["ema"]["scale"]
    torch.save(state, tmp_path / checkpoint_name(6))
    with pytest.raises(InvalidModelError, match="another configuration"):
        run(tmp_path, ToyModel())


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    run(tmp_path, ToyModel())
    with pytest.raises(InvalidModelError, match="use a new --out"):
        run(tmp_path, nn.Linear(2, 2))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02cos\nsystem\n."])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint-000000001.pt").write_bytes(content)
    with pytest.raises(InvalidModelError, match=r"checkpoint-\d+\.pt"):
        run(tmp_path, ToyModel())


def test_the_recipe_chooses_the_averaging_of_gradients(tmp_path: Path) -> None:
    run(tmp_path, ToyModel(), TrainingConfig(steps=1, warmup=1, batch=2, beta1=0.5, beta2=0.7))
    state = torch.load(tmp_path / checkpoint_name(1), weights_only=True)
    assert state["optimizer"]["param_groups"][0]["betas"] == (0.5, 0.7)


def test_learning_rate_warms_up_and_falls() -> None:
    config = TrainingConfig(learning_rate=1.0, warmup=10, final_rate=0.1)
    assert learning_rate(config, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(config, 9, 0.0) == pytest.approx(1.0)
    assert learning_rate(config, 99, 1.0) == pytest.approx(0.1)
