"""The integer grid on which the network's means and scales choose a probability table.

A distribution of symbols has a mean m and a scale s, in units of the quantiser's step. The scale
gets one of ``S`` rows by comparison with stored edges (not by a logarithm, which differs between
machines). The mean is rounded to multiples of 1/F; rows of small scales have a larger F, because
there a small shift of m moves all of the mass. The integer part of m is an offset of the symbol, so
all symbols share ``sum(F)`` tables.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from ...scheme import Choice
from ...stream.entropy import Tables
from ...stream.protection import Rounded, Settle, as_computed

Prior = Literal["logistic", "gaussian"]

_LARGEST_MEAN = 2.0**24  # larger than any encoder's; keeps integers of a forged stream in range

# Measured on uqdm-tiny: 0.17, 0.21, 0.09 and -0.2 % above the exact distributions in layers 0 to 3;
# a mean twice as fine costs 0.12, 0.08, 0.04 and -0.2 %, and doubles the tables.
_SMALLEST = 2.0**-6  # standard deviation of the prior, in units of the step
_ROWS_PER_OCTAVE = 8
_STEPS_PER_DEVIATION = 4.0
_FRACTIONS = (4, 128)
# Coding is several times faster if all tables have so many symbols (entropy.py). That is enough for
# deviations up to the limit; with larger ones too many symbols would escape.
_UNIFORM_REACH, _UNIFORM_LIMIT = 15, 6.5


@dataclass(frozen=True)
class Guard:
    """The largest difference between the parameters of two devices (see protection.py).

    Attributes:
        mean: in units of the step.
        scale: relative to the scale.
    """

    mean: float
    scale: float


@dataclass(frozen=True)
class Grid:
    """Rows of scales, with each row's mean steps and tables.

    Attributes:
        edges: boundaries between the rows' scales, ``(S - 1,) float64``, ascending.
        fractions: F of each row, ``(S,) int64``.
        tables: row by row; table f of a row is for means f/F above an integer.
    """

    edges: np.ndarray
    fractions: np.ndarray
    tables: Tables
    _begin: np.ndarray = field(init=False, repr=False)  # each row's first table

    def __post_init__(self) -> None:
        if (
            len(self.fractions) != len(self.edges) + 1
            or self.fractions.min() < 1
            or self.fractions.sum() != len(self.tables)
            or not np.all(np.diff(self.edges) > 0)
        ):
            raise ValueError("not a grid of probability tables")
        begin = np.cumsum(self.fractions) - self.fractions
        object.__setattr__(self, "_begin", begin)

    def choose(
        self,
        mean: np.ndarray,
        scale: np.ndarray,
        guard: Guard | None = None,
        settle: Settle = as_computed,
    ) -> Choice:
        """Tables for means and scales, both ``(n,) float64`` in units of the step.

        With a guard, ``settle`` decides the rows of the scales, and then the points of the means.
        With a guard of 0 there is nothing to decide.
        """
        row = np.searchsorted(self.edges, scale)
        if guard is not None and guard.scale and len(self.edges):
            row = settle(self._rounded_rows(row, scale, guard.scale))
        fractions = self.fractions[row]
        fine = np.nan_to_num(mean).clip(-_LARGEST_MEAN, _LARGEST_MEAN) * fractions
        point = np.floor(fine + 0.5).astype(np.int64)
        if guard is not None and guard.mean:
            above = fine - point  # -1/2 .. 1/2
            other = point + np.where(above < 0, -1, 1)
            distance = (0.5 - np.abs(above)) / (guard.mean * fractions)
            point = settle(Rounded(point, other, distance))
        offset = point // fractions
        index = self._begin[row] + point - offset * fractions
        return Choice(index.astype(np.int32), self.tables, offset.astype(np.int32))

    def _rounded_rows(self, row: np.ndarray, scale: np.ndarray, guard: float) -> Rounded:
        below = np.abs(scale / self.edges[np.maximum(row - 1, 0)] - 1)
        above = np.abs(scale / self.edges[np.minimum(row, len(self.edges) - 1)] - 1)
        upwards = (above < below) | (row == 0)
        other = row + np.where(upwards, 1, -1)
        return Rounded(row, other, np.minimum(below, above) / guard)

    def check_guard(self, guard: Guard) -> None:
        """Raises ValueError if a number could be within the guard of two boundaries."""
        widest = max(guard.mean * self.fractions.max(), 0.0)
        rows = np.diff(np.log(self.edges)).min() if len(self.edges) > 1 else np.inf
        if not (0 <= guard.mean and widest <= 0.25 and 0 <= guard.scale <= rows / 4):
            raise ValueError(f"{guard} is too wide for the grid")

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The arrays a model file stores."""
        tables = {f"tables.{name}": array for name, array in self.tables.to_arrays().items()}
        return {"edges": self.edges, "fractions": self.fractions, **tables}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Grid":
        """Raises KeyError or ValueError if the arrays are not a grid."""
        prefix = "tables."
        tables = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        return cls(arrays["edges"], arrays["fractions"], Tables.from_arrays(tables))


def prior_grid(prior: Prior, largest: float) -> Grid:
    """The grid of the latents' priors, g convolved with the uniform of one step (UQDM eq. 7).

    A symbol k has mass G(k + 1/2 - m) - G(k - 1/2 - m). Deviations of G beyond ``largest``, in
    units of the step, use the tables of ``largest``.
    """
    rows = 1 + max(int(np.ceil(np.log2(largest / _SMALLEST) * _ROWS_PER_OCTAVE)), 0)
    scales = _SMALLEST * 2.0 ** (np.arange(rows) / _ROWS_PER_OCTAVE)
    edges = scales[1:] * 2.0 ** (-0.5 / _ROWS_PER_OCTAVE)
    needed = 2.0 ** np.ceil(np.log2(_STEPS_PER_DEVIATION / scales))
    fractions = needed.clip(*_FRACTIONS).astype(np.int64)
    cdf, tail = (_logistic_cdf, 7.7) if prior == "logistic" else (_normal_cdf, 4.9)
    uniform = scales[-1] <= _UNIFORM_LIMIT

    def pmfs() -> Iterator[tuple[int, np.ndarray]]:
        for scale, count in zip(scales, fractions, strict=True):
            reach = _UNIFORM_REACH if uniform else int(np.ceil(tail * scale)) + 1
            symbols = np.arange(-reach, reach + 1)
            for fraction in range(count):
                bounds = np.append(symbols - 0.5, reach + 0.5) - fraction / count
                yield -reach, _interval_masses(cdf, bounds / scale)

    return Grid(edges, fractions, Tables.from_pmfs(pmfs()))


def pixel_grid(deviation: float) -> Grid:
    """The grid of p(x | z_0), proportional to exp(-(y - x)^2 / 2 deviation^2) over the integers x.

    y is z_0 / alpha_0 and ``deviation`` sigma_0 / alpha_0, both in pixel values (VDM eq. 8).
    """
    fractions = int(np.clip(2.0 ** np.ceil(np.log2(16 / deviation)), 8, 256))

    reach = int(np.ceil(5.3 * deviation)) + 1
    symbols = np.arange(-reach, reach + 1)

    def pmfs() -> Iterator[tuple[int, np.ndarray]]:
        for fraction in range(fractions):
            density = np.exp(-0.5 * ((symbols - fraction / fractions) / deviation) ** 2)
            yield -reach, density / density.sum()

    return Grid(np.zeros(0), np.array([fractions]), Tables.from_pmfs(pmfs()))


def _interval_masses(cdf: Callable[[np.ndarray], np.ndarray], bounds: np.ndarray) -> np.ndarray:
    """Masses between neighbouring bounds, computed in the smaller tail for precision."""
    left = np.diff(cdf(bounds))
    right = -np.diff(cdf(-bounds))
    return np.where(bounds[1:] <= 0, left, right)


def _logistic_cdf(x: np.ndarray) -> np.ndarray:
    """The CDF of a logistic distribution with standard deviation 1."""
    return 1 / (1 + np.exp((x * (-np.pi / np.sqrt(3))).clip(max=300)))


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    return torch.special.ndtr(torch.from_numpy(np.ascontiguousarray(x))).numpy()
