"""The networks of levels 1 and on at work: probabilities of digits, and what is expected of them.

Before a level's first digit the trunk looks at the whole grid, once. Its outputs are the first
pass's tables; for each later pass the pass network adds what the level's own digits tell. Networks
look tile by tile, at each tile with a halo that covers their receptive field, so tiles give exactly
what the whole gives. A pass has digits of some bands in blocks on some lattices; the last block,
the head and all that follows are computed for these alone.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ...numerics.int8_products import Linear
from ...numerics.lapped_transform import BANDS
from ...numerics.strips import strips
from ...numerics.tiles import Piece, in_tiles
from .integer_network import IntegerNetwork
from .pass_network import IntegerPasses, digit_features
from .schedule import (
    OUTPUTS,
    RATIO,
    SHIFT_UNIT,
    Features,
    NestedConfig,
    blocks_of,
    feature_units,
    lattice_of,
    orientation,
    places_of,
    table_set,
)

TILE = 96  # blocks on a side that a network sees at once, halo apart: bounds its memory
FINE = 16  # outputs of both networks are added in sixteenths of a grid's step; a power of two


@dataclass
class Look:
    """What a batch keeps of a level from one of its passes to the next.

    Attributes:
        trunk: what the head of the trunk sees, ``(B, h, w, channels) int8``.
        joined: what the pass network sees of it, ``(B, h, w, channels) float32``.
        told: sums of what it sees of the level's digits so far, likewise.
        before: the grid of the pass's own coefficients, ``(n, bands)`` of all pictures.
    """

    level: int
    trunk: Tensor
    joined: Tensor
    told: Tensor
    before: Tensor


@dataclass(frozen=True)
class _Pass:
    """What a pass codes: its bands ``(n,)``, and the heads that give their tilts and widths.

    Attributes:
        head: the trunk's.
        bias: ``(2, 2, n)``, of tilts and widths, of insignificant and significant coefficients.
        step: of the pass network; None for the first pass.
        added: the head of the pass network, likewise.
        tell: what the pass's digits add to ``Look.told``; None for the last pass.
    """

    bands: Tensor
    head: Linear
    bias: Tensor
    step: int | None
    added: Linear | None
    tell: Linear | None


class LevelNetworks:
    """Exported networks at work on grids ``(B, h, w, 192)``.

    Args:
        bias: ``(levels, 3, 2, 192) float32``, added to the outputs, from level 1 on.
    """

    def __init__(
        self,
        config: NestedConfig,
        network: IntegerNetwork,
        passes: IntegerPasses,
        bias: Tensor,
        device: torch.device,
    ) -> None:
        self.config, self.device = config, device
        self._network, self._passes, self._bias = network, passes, bias
        self._features = Features(config, device)
        self._low = torch.from_numpy(config.low_bands()).to(device)
        self._all = torch.arange(BANDS, device=device)
        self._steps = {step: number for number, step in enumerate(config.later_passes())}
        self._pass = cache(self._make_pass)

    def _make_pass(self, level: int, number: int) -> _Pass:
        bands = torch.from_numpy(np.flatnonzero(self.config.band_mask(level, number)))
        bands = bands.to(self.device)
        outputs = [OUTPUTS["tilt"], OUTPUTS["width"]]
        rows = torch.cat([bands + BANDS * output for output in outputs])
        last = number == len(self.config.passes[level]) - 1
        step = self._steps.get((level, number))
        return _Pass(
            bands,
            self._network.head(level - 1, rows),
            self._bias[level - 1, outputs][..., bands],
            step,
            None if step is None else self._passes.head(step, rows),
            None if last else self._passes.of_bands(bands),
        )

    def look(self, grid: Tensor, level: int) -> Look:
        """The trunk's look at grids before a level, which nothing is known of yet."""
        trunk = self.trunk(grid, level)
        joined = self._passes.join(trunk, level - 1)
        return Look(level, trunk, joined, torch.zeros_like(joined), joined.new_empty(0))

    def index(self, grid: Tensor, look: Look, number: int) -> Tensor:
        """Tables of a pass's digits, ``(B, n) int32``."""
        level, this = look.level, self._pass(look.level, number)
        at = self._rows(grid, level, number)
        index = torch.empty((len(at), len(this.bands)), dtype=torch.int32, device=self.device)
        added: list[Tensor] = []
        if this.step is not None:
            height, width = grid.shape[1:3]
            wanted = blocks_of(height, width, self.config, level, number)
            added = [self._seen(look, this.step, wanted).flatten(0, 1)]
        look.before = torch.empty(index.shape, device=self.device)
        trunk, rows = look.trunk.flatten(0, 2), grid.flatten(0, 2)
        for own, to, old, *rest in strips(2 * len(this.bands), at, index, look.before, *added):
            out = this.head(trunk.index_select(0, own)).round_()
            if this.added is not None:
                out += this.added(rest[0]).round_()
            old.copy_(self._of_bands(rows.index_select(0, own), this))
            to.copy_(self._tables(out, old, this, level))
        return index.view(len(grid), index.numel() // len(grid))

    def _tables(self, out: Tensor, old: Tensor, this: _Pass, level: int) -> Tensor:
        """Tables of digits ``(n, bands)``, of what the heads give and of the grid before."""
        tilt_grid, width_grid = self.config.grids(level)
        sets = table_set(old, self.config, level, self._low[this.bands])
        significant = old.abs().clamp_(max=1.0).unsqueeze(-2)
        out = out.mul_(1 / FINE).round_().unflatten(-1, (2, -1)).add_(this.bias[:, 0])
        out.addcmul_(significant, this.bias[:, 1] - this.bias[:, 0])
        tilt, width = out.unbind(-2)
        middle = (tilt_grid.size - 1) / 2  # about which tilts of negative coefficients are mirrored
        tilt.clamp_(0, tilt_grid.size - 1).sub_(middle).mul_(orientation(old)).add_(middle)
        width.clamp_(0, width_grid.size - 1)
        return sets.mul_(tilt_grid.size).add_(tilt).mul_(width_grid.size).add_(width)

    def rest(self, coefficients: Tensor, look: Look, number: int) -> Tensor:
        """What a pass's digits stand for, ``(B, n)`` in the level's Deltas, with their signs.

        After the pass's ``index``.
        """
        level, this = look.level, self._pass(look.level, number)
        at, rest = self._rows(coefficients, level, number), torch.empty_like(look.before)
        rows = coefficients.flatten(0, 2)
        for own, old, to in strips(2 * BANDS, at, look.before, rest):
            new = self._of_bands(rows.index_select(0, own), this)
            torch.sub(new, old, out=to).div_(self.config.unit(level)).mul_(orientation(old))
        return rest.view(len(coefficients), rest.numel() // len(coefficients))

    def update(self, grid: Tensor, look: Look, number: int, symbols: Tensor) -> None:
        """Take a pass's digits ``(B, n)`` into the grids, and into the look at the level.

        After the pass's ``index``.
        """
        level, this = look.level, self._pass(look.level, number)
        at, symbols = self._rows(grid, level, number), symbols.view(look.before.shape)
        rows, told = grid.view(-1, BANDS), look.told.view(-1, look.told.shape[-1])
        for own, old, digits in strips(2 * BANDS, at, look.before, symbols):
            k = digits.float().mul_(orientation(old))
            if this.tell is not None:
                told.index_add_(0, own, this.tell(digit_features(k)))
            new = k.mul_(self.config.unit(level)).add_(old)
            if len(this.bands) < BANDS:
                new = rows.index_select(0, own).index_copy_(1, this.bands, new)
            rows.index_copy_(0, own, new)

    def _rows(self, grid: Tensor, level: int, number: int) -> Tensor:
        """Blocks of a pass among all of the batch, picture by picture, ``(n,)``."""
        count, height, width = grid.shape[:3]
        places = places_of(grid, self.config, level, number)
        if places is None:
            return torch.arange(count * height * width, device=self.device)
        first = torch.arange(count, device=self.device) * (height * width)
        return (first[:, None] + places).flatten()

    def expected(self, grid: Tensor, level: int, chosen: Tensor | None = None) -> Tensor:
        """Conditional means after ``level`` levels, ``(B, h, w, n)`` in 1/32 of the last Delta.

        Of all bands, or of the ``chosen`` ones, ``(n,)`` positions.
        """
        if level == 0:  # grey
            return torch.zeros_like(grid if chosen is None else grid[..., chosen])
        return self.expected_of(self.trunk(grid, level), grid, level, chosen)

    def expected_of(
        self, trunk: Tensor, grid: Tensor, level: int, chosen: Tensor | None = None
    ) -> Tensor:
        """``expected`` where the trunk's look after the level is there already."""
        bands, row = self._all if chosen is None else chosen, level - 1
        seen = grid if chosen is None else grid.index_select(-1, bands)
        out = self._network.head(row, bands + BANDS * OUTPUTS["shift"])(trunk)
        bias = self._bias[row, OUTPUTS["shift"]][:, bands]
        shift = out.round_().add_(bias[0]).addcmul_(seen.abs().clamp_(max=1.0), bias[1] - bias[0])
        unit = RATIO ** (self.config.levels - level)
        return shift.clamp_(-127, 127).mul_(unit).add_(seen, alpha=SHIFT_UNIT)

    def trunk(self, grid: Tensor, level: int) -> Tensor:
        """What the networks see of a grid before a level, ``(B, h, w, channels) int8``."""
        units, board = feature_units(self.config, level, grid), lattice_of(grid)

        def of(piece: Piece, at: Tensor | None) -> Tensor:
            features = self._features(grid[piece.pictures, *piece.seen], units)
            x = self._network.trunk(features, board[piece.seen], level - 1, at)
            return x.view(len(x), -1, x.shape[-1])

        halo = self._network.config.halo
        x = in_tiles(grid.shape[:3], TILE, halo, of, self.device)
        return x.unflatten(1, grid.shape[1:3])

    def _seen(self, look: Look, step: int, wanted: np.ndarray | None) -> Tensor:
        """What the pass network's head sees in a pass, ``(B, n, channels) int8``."""
        board = lattice_of(look.joined)

        def of(piece: Piece, at: Tensor | None) -> Tensor:
            joined, told = (x[piece.pictures, *piece.seen] for x in (look.joined, look.told))
            x = self._passes.look(
                joined.contiguous(), told.contiguous(), board[piece.seen], step, at
            )
            return x.view(len(x), -1, x.shape[-1])

        halo = self._passes.config.halo
        return in_tiles(look.joined.shape[:3], TILE, halo, of, self.device, wanted)

    @property
    def trunk_channels(self) -> int:
        return self._network.config.channels

    @staticmethod
    def _of_bands(values: Tensor, this: _Pass) -> Tensor:
        return values if len(this.bands) == BANDS else values.index_select(-1, this.bands)
