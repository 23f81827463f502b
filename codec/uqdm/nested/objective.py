"""What a nested model is trained for: bits and error of a few steps of the schedule at a time."""

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import StrataError
from .model import NestedModel
from .pixel_lattice import PLACES
from .schedule import MAX_LEVELS, MAX_PASSES

_PLACES_AT_ONCE = 1  # of the lossless layer, in one step of training
_LOSSES = ("bits", "mse", "preview")  # that a step of the schedule may have


class NestedObjective(nn.Module):
    """Loss of a batch at a few random steps of the schedule.

    Bits count by the square root of their step's share, distortion by its logarithm: the few bits
    of the first levels, and their decibels, matter as much as the many of the last.

    Attributes:
        sums, counts: running sums ``(kinds of loss, steps)`` of what each loss was, and of their
            weights, from which its usual size comes.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, states: int = 4, mse_weight: float = 1.0) -> None:
        super().__init__()
        self.states, self.mse_weight = states, mse_weight
        for name in ("sums", "counts"):
            self.register_buffer(name, torch.zeros(len(_LOSSES), MAX_LEVELS * MAX_PASSES + 1))

    def forward(
        self, model: nn.Module, images: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(model, NestedModel)
        trained = model.trained_steps
        count = min(self.states, len(trained))
        if len(images.chunk(count)) < count:
            raise StrataError(f"--batch {len(images)}: this model wants a multiple of {count}")
        steps = [int(s) for s in rng.choice(trained, count, replace=False)]
        places = rng.choice(len(PLACES), _PLACES_AT_ONCE, replace=False).tolist()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=images.is_cuda):
            losses = model(images, steps, places)
        total = torch.zeros((), device=images.device)
        for step, loss in zip(steps, losses, strict=True):
            for name, value in loss.items():
                size = self._size(_LOSSES.index(name), step, value.detach())
                weight = size**-0.5 if name == "bits" else self.mse_weight / size
                total = total + weight * value
        bits = (self.sums[0] / self.counts[0].clamp_min(1e-9)).sum()
        return total, {"loss": float(total.detach()), "bpp": float(bits)}

    @torch.no_grad()
    def _size(self, kind: int, step: int, value: Tensor) -> Tensor:
        """Running mean of a loss, kept away from zero."""
        self.sums[kind, step].lerp_(value.float(), 0.02)
        self.counts[kind, step].lerp_(torch.ones_like(value.float()), 0.02)
        return (self.sums[kind, step] / self.counts[kind, step]).clamp_min(1e-4)
