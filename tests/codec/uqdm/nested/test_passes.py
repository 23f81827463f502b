"""Passes, the lattices of blocks, orders and leading bands: what has a digit when."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codec import InvalidModelError, load_codec
from codec.models import zoo
from codec.uqdm.codec import UQDMCodec
from codec.uqdm.nested.bands import to_bands
from codec.uqdm.nested.export import export, model_config
from codec.uqdm.nested.first_network import FirstLayout
from codec.uqdm.nested.schedule import NestedConfig, blocks_of, lattice_of, pass_mask, places_of
from tests.codec.small_models import (
    CONFIG,
    grids_after,
    nested_codec,
    nested_model,
    noise_pictures,
)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> UQDMCodec:
    return nested_codec(tmp_path_factory.mktemp("model"))


def test_every_digit_is_in_one_pass() -> None:
    for level, passes in enumerate(CONFIG.passes):
        times = sum(pass_mask(CONFIG, level, n).astype(int) for n in range(len(passes)))
        np.testing.assert_array_equal(times, np.broadcast_to(CONFIG.level_bands(level), (5, 192)))
    assert NestedConfig.from_dict(CONFIG.to_dict()) == CONFIG


def test_levels_have_more_and_more_bands() -> None:
    orders = np.add.outer(np.arange(8), np.arange(8))
    for level, (luma, chroma) in enumerate(CONFIG.orders):
        expected = np.stack([orders <= luma, orders <= chroma, orders <= chroma])
        if level == 1:
            expected[1:, 0, 0] = False  # led in level 0
        np.testing.assert_array_equal(CONFIG.level_bands(level), expected.flatten())
    assert CONFIG.level_bands(CONFIG.levels - 1).all()
    assert FirstLayout.of(CONFIG).bands.tolist() == np.flatnonzero(CONFIG.level_bands(0)).tolist()


def test_each_lattice_lies_between_those_before() -> None:
    lattices = lattice_of(torch.zeros(1, 16, 20, 3)).numpy()
    assert [(lattices == n).mean() for n in range(5)] == [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
    diagonal, straight = [(-1, -1), (-1, 1), (1, -1), (1, 1)], [(-1, 0), (1, 0), (0, -1), (0, 1)]
    for own, reach, ways in ((1, 2, diagonal), (2, 2, straight), (3, 1, diagonal)):
        assert (around(lattices, own, reach, ways) < own).all()
    assert (around(lattices, 4, 1, straight) < 4).all()
    for own in range(4):  # and none nearer
        assert (around(lattices, own, 1, straight) == 4).all()


def around(lattices: np.ndarray, own: int, reach: int, ways: list[tuple[int, int]]) -> np.ndarray:
    """The lattices of blocks at some distance of those on one lattice, borders apart."""
    places = np.argwhere(lattices[2:-2, 2:-2] == own) + 2
    assert len(places)
    return np.array([lattices[y + reach * i, x + reach * j] for y, x in places for i, j in ways])


def test_places_of_a_pass() -> None:
    grid = torch.zeros(2, 5, 7, 192)
    everywhere = lattice_of(grid)
    for level, passes in enumerate(CONFIG.passes):
        for number, (_, chosen) in enumerate(passes):
            found = places_of(grid, CONFIG, level, number)
            inside = blocks_of(5, 7, CONFIG, level, number)
            if len(chosen) == 5:
                assert found is inside is None
                continue
            assert found is not None
            assert inside is not None
            expected = np.isin(everywhere.numpy(), chosen)
            np.testing.assert_array_equal(inside, expected)
            assert found.tolist() == np.flatnonzero(expected).tolist()


@pytest.mark.parametrize("lead", [1, 2])
def test_leading_bands_have_later_digits_in_level_0(tmp_path: Path, lead: int) -> None:
    """Of that size: and none until after that level."""
    config = dataclasses.replace(CONFIG, lead=lead)
    picture = noise_pictures(1, 64, seed=3)[0].permute(1, 2, 0).numpy()
    grids = grids_after(nested_codec(tmp_path, config=config), picture)
    leads = np.isin(np.arange(192), [64, 128])  # the lowest of both chromas
    first, theirs = config.unit(0), config.unit(lead)
    assert (grids[0][..., leads] % theirs == 0).all()
    assert (grids[0][..., leads] % first != 0).any()
    assert (grids[0][..., ~leads] % first == 0).all()
    np.testing.assert_array_equal(grids[0][..., leads], grids[lead][..., leads])
    assert (grids[0][..., ~leads] != grids[1][..., ~leads]).any()
    assert (grids[lead][..., leads] != grids[lead + 1][..., leads]).any()
    # They are as near after level 0 as others are after that level.
    coefficients = to_bands(torch.from_numpy(picture).permute(2, 0, 1)[None], config)[0].numpy()
    off = np.abs(coefficients - grids[0])[..., leads]
    assert off.max() <= config.mendable * theirs
    assert off.mean() < theirs / 3


def test_bands_beyond_a_levels_order_are_zero_until_they_have_digits(codec: UQDMCodec) -> None:
    noise = np.random.default_rng(0).integers(0, 2, (48, 40, 3), np.uint8) * 255
    grids, seen = grids_after(codec, noise), np.zeros(192, bool)
    for level, grid in enumerate(grids):
        seen |= CONFIG.level_bands(level)
        assert not grid[..., ~seen].any()
        assert grid[..., CONFIG.level_bands(level)].any()


def test_a_model_without_leading_bands(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, lead_order=(-1, -1))
    codec = nested_codec(tmp_path, config=config)
    picture = noise_pictures(1, 40)[0].permute(1, 2, 0).numpy()
    (stream,) = codec.encode([picture])
    np.testing.assert_array_equal(codec.decode([stream])[0], picture)
    assert codec.scheme.config.level_bands(1)[[64, 128]].all()  # type: ignore[attr-defined]


_FEW = tuple((("all", (0, 1, 2, 3, 4)),) for _ in range(6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colours": [0.5] * 9}, "independent"),
        ({"colours": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 5.0]}, "at most 2"),
        ({"colours": [1.0] * 8}, "nine"),
        ({"colours": [float("nan"), *[0.0] * 3, 1.0, *[0.0] * 3, 1.0]}, "finite"),
        ({"colours": ["a"] * 9}, "not a"),
        ({"orders": [[4, 2]] * 6}, "order"),
        ({"orders": [[14, 14]] * 5}, "order"),
        ({"orders": [[14, 14, 3]] * 6}, "order"),
        ({"orders": [["a", 2], *[[14, 14]] * 5]}, "not a"),
        ({"orders": [[4], *[[14, 14]] * 5]}, "not a"),
        ({"band_weights": [1.0] * 191}, "band_weights"),
        ({"band_weights": [0.0, *[1.0] * 191]}, "band_weights"),
        ({"band_weights": [-1.0, *[1.0] * 191]}, "band_weights"),
        ({"band_weights": [*[1.0] * 191, float("nan")]}, "finite"),
        ({"band_weights": [1e9, *[1.0] * 191]}, "band_weights"),
        ({"band_rms": [1e7, *[1.0] * 191]}, "band_rms"),
        ({"lead_order": [0]}, "not a"),
        ({"lead_order": ["a", 0]}, "not a"),
        ({"lead_order": [14, 14]}, "lead"),
        ({"lead": 0}, "lead"),
        ({"lead": 6}, "lead"),
        ({"lead": 1.5}, "lead"),
        ({"passes": _FEW}, "not a"),
        ({"passes": [*_FEW[:5], [["all", [5]]]]}, "passes"),
        ({"passes": [*_FEW[:5], [["most", [0]]]]}, "passes"),
        ({"passes": [*_FEW[:5], []]}, "passes"),
        ({"levels": 5}, "levels"),
        ({"levels": 1, "orders": [[14, 14]], "passes": _FEW[:1]}, "2 to"),
        ({"first_delta": 0.0}, "first_delta"),
        ({"first_delta": 1e4}, "first_delta"),
        ({"dead_zone": 0.5}, "dead_zone"),
        ({"digits": 17}, "digits"),
        ({"tilt": {"low": -8.0, "step": 0.25, "size": 2000}}, "grids"),
        ({"more": 1}, "more"),
    ],
)
def test_configurations_that_no_model_has_are_refused(
    codec: UQDMCodec, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    config, tensors = zoo.read_model(codec.model_path)
    forged = {**config, "nested": {**config["nested"], **change}}
    path = tmp_path / zoo.MODEL_FILE
    zoo.write_model(path, forged, tensors)
    with pytest.raises(InvalidModelError, match=message):
        load_codec(path)


def test_passes_that_miss_or_repeat_digits_are_refused(codec: UQDMCodec, tmp_path: Path) -> None:
    """Otherwise a digit would be coded twice, or never."""
    config, tensors = zoo.read_model(codec.model_path)
    for last in (
        [["all", [0, 1, 2, 3]], ["low", [4]]],
        [["all", [0, 1, 2, 3]], ["all", [3, 4]]],
    ):
        passes = [*config["nested"]["passes"][:5], last]
        forged = {**config, "nested": {**config["nested"], "passes": passes}}
        path = tmp_path / zoo.MODEL_FILE
        zoo.write_model(path, forged, tensors)
        with pytest.raises(InvalidModelError, match="in one pass"):
            load_codec(path)


@pytest.mark.parametrize(
    "change",
    [
        {"trunk": 17},
        {"levels": 4},
        {"levels": 6},
        {"steps": 3},
        {"channels": 13},
        {"hidden": 25},
        {"hidden": 513},
        {"blocks": 2},
        {"blocks": -1},
        {"channels": 0},
        {"channels": 12.0},
        {"outputs": 5},
        {"trunk": 0},
    ],
)
def test_pass_networks_of_other_sizes_are_refused(
    codec: UQDMCodec, tmp_path: Path, change: dict[str, Any]
) -> None:
    config, tensors = zoo.read_model(codec.model_path)
    forged = {**config, "pass_network": {**config["pass_network"], **change}}
    path = tmp_path / zoo.MODEL_FILE
    zoo.write_model(path, forged, tensors)
    with pytest.raises(InvalidModelError):
        load_codec(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("stem.weight", lambda t: t[:, :-1]),
        ("stem.weight", lambda t: torch.full_like(t, -128)),
        ("stem.bias", lambda t: t[:-1]),
        ("stem.bias", lambda t: torch.full_like(t, 1 << 30)),
        ("stem.scale", lambda t: t[None]),
        ("join.weight", lambda t: t.float()),
        ("join.weight", lambda t: torch.full_like(t, -128)),
        ("join.scale", lambda t: t[:-1]),
        ("head.scale", lambda t: t[:, :-1]),
        ("head.scale", lambda t: t[:-1]),
        ("head.weight", lambda t: t[:-1]),
        ("blocks.0.expand.bias", lambda t: torch.full_like(t, -(1 << 30))),
    ],
)
def test_pass_networks_of_other_tensors_are_refused(
    codec: UQDMCodec, tmp_path: Path, name: str, change: Any
) -> None:
    config, tensors = zoo.read_model(codec.model_path)
    tensors[f"pass_network.{name}"] = change(tensors[f"pass_network.{name}"])
    path = tmp_path / zoo.MODEL_FILE
    zoo.write_model(path, config, tensors)
    with pytest.raises(InvalidModelError):
        load_codec(path)


def test_all_parts_of_a_model_are_needed(codec: UQDMCodec, tmp_path: Path) -> None:
    config, tensors = zoo.read_model(codec.model_path)
    for part in ("network", "pass_network", "first_network"):
        path = tmp_path / zoo.MODEL_FILE
        zoo.write_model(path, {k: v for k, v in config.items() if k != part}, tensors)
        with pytest.raises(InvalidModelError, match=part):
            load_codec(path)


def test_a_configuration_of_a_model_goes_through_its_file(tmp_path: Path) -> None:
    model = nested_model()
    path = tmp_path / zoo.MODEL_FILE
    zoo.write_model(path, model_config(model), export(model))
    assert NestedConfig.from_dict(zoo.read_model(path)[0]["nested"]) == CONFIG
