"""Shared randomness: always the same, uniform, and different for different streams and draws."""

import numpy as np

from codec.stream import dither


def test_the_numbers_never_change():
    # Streams depend on these: if this test fails, archives can no longer be decoded.
    levels = (dither.uniform(1, 2, (8,)) * 16 + 7.5).astype(int)
    assert levels.tolist() == [9, 0, 11, 6, 3, 5, 5, 11]
    quantiles = np.arange(dither.QUANTILES)
    assert dither.normal(0xFFFFFFFF, 0, (4,), quantiles).tolist() == [2957, 3626, 2896, 2487]


def test_dither_is_uniform_on_its_levels():
    u = dither.uniform(7, 1, (3, 200, 200))
    levels, counts = np.unique(u, return_counts=True)
    assert levels.tolist() == [(i - 7.5) / 16 for i in range(16)]
    assert abs(counts / u.size - 1 / 16).max() < 0.003  # four standard deviations


def test_streams_and_draws_are_independent():
    draws = [dither.uniform(s, d, (10_000,)) for s, d in ((1, 1), (1, 2), (2, 1))]
    correlation = np.corrcoef(draws) - np.eye(3)
    assert abs(correlation).max() < 0.04


def test_initial_noise_is_standard_normal():
    z = dither.normal(3, 0, (3, 128, 128), dither.normal_quantiles())
    assert abs(z.mean()) < 0.02
    assert abs(z.std() - 1) < 0.02
    assert 3.5 < abs(z).max() < 3.8
    assert abs((abs(z) < 1).mean() - 0.6827) < 0.01


def test_quantiles_are_symmetric_and_of_unit_variance():
    q = dither.normal_quantiles()
    assert q.shape == (dither.QUANTILES,)
    assert np.allclose(q, -q[::-1], atol=1e-12)
    assert abs(q.std() - 1) < 1e-12
