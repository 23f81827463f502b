"""Level 0 with a light network of its own, for previews at a fraction of the time.

The first level is nearly empty: some thirty bands are ever significant in it, and most blocks have
but a mean. A small network that sees those bands only gives its probabilities and, for previews,
the expected coefficients after it. Levels 1 and on, and what full decodes show after any level, are
the trunk's.

Its outputs for each position are tilt and width of the level's bands, then the shift of all 192;
its steps are the passes of level 0 and, last, the shift.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.checks import check_shapes
from ...numerics.int8_products import Linear
from ...numerics.lapped_transform import BANDS
from ...numerics.tiles import pieces
from .integer_network import IntegerNetwork, NetworkConfig
from .schedule import (
    OUTPUTS,
    PERIOD,
    SHIFT_UNIT,
    Features,
    NestedConfig,
    lattice_of,
    places_of,
)

TILE = 192  # blocks on a side that the network sees at once, halo apart


@dataclass(frozen=True)
class FirstLayout:
    """Where what is in the light network's input and output.

    Attributes:
        bands: positions of the level's bands, ``(n,) int64``, ascending.
    """

    bands: np.ndarray
    steps: int

    @classmethod
    def of(cls, config: NestedConfig) -> "FirstLayout":
        bands = np.flatnonzero(config.level_bands(0))
        return cls(bands, len(config.passes[0]) + 1)

    @property
    def inputs(self) -> int:
        return 2 * len(self.bands)

    @property
    def outputs(self) -> int:
        return 2 * len(self.bands) + BANDS

    def rows(self) -> list[tuple[int, np.ndarray]]:
        """For tilt, width and shift the number of the output (``OUTPUTS``) and its bands."""
        everything = np.arange(BANDS)
        chosen = {"tilt": self.bands, "width": self.bands, "shift": everything}
        return [(OUTPUTS[name], bands) for name, bands in chosen.items()]

    def network(self, values: dict[str, Any]) -> NetworkConfig:
        """The network's configuration of a model's; the sizes that follow may be left out."""
        sizes = {"steps": self.steps, "inputs": self.inputs, "outputs": self.outputs}
        if any(values.get(name, size) != size for name, size in sizes.items()):
            raise ValueError(f"first_network must have {sizes}")
        return NetworkConfig.from_dict({**values, **sizes})


class FirstLevel:
    """The light network at work on the grids of a batch: its bands alone, ``(B, h, w, n)``.

    Args:
        config, network: the model's; ``tensors`` are the exported network's.
        bias: ``(steps, 3, 2, 192)`` of the model's level 0; the last row is the shift's.
    """

    def __init__(
        self,
        config: NestedConfig,
        network: dict[str, Any],
        tensors: dict[str, Tensor],
        bias: Tensor,
        device: torch.device,
    ) -> None:
        self.config, self.device = config, device
        self.layout = FirstLayout.of(config)
        steps, outputs = self.layout.steps, self.layout.outputs
        check_shapes(tensors, [("head.scale", (steps, outputs), torch.float32)])
        self._network = IntegerNetwork(self.layout.network(network), tensors, device)
        self._features = Features(config, device, self.layout.bands)
        self._units = torch.from_numpy(config.units(0)[self.layout.bands]).to(device)
        self.bands = torch.from_numpy(self.layout.bands).to(device)
        # Where each of the 192 is among them; beyond the last, where it is not.
        self._place = torch.full((BANDS,), len(self.bands), device=device)
        self._place[self.bands] = torch.arange(len(self.bands), device=device)
        self._passes = [self._pass(number, bias) for number in range(self.layout.steps - 1)]
        self._shift_bias = bias[-1, OUTPUTS["shift"]]
        self.reach = self._network.config.halo

    def _pass(self, number: int, bias: Tensor) -> "_Pass":
        config = self.config
        chosen = np.flatnonzero(config.band_mask(0, number))
        rows = np.searchsorted(self.layout.bands, chosen)
        both = np.concatenate([rows, rows + len(self.layout.bands)])
        bands = torch.from_numpy(chosen).to(self.device)
        start = bias[number, : OUTPUTS["width"] + 1, 0][:, bands].flatten()
        low = torch.from_numpy(config.low_bands()).to(self.device)[bands]
        channels, outputs = (torch.from_numpy(x).to(self.device) for x in (rows, both))
        return _Pass(
            bands,
            channels,
            self._network.head(number, outputs),
            start,
            low.to(torch.int32),
            self._units[channels],
            number,
        )

    def index(self, grid: Tensor, number: int) -> Tensor:
        """Tables of a pass's digits, ``(B, n) int32``."""
        this = self._passes[number]
        count, height, width, _ = grid.shape
        places = places_of(grid, self.config, 0, number)
        if number == 0:  # nothing is known: only the blocks' lattices and the borders tell
            sides = (height, width)
            rows, columns = (typical(n, self.reach) for n in sides)
            small = grid.new_zeros((1, int(rows.max()) + 1, int(columns.max()) + 1, grid.shape[-1]))
            index = self._index(self._trunk(small, number), this)
            for axis, at in enumerate((rows, columns), start=1):
                index = index.index_select(axis, at.to(self.device, non_blocking=True))
            index = index if places is None else _at(index, places)
            index = index.expand(count, *index.shape[1:])
        else:
            index = self._index(self._trunk(grid, number, places), this)
        return index.flatten(1)

    def update(self, grid: Tensor, number: int, symbols: Tensor) -> None:
        """Take a pass's digits ``(B, n)`` into the grids."""
        this = self._passes[number]
        places = places_of(grid, self.config, 0, number)
        if places is None:
            places = torch.arange(grid.shape[1] * grid.shape[2], device=self.device)
        digits = symbols.view(len(grid), len(places), len(this.units)) * this.units
        at = (places[:, None] * grid.shape[-1] + this.channels).flatten()
        grid.view(len(grid), -1).scatter_(1, at.expand(len(grid), -1), digits.flatten(1))

    def rest(self, coefficients: Tensor, number: int) -> Tensor:
        """What a pass's digits stand for, ``(B, n)`` in Deltas, of all bands' coefficients."""
        this = self._passes[number]
        places = places_of(coefficients, self.config, 0, number)
        values = coefficients.flatten(1, 2) if places is None else _at(coefficients, places)
        return (values.index_select(-1, this.bands) / this.units).flatten(1)

    def expected(self, grid: Tensor, bands: Tensor) -> Tensor:
        """Means of some of the 192 after level 0, ``(B, h, w, n)`` in 1/32 of the last Delta."""
        step = self.layout.steps - 1
        head = self._network.head(step, 2 * len(self.bands) + bands)
        out = head(self._trunk(grid, step))
        seen = F.pad(grid, (0, 1)).index_select(-1, self._place[bands])
        none, some = self._shift_bias[:, bands]
        shift = out.round_().add_(none).addcmul_(seen.abs().clamp_(max=1.0), some - none)
        shift.clamp_(-127, 127)
        return shift.mul_(self.config.unit(0)).add_(seen, alpha=SHIFT_UNIT)

    def _index(self, trunk: Tensor, this: "_Pass") -> Tensor:
        """Table indices ``(..., bands of the pass) int32``."""
        config = self.config
        out = this.head(trunk).round_().add_(this.start)
        tilt, width = out.to(torch.int32).chunk(2, -1)
        tilt = tilt.clamp(0, config.first_tilt.size - 1)
        width = width.clamp(0, config.first_width.size - 1)
        return (this.low * config.first_tilt.size + tilt) * config.first_width.size + width

    def _trunk(self, grid: Tensor, step: int, places: Tensor | None = None) -> Tensor:
        """The network without its head, tile by tile with a halo that covers what it sees.

        ``(B, h, w, channels) int8``, or of some ``places`` alone ``(B, n, channels)``.
        """
        halo, channels = self._network.config.halo, self._network.config.channels
        count, height, width, _ = grid.shape
        board, unit = lattice_of(grid), self._units
        pictures = max(1, TILE * TILE // (height * width))
        if max(height, width) <= TILE and count <= pictures:
            return self._network.trunk(self._features(grid, unit), board, step, places)
        result = grid.new_empty((count, height, width, channels), dtype=torch.int8)
        for piece in pieces(count, height, width, TILE, halo):
            features = self._features(grid[piece.pictures, *piece.seen], unit)
            out = self._network.trunk(features, board[piece.seen], step)
            result[piece.pictures, *piece.tile] = out[:, *piece.inner]
        return result if places is None else _at(result, places)


def _at(values: Tensor, places: Tensor) -> Tensor:
    """``(B, n, c)`` of values ``(B, h, w, c)``."""
    return values.flatten(1, 2).index_select(1, places)


def typical(size: int, reach: int) -> Tensor:
    """For each of ``size`` rows one of a small picture at which an empty grid looks the same.

    It is as far from the nearer border, up to the network's reach, and on the same lattices, which
    repeat after ``PERIOD`` blocks.
    """
    small = 2 * reach + PERIOD + (size - 2 * reach) % PERIOD
    at = torch.arange(size)
    if size <= small:
        return at
    inner = reach + (at - reach) % PERIOD
    return torch.where(at < reach, at, torch.where(at >= size - reach, at - size + small, inner))


@dataclass(frozen=True)
class _Pass:
    """A pass's bands, where in the grid they are, what gives their outputs, their biases, table
    sets, and what their digits are worth."""

    bands: Tensor
    channels: Tensor
    head: Linear
    start: Tensor
    low: Tensor
    units: Tensor
    step: int
