"""The trunk and the pass network at work, whole and in tiles, and what training assumes of them."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from codec.uqdm.codec import UQDMCodec
from codec.uqdm.nested import first_network, level_network
from codec.uqdm.nested.bands import to_bands
from codec.uqdm.nested.level_network import LevelNetworks
from codec.uqdm.nested.model import NestedModel
from codec.uqdm.nested.pass_network import IntegerPasses, digit_features
from codec.uqdm.nested.schedule import lattice_of, level_digits, pass_mask
from codec.uqdm.nested.scheme import NestedScheme
from tests.codec.small_models import CONFIG, nested_codec, nested_model, noise_pictures

Outcome = dict[str, Tensor]


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> UQDMCodec:
    return nested_codec(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def scheme(codec: UQDMCodec) -> NestedScheme:
    assert isinstance(codec.scheme, NestedScheme)
    return codec.scheme


@pytest.fixture(scope="module")
def coefficients() -> Tensor:
    """Of three grids of 13 x 9 blocks."""
    return to_bands(noise_pictures(3, 104, seed=4)[..., :72], CONFIG)


@torch.inference_mode()
def go_through(levels: LevelNetworks, coefficients: Tensor, level: int) -> Outcome:
    """All that the networks say at a level and after it, with digits of the coefficients."""
    grid = torch.zeros_like(coefficients)
    for before in range(level):
        units = torch.from_numpy(CONFIG.units(before))
        grid += level_digits(coefficients, grid, before, CONFIG) * units
    look, found = levels.look(grid, level), {}
    found |= {"trunk": look.trunk.clone(), "joined": look.joined.clone()}
    for number in range(len(CONFIG.passes[level])):
        found[f"index {number}"] = levels.index(grid, look, number)
        symbols = levels.rest(coefficients, look, number).round().to(torch.int32)
        levels.update(grid, look, number, symbols)
    found |= {"told": look.told.clone(), "grid": grid.clone()}
    found["expected"] = levels.expected(grid, level + 1)
    found["some"] = levels.expected(grid, level + 1, torch.tensor([0, 64, 130]))
    return found


@pytest.mark.parametrize("level", [1, 3, 5])
def test_tiles_and_batches_give_what_the_whole_gives(
    scheme: NestedScheme, coefficients: Tensor, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = scheme._levels
    whole = go_through(levels, coefficients, level)
    assert all(len(value.unique()) > 5 for value in whole.values())
    for i in range(len(coefficients)):
        alone = go_through(levels, coefficients[i : i + 1], level)
        for name, value in alone.items():
            assert torch.equal(value, whole[name][i : i + 1]), name
    looks: list[int] = []
    look = IntegerPasses.look
    monkeypatch.setattr(IntegerPasses, "look", lambda *a: looks.append(0) or look(*a))
    for tile, pieces in ((5, 3 * 3 * 2), (11, 3 * 2 * 1), (13, 3)):
        monkeypatch.setattr(level_network, "TILE", tile)
        looks.clear()
        for name, value in go_through(levels, coefficients, level).items():
            assert torch.equal(value, whole[name]), (tile, name)
        assert len(looks) == pieces * (len(CONFIG.passes[level]) - 1)


def test_tiles_of_the_first_level(
    scheme: NestedScheme, coefficients: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scheme._first

    @torch.inference_mode()
    def outcome() -> list[Tensor]:
        grid, found = torch.zeros(3, 13, 9, len(first.bands)), []
        for number in range(len(CONFIG.passes[0])):
            found.append(first.index(grid, number))
            first.update(grid, number, first.rest(coefficients, number).round().to(torch.int32))
        return [*found, grid, first.expected(grid, torch.tensor([0, 64, 130]))]

    whole = outcome()
    for tile in (5, 11, 13):
        monkeypatch.setattr(first_network, "TILE", tile)
        assert all(map(torch.equal, outcome(), whole))


@torch.inference_mode()
def test_what_a_level_tells_is_what_its_digits_say(
    scheme: NestedScheme, coefficients: Tensor
) -> None:
    """Summed up pass by pass, but for the last one's; and it makes a difference."""
    levels, level = scheme._levels, 2
    found = go_through(levels, coefficients, level)
    grid = torch.zeros_like(coefficients)
    for before in range(level):
        units = torch.from_numpy(CONFIG.units(before))
        grid += level_digits(coefficients, grid, before, CONFIG) * units
    digits = (found["grid"].clone() - grid) / CONFIG.unit(level)
    last = torch.from_numpy(pass_mask(CONFIG, level, len(CONFIG.passes[level]) - 1))
    digits[last[lattice_of(grid)].expand_as(grid)] = 0
    every = levels._passes.of_bands(torch.arange(192))
    assert torch.equal(found["told"], every(digit_features(digits)))
    look = levels.look(grid, level)  # nothing told
    for number in range(1, len(CONFIG.passes[level])):
        changed = levels.index(grid, look, number) != found[f"index {number}"]
        assert changed.any()


def by_pass(values: Tensor, level: int, number: int) -> Tensor:
    """Of ``(B, h, w, 192)`` those of a pass, ``(B, n)``, in the order of its symbols."""
    mask = torch.from_numpy(pass_mask(CONFIG, level, number))[lattice_of(values)]
    return torch.stack([one[mask] for one in values])


def test_states_for_training_are_the_encoders(scheme: NestedScheme) -> None:
    """But for a digit now and then that is on a knife's edge."""
    images = noise_pictures(3, 72, seed=5)
    states = nested_model().encoded_states(images)
    assert len(states) == CONFIG.levels + 1
    assert not states[0][0].any()
    assert not states[-1][1].any()
    streams = scheme.encode(list(images.permute(0, 2, 3, 1).numpy()), [0] * 3, CONFIG.levels)
    coefficients = to_bands(images, CONFIG)
    nearest = 0.0
    for level in range(CONFIG.levels):
        (grid, digits), (after, _) = states[level : level + 2]
        assert torch.equal(after, grid + digits * torch.from_numpy(CONFIG.units(level)))
        assert not digits[..., ~CONFIG.level_bands(level)].any()
        other = digits != level_digits(coefficients, grid, level, CONFIG)
        nearest += float(other.float().mean())
        for number in range(len(CONFIG.passes[level])):
            found = by_pass(digits, level, number).numpy()
            sent = np.stack([stream[level].symbols[number] for stream in streams])
            if level:
                sent = sent * np.where(by_pass(grid, level, number).numpy() < 0, -1, 1)
            assert (found != sent).mean() < 0.012, (level, number)
    assert nearest > 0.02  # digits by themselves are others


def test_states_of_the_first_levels_alone() -> None:
    model, images = nested_model(), noise_pictures(2, 40, seed=5)
    every, some = model.encoded_states(images), model.encoded_states(images, 2)
    assert len(some) == 3
    for (grid, digits), (same, own) in zip(some[:2], every, strict=False):
        assert torch.equal(grid, same)
        assert torch.equal(digits, own)
    assert torch.equal(some[2][0], every[2][0])
    one = model.encoded_states(images[1:])
    for (grid, _), (same, _) in zip(one, every, strict=True):
        assert (grid[0] != same[1]).float().mean() < 1e-3  # float sums of another batch


def test_the_likelihood_of_several_levels_is_that_of_each_alone() -> None:
    model, images = nested_model(), noise_pictures(2, 40, seed=6)
    states = model.encoded_states(images)
    with torch.no_grad():
        together = model(images, [5, 0, 1, 6], states=states)
        for level, losses in zip([5, 0, 1, 6], together, strict=True):
            (alone,) = model(images, [level], states=states)
            assert alone.keys() == losses.keys()
            for name, value in alone.items():
                torch.testing.assert_close(value, losses[name], rtol=2e-3, atol=1e-5)


def test_later_passes_are_cheaper_for_what_is_told() -> None:
    """A pass network that is trained for some steps on digits that repeat each other."""
    torch.manual_seed(0)
    model = nested_model(pixels=False)
    for part in (model.pass_network,):
        torch.nn.init.normal_(part.head, std=1e-3)
    images = noise_pictures(2, 64, seed=7)
    states = model.encoded_states(images)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("pass_") or name == "network.head")
    own = list(model.pass_network.parameters())
    optimizer = torch.optim.Adam(own, 3e-3)

    def bits() -> Tensor:
        loss: dict[str, Any] = model(images, [3], states=states)[0]
        return loss["bits"]

    before = float(bits())
    for _ in range(15):
        optimizer.zero_grad()
        bits().backward()
        optimizer.step()
    assert float(bits()) < 0.98 * before
    assert all(p.grad is not None for p in own)


def test_a_models_networks_fit_each_other() -> None:
    model = nested_model()
    assert isinstance(model, NestedModel)
    config, passes = model.config, model.pass_network.config
    later = sum(len(level) - 1 for level in config.passes[1:])
    assert (passes.levels, passes.steps) == (config.levels - 1, later)
    assert passes.trunk == model.network.config.channels
