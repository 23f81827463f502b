"""What a nested model is trained for: bits and error of all levels."""

import numpy as np
import torch
from torch import Tensor, nn

from .model import NestedModel
from .pixel_lattice import PLACES
from .schedule import MAX_LEVELS

_PLACES_AT_ONCE = 1  # of the lossless layer, in one step of training
_LOSSES = ("bits", "mse", "preview")  # that a level may have


class NestedObjective(nn.Module):
    """Loss of a batch at all levels that are trained.

    The batch is encoded first, and learnt from as the encoder makes it: the digits that are worth
    their bits are not those that are nearest.

    Bits count by the square root of their level's share, distortion by its logarithm: the few bits
    of the first levels, and their decibels, matter as much as the many of the last.

    Attributes:
        sums, counts: running sums ``(kinds of loss, levels)`` of what each loss was, and of their
            weights, from which its usual size comes.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("sums", "counts"):
            self.register_buffer(name, torch.zeros(len(_LOSSES), MAX_LEVELS + 1))

    def forward(
        self, model: nn.Module, images: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(model, NestedModel)
        levels = model.trained_levels
        places = rng.choice(len(PLACES), _PLACES_AT_ONCE, replace=False).tolist()
        states = model.encoded_states(images, max(levels))
        losses = model(images, levels, states, places)
        total = torch.zeros((), device=self.sums.device)
        for level, loss in zip(levels, losses, strict=True):
            for name, value in loss.items():
                size = self._size(_LOSSES.index(name), level, value.detach())
                weight = size**-0.5 if name == "bits" else 1 / size
                total = total + weight * value
        bits = (self.sums[0] / self.counts[0].clamp_min(1e-9)).sum()
        return total, {"loss": float(total.detach()), "bpp": float(bits)}

    @torch.no_grad()
    def _size(self, kind: int, level: int, value: Tensor) -> Tensor:
        """Running mean of a loss, kept away from zero."""
        self.sums[kind, level].lerp_(value.float(), 0.02)
        self.counts[kind, level].lerp_(torch.ones_like(value.float()), 0.02)
        return (self.sums[kind, level] / self.counts[kind, level]).clamp_min(1e-4)
