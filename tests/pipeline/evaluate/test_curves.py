"""Comparing rates of curves: closed forms, and curves that cannot be compared."""

import numpy as np
import pytest

from pipeline.evaluate.curves import at_rate, falls, more_bits, rising

RATES = np.array([0.1, 0.25, 0.5, 1.0, 2.0])
SPAN = (20.0, 33.0)  # what these curves have


def curve(factor: float = 1.0, gain: float = 0.0) -> list[tuple[float, float]]:
    """Decibels that rise with the logarithm of the rate, by 3 for each doubling."""
    return [(factor * rate, 30 + gain + 3 * np.log2(rate)) for rate in RATES]


def percent(*curves: list[tuple[float, float]], span: tuple[float, float] = SPAN) -> float:
    found = more_bits(*curves, span)
    assert found is not None
    return float(100 * np.expm1(found[0]))


def test_equal_curves_have_no_difference() -> None:
    assert percent(curve(), curve()) == pytest.approx(0, abs=1e-9)


def test_a_curve_that_takes_a_third_more_bits() -> None:
    assert percent(curve(4 / 3), curve()) == pytest.approx(100 / 3)
    assert percent(curve(), curve(4 / 3)) == pytest.approx(-25)


def test_a_curve_that_is_better_by_decibels() -> None:
    """3 dB are a doubling of the rate everywhere, so one that is 3 dB better saves half."""
    assert percent(curve(gain=3), curve()) == pytest.approx(-50)


def test_a_difference_that_grows_is_averaged_over_the_span() -> None:
    """log rate = v against 2v on values 0 to 1: the mean difference is 1/2, on 0 to .5 1/4."""
    values = np.linspace(0, 1, 5)
    others = [(float(np.exp(v)), float(v)) for v in values]
    steeper = [(float(np.exp(2 * v)), float(v)) for v in values]
    assert more_bits(steeper, others, (0, 1)) == pytest.approx((0.5, 0, 1))
    assert more_bits(steeper, others, (0, 0.5)) == pytest.approx((0.25, 0, 0.5))
    assert more_bits(steeper[:3], others, (0, 1)) == pytest.approx((0.25, 0, 0.5))


def test_nothing_to_compare() -> None:
    assert more_bits(curve(gain=100), curve(), SPAN) is None
    assert more_bits(curve()[:1], curve(), SPAN) is None
    assert more_bits([(1, float("inf")), (2, float("inf"))], curve(), SPAN) is None
    assert more_bits(curve(), curve(), (0.0, 100.0)) is None  # they share 13 of the 100


def test_exact_points_and_points_that_fall_are_left_out() -> None:
    points = [*curve(), (3.0, 20.0), (9.0, float("inf"))]
    rates, values = rising(points)
    assert list(rates) == list(RATES)
    assert (np.diff(values) > 0).all()
    assert percent(points, curve()) == pytest.approx(0, abs=1e-9)


def test_between_points_the_logarithm_of_the_rate_counts() -> None:
    assert at_rate([(0.5, 30), (2, 36)], 1) == pytest.approx(33)
    assert at_rate([(0.5, 30), (2, 36)], 0.4) is None
    assert at_rate([], 1) is None


def test_falls() -> None:
    assert falls([1, 2, 1.5, 3, 2]) == [3, 5]
    assert falls([1, 1, float("inf")]) == []
