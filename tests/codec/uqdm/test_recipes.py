"""Models of recipes learn, all or a part of them, and training resumes from their files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codec import InvalidModelError, load_codec
from codec.models import zoo
from codec.perception.bands import visual_weights
from codec.training.data import Pictures
from codec.training.recipe import Trainable, write_training_file
from codec.uqdm import recipes
from codec.uqdm.nested.bands import to_bands
from codec.uqdm.nested.export import export, model_config
from codec.uqdm.nested.model import NestedModel
from codec.uqdm.nested.objective import NestedObjective
from tests.codec.small_models import NETWORKS, nested_model, noise_pictures

RECIPE = dataclasses.replace(
    recipes.RECIPES["tiny"], model={**recipes.RECIPES["tiny"].model, **NETWORKS}
)
PARTS = {"first": ("first_",), "levels": ("network.", "pass_", "bias", "energy", "theta")}
PARTS |= {"pixels": ("pixel_",), "all": ("",)}


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    found = Pictures(crop=32)
    for picture in noise_pictures(12, 64).permute(0, 2, 3, 1).numpy():
        found.add(picture)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a model to go on from."""
    model, folder = nested_model(), tmp_path_factory.mktemp("run")
    trainable = recipes.UQDMTrainable(model, NestedObjective(), model_config(model))
    write_training_file(folder / "training.safetensors", trainable, model.state_dict())
    return folder


def train(trainable: Trainable, images: torch.Tensor, steps: int) -> None:
    own = [p for p in trainable.model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(own, 3e-3)
    for step in range(steps):
        loss, figures = trainable.objective(trainable.model, images, np.random.default_rng(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert np.isfinite(figures["loss"])


def losses(model: Any, images: torch.Tensor) -> list[dict[str, float]]:
    """Of all levels, at all places of the lossless layer."""
    states = model.encoded_states(images)
    with torch.no_grad():
        found = [model(images, [n], states=states)[0] for n in range(model.config.levels + 1)]
    return [{name: float(value) for name, value in loss.items()} for loss in found]


def test_the_likelihood_improves(pictures: Pictures, tmp_path: Path) -> None:
    trainable = recipes.build(RECIPE, pictures)
    images = pictures.batch(4, 0.0, np.random.default_rng(0))
    before = sum(loss["bits"] for loss in losses(trainable.model, images))
    train(trainable, images, 28)
    assert sum(loss["bits"] for loss in losses(trainable.model, images)) < 0.97 * before
    path = tmp_path / zoo.MODEL_FILE
    zoo.write_model(path, trainable.config, trainable.tensors())
    codec, picture = load_codec(path), images[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(codec.decode(codec.encode([picture]))[0], picture)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_trained_and_nothing_else(part: str, run: Path, pictures: Pictures) -> None:
    before = recipes.restore(run).model.state_dict()
    trainable = recipes.restore(run, {"train": part})
    model = trainable.model
    assert isinstance(model, NestedModel)
    images = pictures.batch(8, 0.0, np.random.default_rng(0))
    turns = len(model.trained_levels)
    train(trainable, images, turns)
    for name, value in model.named_parameters():
        own = name.startswith(PARTS[part])
        assert value.requires_grad == own, name
        if not own:
            assert torch.equal(value, before[name]), name
    changed = {
        n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])
    }
    wanted = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    # Of some sets of tables nothing occurs in so few pictures.
    assert wanted - changed <= {"theta", "energy", "first_theta", "first_energy"}


@pytest.mark.parametrize(
    ("part", "levels", "kinds"),
    [
        ("all", list(range(7)), {"bits", "mse", "preview"}),
        ("first", [0, 1], {"bits", "preview"}),
        ("levels", list(range(1, 7)), {"bits", "mse"}),
        ("pixels", [6], {"bits", "mse"}),
    ],
)
def test_only_levels_with_something_to_train_are_learnt_from(
    part: str, levels: list[int], kinds: set[str], run: Path
) -> None:
    model = recipes.restore(run, {"train": part}).model
    assert isinstance(model, NestedModel)
    assert model.trained_levels == levels
    images = noise_pictures(1, 32)
    states = model.encoded_states(images, max(levels))
    assert len(states) == max(levels) + 1
    found = [model(images, [level], states, [0])[0] for level in levels]
    assert {name for loss in found for name in loss} == kinds
    for loss in found:
        sum(loss.values()).backward()  # type: ignore[union-attr]


def test_a_part_gets_better_by_itself(run: Path, pictures: Pictures) -> None:
    trainable = recipes.restore(run, {"train": "first"})
    images = pictures.batch(8, 0.0, np.random.default_rng(0))
    before = losses(recipes.restore(run).model, images)
    train(trainable, images, 30)
    after = losses(recipes.restore(run).model, images)
    assert after == before  # the file is as it was
    own = trainable.model
    assert isinstance(own, NestedModel)
    own.train_only("all")
    after = losses(own, images)
    assert after[0]["bits"] < 0.95 * before[0]["bits"]
    assert after[1]["preview"] < before[1]["preview"]


def test_a_part_is_not_trained_of_a_new_model(pictures: Pictures) -> None:
    for part in ("first", "levels", "pixels"):
        with pytest.raises(InvalidModelError, match="--init"):
            recipes.build(RECIPE, pictures, overrides={"train": part})


def test_parts_are_of_nested_models(tmp_path: Path, pictures: Pictures) -> None:
    model = recipes.build(recipes.RECIPES["paper-tiny"], pictures)
    write_training_file(tmp_path / "training.safetensors", model, model.model.state_dict())
    recipes.restore(tmp_path)
    with pytest.raises(InvalidModelError, match="not a nested model"):
        recipes.restore(tmp_path, {"train": "levels"})


def test_recipes_weigh_bands_for_eyes_or_not(pictures: Pictures) -> None:
    weights = visual_weights()
    assert weights.shape == (192,)
    luma = weights[:64].reshape(8, 8)
    np.testing.assert_array_equal(luma, luma.T)
    assert (np.diff(luma, axis=0) < 0).all()
    assert luma[0, 0] > 6 * luma[7, 7] > 0
    for kind, expected in (("visual", weights), ("flat", np.ones(192))):
        recipe = dataclasses.replace(RECIPE, model={**RECIPE.model, "weights": kind})
        model = recipes.build(recipe, pictures).model
        assert isinstance(model, NestedModel)
        config = model.config
        np.testing.assert_array_equal(config.band_weights, expected)
        # The usual size of bands is that of weighted ones.
        images = noise_pictures(12, 64)
        rms = to_bands(images, config).square().mean((0, 1, 2)).sqrt() * config.last_delta
        ratio = np.array(config.band_rms) / rms.numpy()
        assert np.median(np.abs(np.log(ratio))) < 0.3


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """But for the file's half precision, and tables, which are counted."""
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        if not name.startswith("tables."):
            off = (tensor.double() - expected[name].double()).abs().mean()
            assert off <= 0.01 * expected[name].double().abs().mean(), name


def test_a_model_goes_on_from_its_file(run: Path) -> None:
    restored, made = recipes.restore(run), nested_model()
    assert restored.config == json.loads(json.dumps(model_config(made)))
    same(restored.tensors(), export(made))


def test_the_shipped_model_goes_on() -> None:
    restored = recipes.restore(Path("uqdm"))
    config, tensors = zoo.read_model(zoo.model_file("uqdm"))
    assert restored.config["nested"] == config["nested"]
    same(restored.tensors(), tensors)


def test_the_shipped_model_has_its_recipes_bands(pictures: Pictures) -> None:
    shipped, _ = zoo.read_model(zoo.model_file("uqdm"))
    made = recipes.build(RECIPE, pictures).config
    for name in ("colours", "band_weights"):
        np.testing.assert_allclose(made["nested"][name], shipped["nested"][name], atol=1e-4)
    for name in ("levels", "orders", "lead_order", "passes"):
        theirs = json.loads(json.dumps(made["nested"][name]))
        assert theirs == shipped["nested"][name]
