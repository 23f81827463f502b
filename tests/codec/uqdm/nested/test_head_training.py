"""Heads learn on states of a model that stays as it is, and go on from their files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from codec import InvalidModelError, load_codec
from codec.models import heads, zoo
from codec.training.data import Pictures
from codec.training.loop import TrainingConfig, train
from codec.training.recipe import Trainable, TrainingFile, saver, write_training_file
from codec.training.run_folder import RunFolder
from codec.uqdm import recipes
from codec.uqdm.nested import head_objective
from codec.uqdm.nested.export import model_config
from codec.uqdm.nested.objective import NestedObjective
from tests.codec.small_models import nested_model, noise_pictures, write_nested_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: a model, and its float weights."""
    folder = tmp_path_factory.mktemp("base")
    write_nested_model(folder)
    model = nested_model()
    trainable = recipes.UQDMTrainable(model, NestedObjective(), model_config(model))
    write_training_file(folder / "training.safetensors", trainable, model.state_dict())
    return folder


def images() -> torch.Tensor:
    return noise_pictures(4, 64, seed=3)


def losses(trainable: Trainable, steps: int) -> list[float]:
    """Of a fixed batch and level, while it is trained on."""
    optimizer = torch.optim.Adam(trainable.model.parameters(), 3e-3)
    out = []
    for _ in range(steps):
        loss, figures = trainable.objective(trainable.model, images(), np.random.default_rng(1))
        assert all(np.isfinite(value) for value in figures.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        out.append(sum(figures.values()))
    return out


@pytest.mark.parametrize("decoder", heads.DECODERS)
def test_a_head_learns(base: Path, decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_objective, "_PREPARING", 0)
    trainable = recipes.restore(base, {"train": decoder, "kept_batches": 1})
    found = losses(trainable, 12)
    assert found[-1] < 0.97 * found[0]


def test_a_head_that_draws_learns_first_where_means_are_wrong(base: Path) -> None:
    trainable = recipes.restore(base, {"train": "realistic", "kept_batches": 1})
    found = losses(trainable, 30)
    assert found[-1] < found[0] - 0.1, "nats of a coefficient"


def test_a_term_that_runs_away_keeps_its_weight(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Terms are divided by their means, but growing must not make a term cheap."""
    monkeypatch.setattr(head_objective, "_PREPARING", 0)
    trainable = recipes.restore(base, {"train": "realistic", "kept_batches": 1})
    losses(trainable, 1)
    size = trainable.objective.get_buffer("size").clone()
    with torch.no_grad():
        trainable.model.get_parameter("loudness").mul_(1000)
    wild = losses(trainable, 20)
    grown = trainable.objective.get_buffer("size")
    assert wild[0] > 10 * float(size.sum())
    assert (grown <= size * 1.02).all()


def test_a_run_has_the_model_unchanged_and_the_head_beside_it(base: Path, tmp_path: Path) -> None:
    pictures = Pictures(crop=64)
    for picture in noise_pictures(4, 72).permute(0, 2, 3, 1).numpy():
        pictures.add(picture)
    trainable = recipes.restore(base, {"train": "eyes", "kept_batches": 2})
    config = TrainingConfig(steps=3, batch=2, crop=64, warmup=1)
    whole = noise_pictures(1, 72, seed=9).permute(0, 2, 3, 1).numpy()
    save = saver(trainable, tmp_path, list(whole), "cpu", {})
    train(trainable.model, trainable.objective, pictures, config, RunFolder(tmp_path), save)
    assert zoo.model_id(tmp_path / zoo.MODEL_FILE) == zoo.model_id(base / zoo.MODEL_FILE)
    card = json.loads((tmp_path / "model.eyes.json").read_text())
    assert card["validation"]["eyes"].keys() >= {"psnr", "ssimulacra2"}
    assert len(card["validation"]["bpp"]) == trainable.model.get_buffer("scale").shape[0]
    codec = load_codec(tmp_path)
    streams = codec.encode(list(whole), layers=3)
    shown = [codec.decode(streams, decoder=name)[0] for name in ("mean", "eyes")]
    assert not np.array_equal(*shown)
    # The folder is one to go on from, with the head and with the model.
    again = recipes.restore(tmp_path, {"train": "eyes"})
    assert float(again.objective.get_buffer("steps")) == head_objective._PREPARING
    stored = trainable.model.state_dict()["scale"]
    torch.testing.assert_close(again.model.state_dict()["scale"], stored, rtol=2e-3, atol=0)
    assert TrainingFile.find(tmp_path).codec == "uqdm"


def test_small_pictures_alone_are_refused(base: Path) -> None:
    trainable = recipes.restore(base, {"train": "eyes"})
    with pytest.raises(Exception, match="64 pixels a side"):
        trainable.objective(trainable.model, images()[..., :32], np.random.default_rng(0))


def test_a_new_model_has_no_head_to_train(base: Path) -> None:
    recipe = recipes.RECIPES["tiny"]
    with pytest.raises(InvalidModelError, match="--init"):
        recipes.build(recipe, Pictures(crop=64), 0, {"train": "eyes"})
