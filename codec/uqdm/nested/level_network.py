"""The large network at work: probabilities of all levels' digits, and what is expected of them.

It looks at a grid tile by tile, at each tile with a halo that covers its receptive field, so tiles
give exactly what the whole gives. A pass has digits of some bands in blocks of some colours; the
last block, the head and all that follows are computed for these alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ...numerics.lapped_transform import BANDS
from .integer_network import IntegerNetwork
from .schedule import (
    OUTPUTS,
    RATIO,
    SHIFT_UNIT,
    Features,
    NestedConfig,
    colours_of,
    feature_unit,
    orientation,
    places_of,
    table_set,
)
from .tiles import pieces

TILE = 96  # blocks on a side that the network sees at once, halo apart: bounds its memory


@dataclass(frozen=True)
class _Pass:
    """What a pass codes: its bands ``(n,)``, and the head's rows for their tilts and widths."""

    bands: Tensor
    rows: Tensor
    bias: Tensor  # (2, 2, n): of tilts and widths, of insignificant and significant coefficients


class LargeNetwork:
    """An exported network at work on grids ``(B, h, w, 192)``.

    Args:
        bias: ``(steps, 4, 2, 192) float32``, added to the outputs.
    """

    def __init__(
        self,
        config: NestedConfig,
        network: IntegerNetwork,
        bias: Tensor,
        device: torch.device,
    ) -> None:
        self.config, self.device = config, device
        self._network, self._bias = network, bias
        self._features = Features(config, device)
        self._low = torch.from_numpy(config.low_bands()).to(device)
        self._all = torch.arange(BANDS, device=device)
        self._pass = cache(self._make_pass)
        self.reach = network.config.halo

    def _make_pass(self, level: int, number: int) -> _Pass:
        bands = np.flatnonzero(self.config.band_mask(level, number))
        chosen = torch.from_numpy(bands).to(self.device)
        step = self.config.step_of(level, number)
        outputs = [OUTPUTS["tilt"], OUTPUTS["width"]]
        return _Pass(
            chosen,
            self._rows(outputs, chosen),
            self._bias[step, outputs][..., chosen],
        )

    def index(self, grid: Tensor, level: int, number: int) -> Tensor:
        """Tables of a pass's digits, ``(B, n) int32``."""
        config, this = self.config, self._pass(level, number)
        tilt_grid, width_grid = config.grids(level)

        def finish(grid: Tensor, out: Tensor) -> Tensor:
            grid = self._of_bands(grid, this)
            start = torch.where((grid != 0).unsqueeze(-2), this.bias[:, 1], this.bias[:, 0])
            out = out.round_().unflatten(-1, (2, -1)).add_(start)
            tilt, width = out.unbind(-2)
            tilt.clamp_(0, tilt_grid.size - 1)
            tilt = torch.where(grid < 0, tilt_grid.size - 1 - tilt, tilt)
            width.clamp_(0, width_grid.size - 1)
            sets = table_set(grid, config, level, self._low[this.bands])
            return sets.mul_(tilt_grid.size).add_(tilt).mul_(width_grid.size).add_(width)

        step = config.step_of(level, number)
        places = places_of(grid, self.config, level, number)
        out = self._evaluate(grid, level, step, this.rows, finish, len(this.bands), places)
        return out.flatten(1).to(torch.int32)

    def rest(self, coefficients: Tensor, grid: Tensor, level: int, number: int) -> Tensor:
        """What a pass's digits stand for, ``(B, n)`` in the level's Deltas, with their signs."""
        this = self._pass(level, number)
        places = places_of(grid, self.config, level, number)
        new, old = (self._coded(x, this, places) for x in (coefficients, grid))
        return ((new - old) / self.config.unit(level) * orientation(old)).flatten(1)

    def update(self, grid: Tensor, level: int, number: int, symbols: Tensor) -> None:
        """Take a pass's digits ``(B, n)`` into the grids."""
        this = self._pass(level, number)
        places = places_of(grid, self.config, level, number)
        whole = grid.view(len(grid), -1, BANDS)
        old = self._coded(grid, this, places)
        k = symbols.view(old.shape).float()
        new = k.mul_(orientation(old)).mul_(self.config.unit(level)).add_(old)
        if places is None:
            places = torch.arange(whole.shape[1], device=self.device)
        if len(this.bands) == BANDS:
            whole[:, places] = new
        else:
            whole[:, places[:, None], this.bands] = new

    def expected(self, grid: Tensor, level: int, chosen: Tensor | None = None) -> Tensor:
        """Conditional means after ``level`` levels, ``(B, h, w, n)`` in 1/32 of the last Delta.

        Of all bands, or of the ``chosen`` ones, ``(n,)`` positions.
        """
        bands = self._all if chosen is None else chosen
        step = self.config.step_of(level)
        unit = RATIO ** (self.config.levels - level)

        def finish(grid: Tensor, out: Tensor) -> Tensor:
            return self._expected(grid.index_select(-1, bands), out, step, unit, bands)

        rows = self._rows([OUTPUTS["shift"]], bands)
        out = self._evaluate(grid, level, step, rows, finish, len(bands))
        return out.unflatten(1, grid.shape[1:3])

    def residual(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """For the lossless layer: all conditional means and the residuals' spreads (indices)."""
        config = self.config
        step = config.step_of(config.levels)

        def finish(grid: Tensor, out: Tensor) -> Tensor:
            shift, spread = out.chunk(2, -1)
            spread = spread.round_() + self._bias[step, OUTPUTS["spread"], 0]
            spread.clamp_(0, config.spread.size - 1)
            return torch.cat([self._expected(grid, shift, step, 1, self._all), spread], -1)

        rows = self._rows([OUTPUTS["shift"], OUTPUTS["spread"]], self._all)
        out = self._evaluate(grid, config.levels, step, rows, finish, 2 * BANDS)
        means, spread = out.unflatten(1, grid.shape[1:3]).chunk(2, -1)
        return means, spread

    def _expected(self, grid: Tensor, shift: Tensor, step: int, unit: int, bands: Tensor) -> Tensor:
        """Conditional means in 1/32 of the last Delta; ``unit`` is the interval in last Deltas."""
        bias = self._bias[step, OUTPUTS["shift"]][:, bands]
        start = torch.where(grid != 0, bias[1], bias[0])
        shift = (shift.round_() + start).clamp_(-127, 127)
        return grid * SHIFT_UNIT + shift * unit

    def _rows(self, outputs: Sequence[int], bands: Tensor) -> Tensor:
        return torch.cat([bands + BANDS * output for output in outputs])

    def _coded(self, values: Tensor, this: _Pass, places: Tensor | None) -> Tensor:
        """``(B, n, bands)`` of values ``(B, h, w, 192)``: where a pass has digits."""
        values = values.flatten(1, 2)
        return self._of_bands(values if places is None else values[:, places], this)

    @staticmethod
    def _of_bands(grid: Tensor, this: _Pass) -> Tensor:
        return grid if len(this.bands) == BANDS else grid.index_select(-1, this.bands)

    def _evaluate(
        self,
        grid: Tensor,
        level: int,
        step: int,
        rows: Tensor,
        finish: Callable[[Tensor, Tensor], Tensor],
        channels: int,
        places: Tensor | None = None,
    ) -> Tensor:
        """``finish(grid, outputs)`` of every block, or of some: ``(B, n, channels)``.

        Args:
            grid: all of it, ``(B, h, w, 192)``; ``finish`` is given ``(b, n, 192)`` of it.
            rows: which of the network's outputs.
            places: ``(n,)`` blocks of the ``h * w``, ascending.
        """
        count, height, width, _ = grid.shape
        unit, board = feature_unit(self.config, level), colours_of(grid, self.config)

        def of(seen: Tensor, board: Tensor, at: Tensor | None) -> Tensor:
            trunk = self._network.trunk(self._features(seen, unit), board, step, at)
            blocks = seen.flatten(1, 2)
            if at is None:
                trunk = trunk.flatten(1, 2)
            else:
                blocks = blocks.index_select(1, at)
            return finish(blocks, self._network.head(trunk, step, rows))

        pictures = max(1, TILE * TILE // (height * width))
        if max(height, width) <= TILE and count <= pictures:
            return of(grid, board, places)
        wanted = torch.zeros(height * width, dtype=torch.bool, device=self.device)
        wanted[slice(None) if places is None else places] = True
        result = torch.empty((count, height * width, channels), device=self.device)
        number = torch.arange(height * width, device=self.device).view(height, width)
        for piece in pieces(count, height, width, TILE, self.reach):
            inner = torch.zeros_like(number[piece.seen], dtype=torch.bool)
            inner[piece.inner] = True
            inner &= wanted[number[piece.seen]]
            at, whole = torch.nonzero(inner.flatten()).flatten(), number[piece.seen][inner]
            some = piece.pictures
            result[some, whole] = of(grid[some, *piece.seen], board[piece.seen], at)
        return result if places is None else result.index_select(1, places)
