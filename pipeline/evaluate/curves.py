"""Curves of quality over rate: interpolation, Bjontegaard's delta rate, and where they fall."""

import itertools
from collections.abc import Sequence

import numpy as np

Points = Sequence[tuple[float, float]]  # rates, and qualities: more is better
ENOUGH = 0.25  # the share of the span that two curves must have in common to be compared


def rising(points: Points) -> tuple[np.ndarray, np.ndarray]:
    """Rates and values of the points that are better than all cheaper ones; both rise strictly.

    Points with a value that is not finite (exact pictures) are left out.
    """
    rates: list[float] = []
    values: list[float] = []
    for rate, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if np.isfinite(value) and (not values or value > values[-1]):
            rates.append(rate)
            values.append(value)
    return np.array(rates), np.array(values)


def at_rate(points: Points, bpp: float) -> float | None:
    """The value at a rate; None outside the rates of the points.

    Qualities are nearly linear in the logarithm of the rate.
    """
    rates, values = rising(points)
    if not len(rates) or not rates[0] <= bpp <= rates[-1]:
        return None
    return float(np.interp(np.log(bpp), np.log(rates), values))


def more_bits(
    points: Points, others: Points, span: tuple[float, float]
) -> tuple[float, float, float] | None:
    """Bjontegaard's delta rate, and from which value to which it was averaged.

    It is the logarithm of the ratio of the rate of ``points`` to that of ``others``. The logarithms
    of the rates, as functions of the value, are interpolated by monotone piecewise cubics (PCHIP),
    and their difference is averaged over the part of ``span`` that both curves reach. None if that
    is less than a quarter of the span.
    """
    from scipy.interpolate import PchipInterpolator

    curves = [rising(points), rising(others)]
    if min(len(rates) for rates, _ in curves) < 2:
        return None
    low = max(span[0], *(values[0] for _, values in curves))
    high = min(span[1], *(values[-1] for _, values in curves))
    if high - low < ENOUGH * (span[1] - span[0]):
        return None
    own, other = (
        PchipInterpolator(values, np.log(rates)).integrate(low, high) for rates, values in curves
    )
    return float((own - other) / (high - low)), float(low), float(high)


def falls(values: Sequence[float]) -> list[int]:
    """Positions, counted from 1, of values that are lower than the one before."""
    return [at for at, (a, b) in enumerate(itertools.pairwise(values), start=2) if b < a]
