"""Rates against rates: closed forms, and what has no answer."""

import numpy as np
import pytest

from pipeline.evaluate.curves import at_rate, bd_rate, falls, integral, interpolate, rising

RATES = np.array([0.1, 0.25, 0.5, 1.0, 2.0])


def curve(factor: float = 1.0, gain: float = 0.0) -> list[tuple[float, float]]:
    """Decibels that rise with the logarithm of the rate, by 3 for each doubling."""
    return [(factor * rate, 30 + gain + 3 * np.log2(rate)) for rate in RATES]


def test_equal_curves_have_no_difference() -> None:
    assert bd_rate(curve(), curve()) == pytest.approx(0, abs=1e-9)


def test_a_curve_that_takes_a_third_more_bits() -> None:
    assert bd_rate(curve(4 / 3), curve()) == pytest.approx(100 / 3)
    assert bd_rate(curve(), curve(4 / 3)) == pytest.approx(-25)


def test_a_curve_that_is_better_by_decibels() -> None:
    """3 dB are a doubling of the rate everywhere, so one that is 3 dB better saves half."""
    assert bd_rate(curve(gain=3), curve()) == pytest.approx(-50)


def test_a_difference_that_grows_is_averaged_over_the_overlap() -> None:
    """log rate = v against 2v on values 0 to 1: the mean difference is 1/2."""
    values = np.linspace(0, 1, 5)
    anchor = [(float(np.exp(v)), float(v)) for v in values]
    steeper = [(float(np.exp(2 * v)), float(v)) for v in values]
    assert bd_rate(steeper, anchor) == pytest.approx(100 * (np.exp(0.5) - 1))
    half = [point for point in steeper if point[1] <= 0.5]
    assert bd_rate(half, anchor) == pytest.approx(100 * (np.exp(0.25) - 1))


def test_a_curve_through_few_points_by_hand() -> None:
    """Values 0, 1, 2 at y 0, 1, 4: slopes by Fritsch and Butland 0, 3/2, 4, so the integral is
    1/2 + (0 - 3/2) / 12 + 5/2 + (3/2 - 4) / 12."""
    x, y = np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 4.0])
    assert integral(x, y, 0, 2) == pytest.approx(3 - 1 / 8 - 2.5 / 12)
    at = np.linspace(0, 2, 41)
    assert (np.diff(interpolate(x, y, at)) > 0).all()


def test_it_agrees_with_scipy() -> None:
    scipy = pytest.importorskip("scipy.interpolate")
    random = np.random.default_rng(1)
    for _ in range(20):
        x, y = np.sort(random.random(7)), np.cumsum(random.random(7))
        theirs = scipy.PchipInterpolator(x, y)
        at = np.linspace(x[0], x[-1], 50)
        assert interpolate(x, y, at) == pytest.approx(theirs(at))
        low, high = x[0] + 0.01, x[-1] - 0.02
        assert integral(x, y, low, high) == pytest.approx(theirs.integrate(low, high))


def test_nothing_to_compare() -> None:
    assert bd_rate(curve(gain=100), curve()) is None
    assert bd_rate(curve()[:1], curve()) is None
    assert bd_rate([(1, float("inf")), (2, float("inf"))], curve()) is None


def test_exact_points_and_points_that_fall_are_left_out() -> None:
    points = [*curve(), (3.0, 20.0), (9.0, float("inf"))]
    rates, values = rising(points)
    assert list(rates) == list(RATES)
    assert (np.diff(values) > 0).all()
    assert bd_rate(points, curve()) == pytest.approx(0, abs=1e-9)


def test_between_points_the_logarithm_of_the_rate_counts() -> None:
    assert at_rate([(0.5, 30), (2, 36)], 1) == pytest.approx(33)
    assert at_rate([(0.5, 30), (2, 36)], 0.4) is None
    assert at_rate([], 1) is None


def test_falls() -> None:
    assert falls([1, 2, 1.5, 3, 2]) == [3, 5]
    assert falls([1, 1, float("inf")]) == []
