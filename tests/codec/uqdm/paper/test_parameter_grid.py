"""The grid of means and scales: close to all exact distributions."""

import numpy as np
import pytest
import torch

from codec.uqdm.paper.model import LOG_MASS
from codec.uqdm.paper.parameter_grid import Grid, pixel_grid, prior_grid
from tests.codec.ideal import cross_entropy


@pytest.fixture(scope="module", params=["logistic", "gaussian"])
def prior(request):
    return request.param, prior_grid(request.param, 5.7)


@pytest.mark.parametrize("scale", [0.05, 0.13, 0.5, 1.7, 4.0])
def test_tables_cost_little_more_than_exact_distributions(prior, scale):
    name, grid = prior
    random = np.random.default_rng(0)
    mean = random.uniform(-20, 20, 40_000)
    noise = random.normal if name == "gaussian" else random.logistic
    deviation = 1.0 if name == "gaussian" else np.pi / np.sqrt(3)
    drawn = mean + noise(size=mean.size) * scale / deviation
    symbols = np.floor(drawn + 0.5).astype(np.int64)  # k has mass G(k + 1/2) - G(k - 1/2)
    choice = grid.choose(mean, np.full_like(mean, scale))
    coded = cross_entropy((symbols - choice.offset).astype(np.int32), choice.index, grid.tables)
    distance = torch.from_numpy(symbols - mean)
    exact = -LOG_MASS[name](distance, torch.full_like(distance, scale)).sum().item() / np.log(2)
    assert exact < coded < 1.01 * exact


def test_the_integer_part_of_a_mean_is_its_offset(prior):
    _, grid = prior
    mean = np.array([-3.25, -0.25, 0.75, 7.75])
    choice = grid.choose(mean, np.full(4, 0.5))
    assert choice.offset.tolist() == [-4, -1, 0, 7]
    assert len(set(choice.index.tolist())) == 1


def test_every_number_finds_a_table(prior):
    _, grid = prior
    mean = np.array([np.nan, np.inf, -np.inf, 1e30, 0.0, 0.0, 0.0, 0.0])
    scale = np.array([1.0, 1.0, 1.0, 1.0, np.nan, np.inf, 0.0, -1.0])
    index = grid.choose(mean, scale).index
    assert index.min() >= 0
    assert index.max() < len(grid.tables)


def test_wide_priors_have_wide_tables():
    """Three steps or fewer have priors of many quantiser steps, which must not all escape."""
    grid = prior_grid("gaussian", 40.0)
    symbols = np.random.default_rng(0).normal(0, 30, 5000).round().astype(np.int32)
    choice = grid.choose(np.zeros(5000), np.full(5000, 30.0))
    _, outside = grid.tables.entries(symbols - choice.offset, choice.index)
    assert outside.mean() < 1e-3


def test_pixels_cost_what_the_exact_posterior_says():
    deviation = 0.27
    grid = pixel_grid(deviation)
    random = np.random.default_rng(0)
    x = random.integers(0, 256, 20_000)
    y = x + random.normal(0, deviation, x.size)
    choice = grid.choose(y, np.zeros_like(y))
    coded = cross_entropy((x - choice.offset).astype(np.int32), choice.index, grid.tables)
    values = np.arange(-3, 260)
    density = np.exp(-0.5 * ((y[:, None] - values) / deviation) ** 2)
    exact = -np.log2(np.exp(-0.5 * ((y - x) / deviation) ** 2) / density.sum(1)).sum()
    assert exact * 0.999 < coded < exact * 1.01


def test_grid_survives_storage(prior):
    _, grid = prior
    copy = Grid.from_arrays(grid.to_arrays())
    mean, scale = np.linspace(-2, 2, 99), np.geomspace(0.01, 9, 99)
    assert (copy.choose(mean, scale).index == grid.choose(mean, scale).index).all()
    assert (copy.tables.counts == grid.tables.counts).all()


def test_damaged_grids_are_refused(prior):
    arrays = prior[1].to_arrays()
    with pytest.raises(ValueError):
        Grid.from_arrays(arrays | {"edges": arrays["edges"][::-1].copy()})
    with pytest.raises(ValueError):
        Grid.from_arrays(arrays | {"fractions": arrays["fractions"] * 2})
