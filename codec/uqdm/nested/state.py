"""What a nested model's decoder knows of a batch of pictures."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...numerics.lapped_transform import BANDS, BLOCK
from .level_network import Look as LevelLook
from .pixel_network import Look
from .tuning import Tuning


@dataclass
class NestedState:
    """The digits of a batch of equally large pictures, all of them zero at first.

    Attributes:
        first: the grid of the bands ``chosen`` alone, ``(B, h, w, n) float32``, while all others
            are zero: a sixth of the memory traffic for the first level. None once ``grid`` has
            been asked for, which has them all.
        chosen: their positions among the 192, ``(n,) int64``.
        level_look: what the networks keep of a level from one pass to the next.
        pixels: ``(B, 3, H, W) uint8`` once the lossless layer is in.
        prediction: ``(B, 3, H, W) float32`` of whole blocks, in 1/16 of a pixel value.
        residual: pixels less prediction, as far as they are known, else zero; likewise.
        look: what a pixel network keeps from one pass to the next.
        tuning: what a stream tells it about its picture.
        nearest: integer pixel values that the pass's residuals are relative to, ``(B, h, w)`` like
            the pixels of the pass.
        strayed: whether a pixel is out of its range, ``() bool``.
        farthest: no coefficient is farther from zero than this.
    """

    height: int
    width: int
    first: Tensor | None
    chosen: Tensor
    level_look: LevelLook | None = None
    pixels: Tensor | None = None
    prediction: Tensor | None = None
    residual: Tensor | None = None
    look: Look = field(default_factory=Look)
    tuning: Tuning | None = None
    nearest: Tensor | None = None
    strayed: Tensor | None = None
    farthest: float = 0.0
    _grid: Tensor | None = None

    @classmethod
    def empty(cls, count: int, height: int, width: int, chosen: Tensor) -> "NestedState":
        shape = (count, -(-height // BLOCK), -(-width // BLOCK), len(chosen))
        return cls(height, width, torch.zeros(shape, device=chosen.device), chosen)

    @property
    def grid(self) -> Tensor:
        """``(B, h, w, 192) float32`` integers, in last Deltas."""
        if self._grid is None:
            assert self.first is not None
            self._grid = self.first.new_zeros((*self.first.shape[:-1], BANDS))
            self._grid[..., self.chosen] = self.first
            self.first = None
        return self._grid

    @grid.setter
    def grid(self, grid: Tensor) -> None:
        self._grid, self.first = grid, None

    def first_grid(self) -> Tensor:
        """``(B, h, w, n)``: the grid of the first level's bands."""
        return self.grid[..., self.chosen] if self.first is None else self.first

    def copy(self) -> "NestedState":
        """One whose digits may be changed without this one's; between two levels."""
        first, grid = (None if x is None else x.clone() for x in (self.first, self._grid))
        return replace(self, first=first, _grid=grid, level_look=None)
