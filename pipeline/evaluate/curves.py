"""Curves of quality over rate: between their points, against each other, and where they fall."""

import itertools
from collections.abc import Sequence

import numpy as np


def rising(points: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Rates and values of the points that nothing cheaper reaches, by rate; both rise strictly.

    Points whose value is not finite (exact pictures) are left out.
    """
    rates: list[float] = []
    values: list[float] = []
    for rate, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if np.isfinite(value) and (not values or value > values[-1]):
            rates.append(rate)
            values.append(value)
    return np.array(rates), np.array(values)


def at_rate(points: Sequence[tuple[float, float]], bpp: float) -> float | None:
    """The value at a rate; None outside the rates of the points.

    Decibels are nearly linear in the logarithm of the rate.
    """
    rates, values = rising(points)
    if not len(rates) or not rates[0] <= bpp <= rates[-1]:
        return None
    return float(np.interp(np.log(bpp), np.log(rates), values))


def above(
    points: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]]
) -> list[tuple[float, float]] | None:
    """Between which rates one curve is above another; None where no rate is common to both.

    Both are interpolated as by ``at_rate``, so that between two points they cross at most once.
    """
    (rates, values), (other_rates, other_values) = rising(points), rising(others)
    if not len(rates) or not len(other_rates):
        return None
    low, high = max(rates[0], other_rates[0]), min(rates[-1], other_rates[-1])
    if low >= high:
        return None
    at = np.unique([low, high, *rates, *other_rates])
    at = np.log(at[(at >= low) & (at <= high)])
    gaps = np.interp(at, np.log(rates), values) - np.interp(at, np.log(other_rates), other_values)
    spans: list[tuple[float, float]] = []
    for (a, b), (gap, next_) in zip(itertools.pairwise(at), itertools.pairwise(gaps), strict=True):
        if max(gap, next_) <= 0:
            continue
        crossing = a + (b - a) * gap / (gap - next_) if min(gap, next_) < 0 else a
        begin, end = np.exp([crossing if gap < 0 else a, crossing if next_ < 0 else b])
        if spans and np.isclose(spans[-1][1], begin):
            begin = spans.pop()[0]
        spans.append((float(begin), float(end)))
    return spans


def bd_rate(
    points: Sequence[tuple[float, float]], anchor: Sequence[tuple[float, float]]
) -> float | None:
    """Bjontegaard's delta rate: how many percent more bits than the anchor, at the same value.

    The logarithms of the rates, as functions of the value, are interpolated by piecewise cubics
    (PCHIP) and their difference is averaged over the values that both reach. None where these are
    none, or where one of the curves has a single point.
    """
    (rates, values), (anchors, reached) = rising(points), rising(anchor)
    if len(rates) < 2 or len(anchors) < 2:
        return None
    low, high = max(values[0], reached[0]), min(values[-1], reached[-1])
    if low >= high:
        return None
    difference = integral(values, np.log(rates), low, high) - integral(
        reached, np.log(anchors), low, high
    )
    return float(100 * np.expm1(difference / (high - low)))


def integral(x: np.ndarray, y: np.ndarray, low: float, high: float) -> float:
    """Of the piecewise cubic through ``(x, y)``, from ``low`` to ``high`` inside of ``x``."""
    edges = np.unique([low, high, *x[(x > low) & (x < high)]])
    slopes = _slopes(x, y)
    total = 0.0
    for a, b in itertools.pairwise(edges):
        middle = (a + b) / 2  # Simpson's rule is exact for a cubic
        piece = _cubic(x, y, slopes, np.array([a, middle, b]))
        total += (b - a) / 6 * float(piece[0] + 4 * piece[1] + piece[2])
    return total


def interpolate(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The monotone piecewise cubic through ``(x, y)`` (PCHIP), at places between the ends."""
    return _cubic(x, y, _slopes(x, y), at)


def _cubic(x: np.ndarray, y: np.ndarray, slopes: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Hermite's cubic with the given slopes."""
    i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    width = x[i + 1] - x[i]
    t = (at - x[i]) / width
    return (
        (1 + 2 * t) * (1 - t) ** 2 * y[i]
        + t * (1 - t) ** 2 * width * slopes[i]
        + t**2 * (3 - 2 * t) * y[i + 1]
        - t**2 * (1 - t) * width * slopes[i + 1]
    )


def _slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Slopes that keep the cubics monotone (Fritsch & Butland 1984)."""
    width, secant = np.diff(x), np.diff(y) / np.diff(x)
    if len(x) == 2:
        return np.repeat(secant, 2)
    slopes = np.zeros(len(x))
    same = secant[:-1] * secant[1:] > 0
    near, far = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = (near + far) / (near / secant[:-1] + far / secant[1:])
    slopes[1:-1] = np.where(same, inner, 0.0)
    slopes[0] = _end_slope(width[0], width[1], secant[0], secant[1])
    slopes[-1] = _end_slope(width[-1], width[-2], secant[-1], secant[-2])
    return slopes


def _end_slope(near: float, next_: float, secant: float, other: float) -> float:
    """One-sided, of three points, made to keep the shape (Moler 2004, "Numerical computing")."""
    slope = ((2 * near + next_) * secant - near * other) / (near + next_)
    if np.sign(slope) != np.sign(secant):
        return 0.0
    if np.sign(secant) != np.sign(other) and abs(slope) > 3 * abs(secant):
        return 3 * secant
    return float(slope)


def falls(values: Sequence[float]) -> list[int]:
    """Positions, counted from 1, of values that are lower than those before them."""
    return [at for at, (a, b) in enumerate(itertools.pairwise(values), start=2) if b < a]
