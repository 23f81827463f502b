"""Nested quantisation of transform bands: exact, coarse to fine, one network for all levels.

A coefficient is the value of a band in a block times the band's weight: eyes see some bands better
than others, so the steps of those are finer. Level l refines every coefficient c by a digit,
k = round((c - grid) / Delta_l), grid += k Delta_l, with Delta_l = first_delta / 3**l, or by the
next digit towards zero where that is worth more bits than its error costs (``digit_choice.py``).
``grid``, an integer multiple of the last Delta, is the whole state of both sides; no noise, no
dither, no float.

A level is sent in passes, each a set of bands in blocks on some lattices, and each sees the digits
of the passes before it. Lattices grow denser, so that only a sixteenth of the blocks is coded
without knowing any neighbour. For each coefficient of a pass the networks
give

    tilt, width   indices of the digit's table, p(k) ~ exp(tilt k - width E_k + theta_k): the
                  two-parameter exponential family, which spans every distribution of a trit
    shift         where in its interval the coefficient is expected (the reconstruction)

E_k and theta_k for |k| >= 2 are learnt for each level and significance class.
"""

import itertools
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...numerics.lapped_transform import BANDS, BLOCK, dct_matrix
from ...numerics.strips import strips
from ...stream.entropy import Tables

RATIO = 3
MAX_LEVELS = 8  # more would lead out of the integers that float32 holds
MAX_PASSES = 16  # of a level
SHIFT_UNIT = 32  # shifts are in 1/32 of the current interval
PIXEL_UNIT = 16  # the lossless layer's prediction is in 1/16 of a pixel value
# The lattice of each block: a pattern that is repeated. Lattices 0 and 1 are a sixteenth of the
# blocks each, and every further one has as many as all before it, between them.
_PATTERN = np.array([[0, 4, 2, 4], [4, 3, 4, 3], [2, 4, 1, 4], [4, 3, 4, 3]])
LATTICES, PERIOD = 5, len(_PATTERN)
_COMPANDED = 1023  # steps, beyond which all are the same
OUTPUTS = {"tilt": 0, "width": 1, "shift": 2}  # each BANDS wide


@dataclass(frozen=True)
class Grid:
    """A uniform grid: index i stands for ``low + i * step``; ``size`` values."""

    low: float
    step: float
    size: int

    def values(self) -> np.ndarray:
        return self.low + self.step * np.arange(self.size)


Orders = tuple[int, int]  # the largest u + v of bands, for luma and for chroma
Pass = tuple[str, tuple[int, ...]]  # bands "low", "high" or "all", in blocks on some lattices
_ALL_ORDERS = (2 * BLOCK - 2, 2 * BLOCK - 2)
# Squares of a checkerboard, by the sum of row and column, as lattices of blocks.
_EVEN, _ODD, _EVERY = (0, 1, 2, 3), (4,), (0, 1, 2, 3, 4)
_HALVES: tuple[Pass, ...] = (("low", _EVEN), ("low", _ODD), ("high", _EVEN), ("high", _ODD))


@dataclass(frozen=True)
class NestedConfig:
    """What the quantiser and its schedule are made of. All of it is stored in the model file.

    Attributes:
        colours: what each of the three colour components adds to red, green and blue, row by row.
        band_weights: what each band is multiplied by before it is quantised.
        orders: of each level, the bands that have digits in it: those with u + v up to this. Other
            bands are hardly ever significant there; the few that are escape at a later level.
        lead_order: bands up to this, if any, lead: colours, for the sake of small pictures.
        lead: the level whose digits those bands have in level 0 already; until after it they have
            no others.
        low_order: bands up to this are "low".
        passes: of each level, its passes.
        band_rms: the usual size of each band's coefficients, weights included.
    """

    levels: int = 6
    first_delta: float = 12.0
    dead_zone: float = 0.1
    lead_order: Orders = (-1, 0)
    lead: int = 2
    low_order: Orders = (2, 1)
    orders: tuple[Orders, ...] = ((4, 2), (6, 3), (10, 5), *(_ALL_ORDERS,) * 3)
    passes: tuple[tuple[Pass, ...], ...] = (
        (*(("low", (lattice,)) for lattice in range(LATTICES)), ("high", _EVERY)),
        (("low", (0, 1, 2)), ("low", (3,)), ("low", _ODD), ("high", _EVEN), ("high", _ODD)),
        (("low", (0, 1, 2)), ("low", (3,)), ("low", _ODD), ("high", _EVEN), ("high", _ODD)),
        _HALVES,
        _HALVES,
        (("all", _EVEN), ("all", _ODD)),
    )
    first_digits: int = 12  # largest digit of level 0 that does not escape
    digits: int = 2  # of the other levels
    first_tilt: Grid = Grid(-20.0, 0.5, 81)
    first_width: Grid = Grid(-2.0, 0.25, 57)
    tilt: Grid = Grid(-8.0, 0.25, 65)
    width: Grid = Grid(-5.0, 0.25, 69)
    colours: tuple[float, ...] = tuple(dct_matrix(3).flatten().round(4).tolist())
    band_weights: tuple[float, ...] = field(default=(1.0,) * BANDS)
    band_rms: tuple[float, ...] = field(default=(1.0,) * BANDS)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "NestedConfig":
        config = cls(**{name: _from_json(value) for name, value in values.items()})
        config.check()
        return config

    def check(self) -> None:
        """Raises ValueError, or TypeError, for what no model has."""
        if not 2 <= self.levels <= MAX_LEVELS or len(self.passes) != self.levels:
            raise ValueError(f"a model has 2 to {MAX_LEVELS} levels, and passes for each")
        if len(self.orders) != self.levels or self.orders[-1] != _ALL_ORDERS:
            raise ValueError("each level has an order, and the last one all bands")
        if (bands_up_to(self.lead_order) & ~bands_up_to(self.orders[0])).any():
            raise ValueError("bands that lead are among those of level 0")
        if type(self.lead) is not int or not 1 <= self.lead < self.levels:
            raise ValueError("bands lead by 1 level or more, and not by all")
        passes = [one for level in self.passes for one in level]
        known = {c for n in range(LATTICES) for c in itertools.combinations(_EVERY, n + 1)}
        kinds = {(bands, lattices) for bands in ("low", "high", "all") for lattices in known}
        if not all(1 <= len(level) <= MAX_PASSES for level in self.passes) or {*passes} - kinds:
            raise ValueError(f"a level has 1 to {MAX_PASSES} passes of low, high or all bands")
        if not self.later_passes():
            raise ValueError("some level after the first one has several passes")
        for level, own in enumerate(self.passes):
            masks = [pass_mask(self, level, number) for number in range(len(own))]
            if (np.sum(masks, 0) != self.level_bands(level)).any():
                raise ValueError(f"each digit of level {level} must be in one pass")
        for name in ("band_rms", "band_weights"):
            values = getattr(self, name)
            if len(values) != BANDS or not 1e-6 < min(values) <= max(values) < 1e6:
                raise ValueError(f"{name} are {BANDS} positive numbers")
        # What is more would lead out of the integers that float64 holds: ``inverse_exact``.
        if len(self.colours) != 9 or np.abs(self.synthesis).sum(0).max() > 2:
            raise ValueError("colours are nine numbers, and add at most 2 to each of the pixels'")
        if abs(np.linalg.det(self.synthesis)) < 1e-3:
            raise ValueError("colours are not independent of each other")
        grids = (self.first_tilt, self.first_width, self.tilt, self.width)
        if not all(type(grid.size) is int and 1 <= grid.size <= 1024 for grid in grids):
            raise ValueError("grids have 1 to 1024 values")
        if not 1e-3 <= self.first_delta <= 1e3 or not 0 <= self.dead_zone < 0.5:
            raise ValueError("first_delta or dead_zone is out of range")
        if not (2 <= self.first_digits <= 16 and 2 <= self.digits <= 16):
            raise ValueError("digits are 2 to 16")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def synthesis(self) -> np.ndarray:
        """What each colour component adds to red, green and blue, ``(3, 3) float64``."""
        return np.array(self.colours, np.float64).reshape(3, 3)

    @property
    def last_delta(self) -> float:
        return self.first_delta / RATIO ** (self.levels - 1)

    def unit(self, level: int) -> int:
        """Delta of a level in units of the last Delta; of level -1: the prior's interval."""
        return RATIO ** (self.levels - 1 - level)

    def units(self, level: int) -> np.ndarray:
        """``(192,) float32``: what a digit of each band is worth at a level, in last Deltas."""
        leading = bands_up_to(self.lead_order) & (level < self.lead)
        return np.where(leading, self.unit(self.lead), self.unit(level)).astype(np.float32)

    def pass_lattices(self, level: int, number: int) -> tuple[int, ...]:
        """The lattices of the blocks that a pass has digits of, ascending."""
        return self.passes[level][number][1]

    def later_passes(self) -> list[tuple[int, int]]:
        """(level, pass) of all passes that see digits of their own level, but for level 0's."""
        return [(n, p) for n in range(1, self.levels) for p in range(1, len(self.passes[n]))]

    def grids(self, level: int) -> tuple[Grid, Grid]:
        """Grids of tilt and width at a level."""
        return (self.first_tilt, self.first_width) if level == 0 else (self.tilt, self.width)

    @property
    def mendable(self) -> float:
        """The largest error of a digit, in its Delta, that the next level's tables know."""
        return (self.digits + 0.5) / RATIO

    def low_bands(self) -> np.ndarray:
        """``(192,) bool``: the bands that go first."""
        return bands_up_to(self.low_order)

    def level_bands(self, level: int) -> np.ndarray:
        """``(192,) bool``: the bands that have digits at a level."""
        coded = bands_up_to(self.orders[level])
        return coded & ~bands_up_to(self.lead_order) if 1 <= level <= self.lead else coded

    def band_mask(self, level: int, number: int) -> np.ndarray:
        """``(192,) bool``: the bands that a pass has digits of."""
        low, coded = self.low_bands(), self.level_bands(level)
        which = self.passes[level][number][0]
        return coded & (low if which == "low" else ~low if which == "high" else True)


def _from_json(value: Any) -> Any:
    """Lists as tuples, at any depth; objects are grids."""
    if isinstance(value, list | tuple):
        return tuple(map(_from_json, value))
    return Grid(**value) if isinstance(value, dict) else value


def bands_up_to(order: Orders) -> np.ndarray:
    """``(192,) bool``: bands with u + v up to ``order``, for luma and for chroma."""
    sums = np.add.outer(np.arange(BLOCK), np.arange(BLOCK))
    return np.stack([sums <= limit for limit in (order[0], order[1], order[1])]).reshape(-1)


def lattice_of(like: Tensor) -> Tensor:
    """The lattice of each block, ``(h, w) int64``, for ``(B, h, w, ...)``."""
    pattern = torch.from_numpy(_PATTERN).to(like.device, non_blocking=True)
    y, x = (torch.arange(n, device=like.device) % PERIOD for n in like.shape[1:3])
    return pattern[y[:, None], x]


def blocks_of(
    height: int, width: int, config: NestedConfig, level: int, number: int
) -> np.ndarray | None:
    """Which blocks a pass has digits of, ``(height, width) bool``; None: all of them."""
    chosen = config.pass_lattices(level, number)
    if len(chosen) == LATTICES:
        return None
    y, x = (np.arange(n) % PERIOD for n in (height, width))
    inside: np.ndarray = np.isin(_PATTERN, chosen)[y[:, None], x]
    return inside


def places_of(like: Tensor, config: NestedConfig, level: int, number: int) -> Tensor | None:
    """Blocks of a pass among the ``h * w``, row by row, ``(n,)``; None: all of them.

    Found on the CPU: how many a GPU finds would have to be waited for.
    """
    height, width = like.shape[1:3]
    inside = blocks_of(height, width, config, level, number)
    if inside is None:
        return None
    return torch.from_numpy(np.flatnonzero(inside)).to(like.device, non_blocking=True)


def level_digits(coefficients: Tensor, grid: Tensor, level: int, config: NestedConfig) -> Tensor:
    """Digits that depend on nothing else, float integers: what training takes for the encoder's.

    A coefficient that is still zero ("insignificant") has a wider zero bin, about as wide as the
    encoder's choice (``digit_choice.py``) makes it on average. Bands without digits have zeros.
    """
    rest = (coefficients - grid) / torch.from_numpy(config.units(level)).to(grid.device)
    rounding = torch.where(grid == 0, 0.5 - config.dead_zone, 0.5)
    k = torch.sign(rest) * torch.floor(rest.abs() + rounding)
    coded = config.level_bands(level)
    return k if coded.all() else k * torch.from_numpy(coded).to(k.device)


class Features:
    """What the trunk sees of ``grid``: two 8-bit integers for each coefficient.

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
        magnitude = np.minimum(np.round(12 * np.log2(1 + np.arange(_COMPANDED + 1))), 127)
        table = np.concatenate([-magnitude[:0:-1], magnitude])
        self._table = torch.tensor(table, dtype=torch.int8, device=device)
        linear = 40.0 * config.last_delta / np.array(config.band_rms)
        if chosen is not None:
            linear = linear[chosen]
        self._linear = torch.tensor(linear, dtype=torch.float32, device=device)

    def __call__(self, grid: Tensor, unit: Tensor) -> Tensor:
        """``(..., 2 n) int8`` of a grid ``(..., n)`` in last Deltas, the level's units ``(n,)``."""
        n = grid.shape[-1]
        out = torch.empty((*grid.shape[:-1], 2 * n), dtype=torch.int8, device=grid.device)
        for of, to in strips(2 * n, grid.reshape(-1, n), out.view(-1, 2 * n)):
            # Exact: grid is a multiple of the unit, or the unit a third, which rounding makes so.
            steps = (of / unit).round_().clamp_(-_COMPANDED, _COMPANDED).add_(_COMPANDED)
            places = steps.to(torch.int32).flatten()
            to[:, :n] = self._table.index_select(0, places).view_as(of)
            to[:, n:] = (of * self._linear).round_().clamp_(-127.0, 127.0)
        return out


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
    # No comparisons: torch's are many times slower than arithmetic on CPUs.
    steps = grid.abs().div_(config.unit(level - 1))  # whole numbers
    return steps.clamp_(max=SETS - 1).add_(SETS * (level - 1))


def orientation(grid: Tensor) -> Tensor:
    """-1 where a coefficient is negative, else 1: by this its digits are multiplied when coded."""
    return (2 * grid).add_(1).clamp_(-1.0, 1.0)  # it is integers: see ``table_set``


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


def pass_mask(config: NestedConfig, level: int, number: int) -> np.ndarray:
    """``(lattices, 192) bool``: which bands a pass codes, by the lattice of the block."""
    chosen = np.isin(np.arange(LATTICES), config.pass_lattices(level, number))
    mask: np.ndarray = chosen[:, None] & config.band_mask(level, number)
    return mask


def feature_units(config: NestedConfig, level: int, like: Tensor) -> Tensor:
    """The Deltas ``(192,)`` that the trunk's companded features are relative to, in last Deltas.

    Those of the level that it is about to give the tables of, after the last one a third of them.
    """
    last = level == config.levels
    units = config.units(level - last) / (RATIO if last else 1)
    return torch.from_numpy(units).to(like.device, non_blocking=True)
