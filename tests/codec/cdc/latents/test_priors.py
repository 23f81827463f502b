"""Probabilities of latents: they are probabilities, precise where they are small, and trainable."""

import math

import numpy as np
import pytest
import torch

from codec.cdc.latents.priors import FactorizedPrior, gaussian_likelihood, lower_bound


@pytest.fixture
def prior():
    """A prior of densities that differ in place and width and are not symmetric."""
    torch.manual_seed(3)
    prior = FactorizedPrior(6)
    with torch.no_grad():
        for i, matrix in enumerate(prior.matrices):
            matrix += 0.3 * torch.randn_like(matrix)
            if i == 0:
                matrix += torch.linspace(-1, 2, 6)[:, None, None]
        for factor in prior.factors:
            factor += 0.5 * torch.randn_like(factor)
        prior.median.copy_(torch.linspace(-2, 2, 6))
    return prior


def integers(prior, reach):
    """All symbols within reach as values (1, C, 1, n)."""
    symbols = torch.arange(-reach, reach + 1.0)
    return (symbols + prior.medians[:, None])[None, :, None]


def test_the_masses_of_all_integers_are_a_distribution(prior):
    mass = prior.likelihood(integers(prior, 2000))
    assert (mass > 0).all()
    assert mass.sum(-1).flatten().tolist() == pytest.approx([1] * 6, abs=1e-4)


def test_values_keep_their_places_in_batch_and_picture(prior):
    z = 4 * torch.randn(3, 6, 4, 5)
    mass = prior.likelihood(z).detach()
    assert mass.shape == z.shape
    for b, c, i, j in ((0, 0, 0, 0), (2, 5, 3, 4), (1, 3, 0, 4)):
        values = torch.zeros(1, 6, 1, 1)
        values[0, c] = z[b, c, i, j]
        alone = float(prior.likelihood(values)[0, c].detach())
        assert float(mass[b, c, i, j]) == pytest.approx(alone, rel=1e-3)


def test_small_masses_are_precise_in_float32(prior):
    z = integers(prior, 300)
    mass, exact = prior.likelihood(z).detach(), prior.double().likelihood(z.double()).detach()
    assert float(exact.min()) < 1e-8  # there are small ones
    assert (mass / exact).log().abs().max() < 0.02


def test_a_bin_around_the_exact_centre_has_its_mass():
    """The sign of 0 is 0, which would lose all of it."""
    prior = FactorizedPrior(1)
    with torch.no_grad():
        for bias in prior.biases:
            bias.zero_()
    assert float(prior.likelihood(torch.zeros(1, 1, 1, 1)).detach()) > 0.02


def test_tables_hold_all_but_the_tails(prior):
    exact = prior.double().likelihood(integers(prior, 255).double())[0, :, 0].detach().numpy()
    tables = prior.tables()
    lengths = [len(masses) for _, masses in tables]
    assert len(tables) == 6
    assert min(lengths) < 100  # they are not all cut at the largest offset
    for (first, masses), channel in zip(tables, exact, strict=True):
        assert masses.dtype == np.float64
        inside = channel[first + 255 :][: len(masses)]
        assert masses == pytest.approx(inside, rel=1e-9, abs=2e-9)
        assert channel.sum() - inside.sum() < 2e-9 + 511e-9  # the tails' likelihoods are floored
        if len(masses) < 511:
            assert masses.sum() == pytest.approx(1, abs=2.1e-9)
            assert masses[0] + masses[-1] > 1e-10  # and not longer than they need to be


def test_the_widest_table_ends_at_255():
    prior = FactorizedPrior(2)
    with torch.no_grad():
        prior.matrices[0].sub_(5)
    for first, masses in prior.tables():
        assert (first, len(masses)) == (-255, 511)
        assert 0 < masses.sum() < 0.999


def test_a_density_far_from_its_median_still_has_a_table():
    prior = FactorizedPrior(1)
    with torch.no_grad():
        prior.median.fill_(1e4)
    first, masses = prior.tables()[0]
    assert len(masses) >= 1
    assert -255 <= first <= 255


def test_the_median_loss_moves_the_medians_alone_and_to_the_median(prior):
    prior.median_loss().backward()
    trained = {name for name, p in prior.named_parameters() if p.grad is not None}
    assert trained == {"median"}
    optimizer = torch.optim.Adam([prior.median], lr=0.1)
    for step in range(500):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 500)
        optimizer.zero_grad()
        prior.median_loss().backward()
        optimizer.step()
    logits = prior.logits_cumulative(prior.medians[:, None])
    assert torch.sigmoid(logits).flatten().tolist() == pytest.approx([0.5] * 6, abs=1e-3)


def test_training_on_samples_finds_their_entropy():
    torch.manual_seed(0)
    prior = FactorizedPrior(1)
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.02)
    for _ in range(600):
        z = 3 * torch.randn(1, 1, 32, 32) + 5
        noisy = z + torch.rand_like(z) - 0.5
        optimizer.zero_grad()
        (-prior.likelihood(noisy).log2().mean() + prior.median_loss()).backward()
        optimizer.step()
    z = (3 * torch.randn(1, 1, 128, 128) + 5).round()
    bits = float(-prior.likelihood(z).log2().mean().detach())
    assert bits == pytest.approx(0.5 * math.log2(2 * math.pi * math.e * 9), abs=0.05)
    assert float(prior.medians) == pytest.approx(5, abs=0.5)


def gaussian_mass(distance, scale):
    upper, lower = (distance - 0.5) / scale, (distance + 0.5) / scale
    return 0.5 * (math.erfc(upper / 2**0.5) - math.erfc(lower / 2**0.5))


@pytest.mark.parametrize("scale", [0.1, 0.4, 1.0, 7.5, 60.0])
def test_gaussian_masses(scale):
    y = torch.arange(-20, 21.0)
    mass = gaussian_likelihood(y, torch.tensor(0.3), torch.tensor(scale))
    for value, ours in zip(y.tolist(), mass.tolist(), strict=True):
        exact = max(gaussian_mass(abs(value - 0.3), scale), 1e-9)
        assert ours == pytest.approx(exact, rel=1e-3)


def test_gaussian_masses_are_floored_and_the_scale_is_at_least_a_tenth():
    far = gaussian_likelihood(torch.tensor(50.0), torch.tensor(0.0), torch.tensor(1.0))
    assert float(far) == pytest.approx(1e-9)
    y, mean = torch.tensor([0.45, 0.7]), torch.zeros(2)
    expected = gaussian_likelihood(y, mean, torch.tensor(0.1))
    for scale in (0.01, 0.0, -3.0):
        assert (gaussian_likelihood(y, mean, torch.tensor(scale)) == expected).all()


def test_a_scale_that_is_too_small_can_grow_again():
    scale = torch.tensor([-0.5, -0.5], requires_grad=True)
    y = torch.tensor([0.6, 0.0])  # the first wants a larger scale, the second a smaller one
    (-gaussian_likelihood(y, torch.zeros(2), scale).log().sum()).backward()
    assert scale.grad[0] < 0
    assert scale.grad[1] == 0


def test_gradients_leave_a_bound_only_upwards():
    x = torch.tensor([0.5, 0.5, 2.0, 2.0], requires_grad=True)
    y = lower_bound(x, 1.0)
    assert y.tolist() == [1, 1, 2, 2]
    (y * torch.tensor([1.0, -1.0, 1.0, -1.0])).sum().backward()
    assert x.grad.tolist() == [0, -1, 1, -1]
