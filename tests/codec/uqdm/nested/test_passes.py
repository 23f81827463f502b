"""Passes and the colours of blocks: what they cover, and models that get new ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from codec import InvalidModelError, load_codec
from codec.models import zoo
from codec.training.recipe import write_training_file
from codec.uqdm import recipes
from codec.uqdm.nested.model import NestedModel
from codec.uqdm.nested.schedule import (
    NestedConfig,
    colours_of,
    pass_mask,
    places_of,
    to_bands,
)
from codec.uqdm.recipes import UQDMTrainable
from tests.codec.small_models import nested_model, noise_pictures, write_nested_model

FIVE = NestedConfig(colours=5, passes=recipes._PASSES)


@pytest.mark.parametrize("config", [NestedConfig(), FIVE], ids=["two", "five"])
def test_every_digit_is_in_one_pass(config: NestedConfig) -> None:
    for level, passes in enumerate(config.passes):
        times = sum(pass_mask(config, level, n).astype(int) for n in range(len(passes)))
        np.testing.assert_array_equal(
            times, np.broadcast_to(config.level_bands(level), (config.colours, 192))
        )
    assert NestedConfig.from_dict(config.to_dict()) == config


def test_each_of_five_colours_lies_between_those_before() -> None:
    colours = colours_of(torch.zeros(1, 16, 20, 3), FIVE).numpy()
    assert [(colours == c).mean() for c in range(5)] == [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
    diagonal, straight = [(-1, -1), (-1, 1), (1, -1), (1, 1)], [(-1, 0), (1, 0), (0, -1), (0, 1)]
    for colour, reach, ways in ((1, 2, diagonal), (2, 2, straight), (3, 1, diagonal)):
        assert (around(colours, colour, reach, ways) < colour).all()
    assert (around(colours, 4, 1, straight) < 4).all()
    for colour in range(4):  # and none nearer
        assert (around(colours, colour, 1, straight) == 4).all()


def around(colours: np.ndarray, colour: int, reach: int, ways: list[tuple[int, int]]) -> np.ndarray:
    """The colours of blocks at some distance of those of one colour, borders apart."""
    places = np.argwhere(colours[2:-2, 2:-2] == colour) + 2
    assert len(places)
    return np.array([colours[y + reach * i, x + reach * j] for y, x in places for i, j in ways])


def test_places_of_a_pass() -> None:
    grid = torch.zeros(2, 5, 7, 192)
    everywhere = colours_of(grid, FIVE).flatten()
    found = places_of(grid, FIVE, 1, 0)
    assert found is not None
    assert found.tolist() == [i for i, c in enumerate(everywhere.tolist()) if c < 3]
    assert places_of(grid, FIVE, 0, 5) is None
    board = places_of(grid, NestedConfig(), 1, 1)
    assert board is not None
    assert board.tolist() == [i for i, c in enumerate(everywhere.tolist()) if c == 4]


@pytest.mark.parametrize("levels", [6, 4])
def test_a_model_in_new_passes_begins_as_it_was(levels: int) -> None:
    old = nested_model()
    if levels < 6:
        old = recipes.with_pixel_network(old, levels)
    old = recipes.with_first_network(old)
    with torch.no_grad():
        for name, parameter in old.named_parameters():
            if "bias" in name or "gain" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    new = recipes.with_new_passes(old)
    assert new.config.num_steps == old.config.num_steps + 4
    images = noise_pictures(4, 64)
    coefficients = to_bands(images, old.config)

    def outputs(model: NestedModel, step: int, light: bool) -> torch.Tensor:
        with torch.no_grad():
            (out,) = model._outputs([grid], [step], light)
            last = light and step == model.layout.steps - 1  # the shift of previews
            rows = model.bias[model.config.num_steps if last else step]
            return out + rows[:, 0, :]

    # (level, pass) of the new model and that of the old one which it begins as
    pairs = [((0, n), (0, min(n // 4, 1))) for n in range(5)] + [((0, 5), (0, 2))]
    pairs += [((1, n), (1, max(n - 1, 0))) for n in range(5)]
    pairs += [((level, n), (level, n)) for level in range(2, levels) for n in (0, 1)]
    pairs += [((levels, 0), (levels, 0))]
    for (level, number), before in pairs:
        step, begun = new.config.step_of(level, number), old.config.step_of(*before)
        grid, _ = old.grid_before(coefficients, begun)
        for light in (False, True):
            if not light or step < new.layout.steps:
                assert torch.equal(outputs(new, step, light), outputs(old, begun, light))


def test_training_goes_on_in_new_passes(tmp_path: Path) -> None:
    old = nested_model()
    trainable = UQDMTrainable(old, None, old.model_config(archive_layers=5))
    write_training_file(tmp_path / "training.safetensors", trainable, old.state_dict())
    assert recipes.restore(tmp_path).config["nested"].get("colours", 2) == 2
    renewed = recipes.restore(tmp_path, {"new_passes": True})
    assert renewed.config["nested"]["colours"] == 5
    assert (renewed.config["format"], renewed.config["archive_layers"]) == (3, 5)
    path = tmp_path / zoo.MODEL_FILE
    zoo.write_model(path, renewed.config, renewed.tensors())
    codec = load_codec(path)
    picture = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    np.testing.assert_array_equal(codec.decode(codec.encode([picture]))[0], picture)


def test_a_file_of_format_2_has_two_colours(tmp_path: Path) -> None:
    path = write_nested_model(tmp_path, new_passes=True)
    config, tensors = zoo.read_model(path)
    for format in (1, 2):
        zoo.write_model(path, {**config, "format": format}, tensors, {})
        with pytest.raises(InvalidModelError, match="format 3"):
            load_codec(path)


def test_new_passes_are_for_nested_models(tmp_path: Path) -> None:
    model = recipes.build(recipes.RECIPES["paper-tiny"], None)
    write_training_file(tmp_path / "training.safetensors", model, model.model.state_dict())
    with pytest.raises(InvalidModelError, match="not a nested model"):
        recipes.restore(tmp_path, {"new_passes": True})
    with pytest.raises(InvalidModelError, match="--init"):
        recipes.build(recipes.RECIPES["tiny"], None, overrides={"new_passes": True})


def test_passes_that_no_recipe_had_stay(tmp_path: Path) -> None:
    passes = ((("low", 0), ("low", 1), ("high", 0), ("high", 1)), *NestedConfig().passes[1:])
    odd = nested_model(config=NestedConfig(passes=passes, band_rms=FIVE.band_rms))
    with pytest.raises(InvalidModelError, match="other passes than any recipe had"):
        recipes.with_new_passes(odd)
