"""Nested quantisation of transform bands: exact, coarse to fine, one network for all levels.

Level l refines every coefficient c by a digit, k = round((c - grid) / Delta_l), grid += k
Delta_l, with Delta_l = first_delta / 3**l, or by the next digit towards zero where that is worth
more bits than its error costs (``digit_choice.py``). ``grid``, an integer multiple of the last
Delta, is the whole state of both sides; no noise, no dither, no float.

A level is sent in passes, each a set of bands in blocks of some colours, and each sees the digits
of the passes before it. Blocks are coloured as a checkerboard, or by lattices that grow denser, so
that only a sixteenth of the blocks is coded without knowing any neighbour, and not half. (level,
pass) is a *step* of the schedule; one more step at the end shapes the lossless layer. At every step
the network gives for each coefficient

    tilt, width   indices of the digit's table, p(k) ~ exp(tilt k - width E_k + theta_k): the
                  two-parameter exponential family, which spans every distribution of a trit
    shift         where in its interval the coefficient is expected (the reconstruction)
    spread        at the last step: scale index of each pixel's residual

E_k and theta_k for |k| >= 2 are learnt for each level and significance class.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...numerics import lapped_transform as bands
from ...numerics.lapped_transform import BANDS, BLOCK
from ...stream.entropy import Tables

RATIO = 3
MAX_LEVELS = 8  # more would lead out of the integers that float32 holds
MAX_PASSES = 16  # of a level
SHIFT_UNIT = 32  # shifts are in 1/32 of the current interval
PIXEL_UNIT = 16  # the lossless layer's prediction is in 1/16 of a pixel value
RESIDUAL_RANGE = 8  # residuals beyond +-8 escape
# The colours of blocks, by their number: a tile that is repeated. Of five, 0 and 1 are a sixteenth
# of the blocks each, and every further colour has as many as all before it, between them.
LATTICES = {
    2: np.array([[0, 1], [1, 0]]),
    5: np.array([[0, 4, 2, 4], [4, 3, 4, 3], [2, 4, 1, 4], [4, 3, 4, 3]]),
}
OUTPUTS = {"tilt": 0, "width": 1, "shift": 2, "spread": 3}  # each BANDS wide


@dataclass(frozen=True)
class Grid:
    """A uniform grid: index i stands for ``low + i * step``; ``size`` values."""

    low: float
    step: float
    size: int

    def values(self) -> np.ndarray:
        return self.low + self.step * np.arange(self.size)


Passes = tuple[tuple[tuple[str, int | tuple[int, ...]], ...], ...]


@dataclass(frozen=True)
class NestedConfig:
    """What the quantiser and its schedule are made of. All of it is stored in the model file.

    ``colours`` are 2 or 5 (``LATTICES``). ``passes[l]`` lists the passes of level l as (bands,
    colours): bands "low", "high" or "all"; of two colours 0, 1, or 2 for both; of five a tuple.
    ``first_order`` keeps the bands out of level 0 that are
    hardly ever significant there; the few that are escape at level 1. With ``ahead`` the network
    sees the last level's outcome relative to the Delta that another level would have.
    """

    levels: int = 6
    first_delta: float = 4.0
    dead_zone: float = 0.1
    low_order: tuple[int, int] = (2, 1)  # u + v up to this is "low", for luma and for chroma
    first_order: tuple[int, int] | None = None  # level 0 has bands up to this only; None: all
    colours: int = 2
    passes: Passes = (
        (("low", 0), ("low", 1), ("high", 2)),
        *((("low", 0), ("low", 1), ("high", 0), ("high", 1)),) * 3,
        *((("all", 0), ("all", 1)),) * 2,
    )
    first_digits: int = 4  # largest digit of level 0 that does not escape
    digits: int = 2  # of the other levels
    first_tilt: Grid = Grid(-20.0, 0.5, 81)
    first_width: Grid = Grid(-2.0, 0.25, 57)
    tilt: Grid = Grid(-8.0, 0.25, 65)
    width: Grid = Grid(-5.0, 0.25, 69)
    spread: Grid = Grid(-3.0, 0.25, 25)  # log2 of the residual's standard deviation in pixels
    band_rms: tuple[float, ...] = field(default=(1.0,) * BANDS)
    ahead: bool = False

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "NestedConfig":
        values = dict(values)
        for name in ("first_tilt", "first_width", "tilt", "width", "spread"):
            if name in values:
                values[name] = Grid(**values[name])
        if "passes" in values:
            values["passes"] = tuple(
                tuple((str(b), int(c) if type(c) is int else tuple(c)) for b, c in level)
                for level in values["passes"]
            )
        for name in ("low_order", "first_order", "band_rms"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        config = cls(**values)
        config.check()
        return config

    def check(self) -> None:
        """Raises ValueError, or TypeError, for what no model has."""
        if not 1 <= self.levels <= MAX_LEVELS or len(self.passes) != self.levels:
            raise ValueError(f"a model has 1 to {MAX_LEVELS} levels, and passes for each")
        passes = [one for level in self.passes for one in level]
        if self.colours not in LATTICES:
            raise ValueError(f"blocks have {' or '.join(map(str, LATTICES))} colours")
        known: set[int | tuple[int, ...]] = {0, 1, 2}
        if self.colours > 2:
            every = range(self.colours)
            known = {c for n in every for c in itertools.combinations(every, n + 1)}
        kinds = {(bands, colours) for bands in ("low", "high", "all") for colours in known}
        if not all(1 <= len(level) <= MAX_PASSES for level in self.passes) or {*passes} - kinds:
            raise ValueError(f"a level has 1 to {MAX_PASSES} passes of low, high or all bands")
        if len(self.band_rms) != BANDS or not min(self.band_rms) > 0:
            raise ValueError(f"band_rms are {BANDS} positive numbers")
        grids = (self.first_tilt, self.first_width, self.tilt, self.width, self.spread)
        if not all(type(grid.size) is int and 1 <= grid.size <= 1024 for grid in grids):
            raise ValueError("grids have 1 to 1024 values")
        if not 1e-3 <= self.first_delta <= 1e3 or not 0 <= self.dead_zone < 0.5:
            raise ValueError("first_delta or dead_zone is out of range")
        if not (1 <= self.first_digits <= 16 and 1 <= self.digits <= 16):
            raise ValueError("digits are at most 16")

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        if self.colours == 2:  # as model files of formats 1 and 2 have it
            del values["colours"]
        return values

    @property
    def num_steps(self) -> int:
        """(level, pass) steps, and one for the lossless layer."""
        return sum(map(len, self.passes)) + 1

    @property
    def last_delta(self) -> float:
        return self.first_delta / RATIO ** (self.levels - 1)

    def unit(self, level: int) -> int:
        """Delta of a level in units of the last Delta; of level -1: the prior's interval."""
        return RATIO ** (self.levels - 1 - level)

    def pass_colours(self, level: int, number: int) -> tuple[int, ...]:
        """The colours of the blocks that a pass has digits of, ascending."""
        colours = self.passes[level][number][1]
        if isinstance(colours, tuple):
            return colours
        return (0, 1) if colours == 2 else (colours,)

    def step_of(self, level: int, number: int = 0) -> int:
        return sum(map(len, self.passes[:level])) + number

    def steps(self) -> Iterator[tuple[int, int]]:
        """(level, pass) of every step but the last."""
        for level, passes in enumerate(self.passes):
            for number in range(len(passes)):
                yield level, number

    def grids(self, level: int) -> tuple[Grid, Grid]:
        """Grids of tilt and width at a level."""
        return (self.first_tilt, self.first_width) if level == 0 else (self.tilt, self.width)

    def max_digit(self, level: int) -> int:
        return self.first_digits if level == 0 else self.digits

    @property
    def mendable(self) -> float:
        """The largest error of a digit, in its Delta, that the next level's tables know."""
        return (self.digits + 0.5) / RATIO

    def low_bands(self) -> np.ndarray:
        """``(192,) bool``: the bands that go first."""
        return bands_up_to(self.low_order)

    def level_bands(self, level: int) -> np.ndarray:
        """``(192,) bool``: the bands that have digits at a level."""
        if level or self.first_order is None:
            return np.ones(BANDS, bool)
        return bands_up_to(self.first_order)

    def band_mask(self, level: int, number: int) -> np.ndarray:
        """``(192,) bool``: the bands that a pass has digits of."""
        low, coded = self.low_bands(), self.level_bands(level)
        which = self.passes[level][number][0]
        return coded & (low if which == "low" else ~low if which == "high" else True)


def bands_up_to(order: tuple[int, int]) -> np.ndarray:
    """``(192,) bool``: bands with u + v up to ``order``, for luma and for chroma."""
    sums = np.add.outer(np.arange(BLOCK), np.arange(BLOCK))
    return np.stack([sums <= limit for limit in (order[0], order[1], order[1])]).reshape(-1)


def colours_of(like: Tensor, config: NestedConfig) -> Tensor:
    """The colour of each block, ``(h, w) int64``, for ``(B, h, w, ...)``."""
    tile = torch.from_numpy(LATTICES[config.colours]).to(like.device, non_blocking=True)
    y, x = (torch.arange(n, device=like.device) % len(tile) for n in like.shape[1:3])
    return tile[y[:, None], x]


def places_of(like: Tensor, config: NestedConfig, level: int, number: int) -> Tensor | None:
    """Blocks of a pass among the ``h * w``, row by row, ``(n,)``; None: all of them."""
    chosen = config.pass_colours(level, number)
    if len(chosen) == config.colours:
        return None
    ours = np.isin(np.arange(config.colours), chosen)
    mask = torch.from_numpy(ours).to(like.device, non_blocking=True)
    inside = mask[colours_of(like, config).flatten()]
    if like.device.type == "cpu":
        return torch.nonzero(inside).flatten()
    # How many a GPU finds would have to be waited for; but sorting needs no number.
    tile = ours[LATTICES[config.colours]]
    rows, columns = (-(-(n - np.arange(len(tile))) // len(tile)) for n in like.shape[1:3])
    count = int((tile * np.outer(rows, columns)).sum())
    return inside.byte().sort(descending=True, stable=True).indices[:count]


def to_unit(images: Tensor) -> Tensor:
    """uint8 pictures ``(B, 3, H, W)`` to float32 in (-1, 1): x = 2 (raw + .5) / 256 - 1."""
    return (images.float() + 0.5) / 128.0 - 1.0


def to_bands(images: Tensor, config: NestedConfig) -> Tensor:
    """Coefficients ``(B, h, w, 192) float32`` of uint8 pictures, in units of the last Delta."""
    return bands.forward(to_unit(images)).permute(0, 2, 3, 1).contiguous() / config.last_delta


def digits(coefficients: Tensor, grid: Tensor, unit: float | Tensor, dead_zone: float) -> Tensor:
    """Digits that depend on nothing else, float integers: what training takes for the encoder's.

    A coefficient that is still zero ("insignificant") has a wider zero bin, about as wide as the
    encoder's choice (``digit_choice.py``) makes it on average.
    """
    rest = (coefficients - grid) / unit
    rounding = torch.where(grid == 0, 0.5 - dead_zone, 0.5)
    return torch.sign(rest) * torch.floor(rest.abs() + rounding)


def level_digits(coefficients: Tensor, grid: Tensor, level: int, config: NestedConfig) -> Tensor:
    """``digits`` of all bands at a level: zero where a band has none."""
    k = digits(coefficients, grid, config.unit(level), config.dead_zone)
    coded = config.level_bands(level)
    return k if coded.all() else k * torch.from_numpy(coded).to(k.device)


class Features:
    """What the network sees of ``grid``: two 8-bit integers for each coefficient.

    A companded one, 12 log2(1 + |grid| / Delta) with its sign, from a table; and a linear one,
    40 for the band's rms. Both are exact: a table look-up, a float32 product rounded once.
    ``chosen``, ``(n,)`` positions of bands, is for a network that sees only some.
    """

    def __init__(
        self,
        config: NestedConfig,
        device: torch.device | str = "cpu",
        chosen: np.ndarray | None = None,
    ) -> None:
        magnitude = np.arange(1024)
        table = np.minimum(np.round(12 * np.log2(1 + magnitude)), 127)
        self._table = torch.tensor(table, dtype=torch.float32, device=device)
        linear = 40.0 * config.last_delta / np.array(config.band_rms)
        if chosen is not None:
            linear = linear[chosen]
        self._linear = torch.tensor(linear, dtype=torch.float32, device=device)

    def __call__(self, grid: Tensor, unit: float | Tensor) -> Tensor:
        """``(..., n)`` grid in last Deltas, and the level's unit, to ``(..., 2 n)``."""
        # Exact: grid is a multiple of the unit, or the unit a third, which rounding makes exact.
        scaled = (grid / unit).round_()
        index = scaled.abs_().clamp_(max=1023.0).to(torch.int32)
        size = self._table.index_select(0, index.flatten()).view_as(grid)
        companded = size * torch.sign(grid)
        linear = (grid * self._linear).round_().clamp_(-127.0, 127.0)
        return torch.cat([companded, linear], -1)


def log_pmf(tilt: Tensor, width: Tensor, energy: Tensor, theta: Tensor) -> Tensor:
    """Log-probabilities in nats ``(..., 2 A + 1)`` of digits -A..A.

    ``energy`` and ``theta`` are ``(..., A + 1)``, by magnitude.
    """
    most = energy.shape[-1] - 1
    k = torch.arange(-most, most + 1, device=tilt.device)
    magnitude = k.abs()
    logits = tilt[..., None] * k - width[..., None] * energy[..., magnitude]
    return torch.log_softmax(logits + theta[..., magnitude], -1)


SETS = 3  # of tables at each level but the first: insignificant, just significant, older


def table_set(grid: Tensor, config: NestedConfig, level: int, low: Tensor) -> Tensor:
    """Which set of tables codes each coefficient's digit, float integers like ``grid``.

    Level 0 has two sets, high and low bands (``low``, ``(192,) bool``). A coefficient that became
    significant in the level before lies between its dead zone and half a step beyond, so its next
    digit is distributed otherwise than later ones. Tables of significant coefficients are for
    positive ones: a negative one's digit and tilt change their signs.
    """
    if level == 0:
        return low.expand_as(grid).float()
    size = grid.abs()
    kind = (size > 0).float() + (size > config.unit(level - 1)).float()
    return kind + SETS * (level - 1)


def orientation(grid: Tensor) -> Tensor:
    """-1 where a coefficient is negative, else 1: by this its digits are multiplied when coded."""
    return torch.where(grid < 0, -1.0, 1.0)


def digit_tables(
    config: NestedConfig, first: bool, energy: np.ndarray, theta: np.ndarray
) -> Tables:
    """Tables of level 0 (``first``: sets are high and low bands) or of all other levels.

    Args:
        energy, theta: ``(sets, A + 1)``, by set and magnitude.

    Table (set, tilt index, width index) is number (set * tilts + tilt) * widths + width.
    """
    tilt, width = config.grids(0 if first else 1)
    t, w = torch.from_numpy(tilt.values()), torch.from_numpy(width.values())
    pmfs = [
        log_pmf(t[:, None].expand(-1, len(w)), w[None].expand(len(t), -1), e, th)
        .exp()
        .flatten(0, 1)
        for e, th in zip(torch.from_numpy(energy), torch.from_numpy(theta), strict=True)
    ]
    most = energy.shape[-1] - 1
    # An escape must stay possible: the encoder may choose any digit.
    escape = 2.0**-18
    return Tables.from_matrix(-most, torch.cat(pmfs).numpy() * (1 - escape))


def residual_tables(config: NestedConfig) -> Tables:
    """Tables of the lossless layer, number (fraction + 8) * spreads + spread index.

    The residual is the integer pixel less the rounded prediction, Gaussian about the prediction's
    fraction.
    """
    residual = np.arange(-RESIDUAL_RANGE, RESIDUAL_RANGE + 1)
    pmfs = []
    for fraction in (np.arange(PIXEL_UNIT) - PIXEL_UNIT // 2) / PIXEL_UNIT:
        for sigma in 2.0 ** config.spread.values():
            edge = (np.append(residual, residual[-1] + 1) - 0.5 - fraction) / (sigma * math.sqrt(2))
            cdf = np.array([0.5 * math.erfc(-e) for e in edge])
            pmfs.append((-RESIDUAL_RANGE, np.maximum(np.diff(cdf), 1e-9)))
    return Tables.from_pmfs((f, p / max(p.sum(), 1.0) * (1 - 2.0**-18)) for f, p in pmfs)


def predict_pixels(coefficients: Tensor, config: NestedConfig) -> Tensor:
    """Integer pixel predictions in 1/16 of a pixel value, ``(B, 3, H, W) float64``, exact.

    Args:
        coefficients: ``(B, h, w, 192)`` integers in 1/32 of the last Delta.
    """
    pixels = bands.inverse_exact(coefficients.double().permute(0, 3, 1, 2))
    factor = config.last_delta / SHIFT_UNIT * 128.0 * PIXEL_UNIT
    pixels = torch.round(pixels * factor) + 127.5 * PIXEL_UNIT
    return pixels.clamp_(0.0, 255.0 * PIXEL_UNIT)


def pass_mask(config: NestedConfig, level: int, number: int) -> np.ndarray:
    """``(colours, 192) bool``: which bands a pass codes, by the colour of the block."""
    chosen = np.isin(np.arange(config.colours), config.pass_colours(level, number))
    mask: np.ndarray = chosen[:, None] & config.band_mask(level, number)
    return mask


def feature_unit(config: NestedConfig, level: int) -> float:
    """The Delta that the network's companded feature is relative to, in last Deltas."""
    if level == config.levels and config.ahead:
        return 1 / RATIO
    return config.unit(min(level, config.levels - 1))


def pixel_layout(values: Tensor) -> Tensor:
    """``(B, h, w, 192)`` values ordered colour, row, column to ``(B, 3, 8 h, 8 w)``."""
    x = values.unflatten(-1, (3, BLOCK, BLOCK)).permute(0, 3, 1, 4, 2, 5)
    return x.flatten(4, 5).flatten(2, 3)
