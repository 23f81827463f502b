"""What a nested model is trained for: bits and error of a few steps of the schedule at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import StrataError
from .model import NestedModel
from .pixel_lattice import PLACES
from .schedule import MAX_LEVELS

_PLACES_AT_ONCE = 1  # of the lossless layer, in one step of training
_LOSSES = ("bits", "mse", "preview")  # that a level may have


@dataclass
class _Batch:
    """Pictures, their states as the encoder makes them, and at which levels they are still to be
    learnt from: one for each share of them, step by step."""

    images: Tensor
    states: list[tuple[Tensor, Tensor]]
    levels: list[list[int]]


class NestedObjective(nn.Module):
    """Loss of a batch at a few levels.

    A batch is encoded, and then learnt from until each share of it has been at all levels: the
    digits that the encoder chooses are not those that are nearest, and to make them takes time. The
    pictures that come meanwhile are left out.

    Bits count by the square root of their level's share, distortion by its logarithm: the few bits
    of the first levels, and their decibels, matter as much as the many of the last.

    Attributes:
        sums, counts: running sums ``(kinds of loss, levels)`` of what each loss was, and of their
            weights, from which its usual size comes.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, shares: int = 4, mse_weight: float = 1.0) -> None:
        super().__init__()
        self.shares, self.mse_weight = shares, mse_weight
        self._batch: _Batch | None = None
        for name in ("sums", "counts"):
            self.register_buffer(name, torch.zeros(len(_LOSSES), MAX_LEVELS + 1))

    def forward(
        self, model: nn.Module, images: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(model, NestedModel)
        trained = model.trained_levels
        count = min(self.shares, len(trained))
        if len(images.chunk(count)) < count:
            raise StrataError(f"--batch {len(images)}: this model wants a multiple of {count}")
        if self._batch is None or not self._batch.levels:
            turns = rng.permutation(trained)
            turns_of = [
                [int(turns[(turn + i * len(turns) // count) % len(turns)]) for i in range(count)]
                for turn in range(len(turns))
            ]
            states = model.encoded_states(images, max(trained))
            self._batch = _Batch(images, states, turns_of)
        levels = self._batch.levels.pop()
        places = rng.choice(len(PLACES), _PLACES_AT_ONCE, replace=False).tolist()
        losses = model(self._batch.images, levels, places, self._batch.states)
        return self.total(levels, losses)

    def total(
        self, levels: Sequence[int], losses: Sequence[dict[str, Tensor]]
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss to lower, and figures for the log, of ``NestedModel``'s losses."""
        total = torch.zeros((), device=self.sums.device)
        for level, loss in zip(levels, losses, strict=True):
            for name, value in loss.items():
                size = self._size(_LOSSES.index(name), level, value.detach())
                weight = size**-0.5 if name == "bits" else self.mse_weight / size
                total = total + weight * value
        bits = (self.sums[0] / self.counts[0].clamp_min(1e-9)).sum()
        return total, {"loss": float(total.detach()), "bpp": float(bits)}

    @torch.no_grad()
    def _size(self, kind: int, level: int, value: Tensor) -> Tensor:
        """Running mean of a loss, kept away from zero."""
        self.sums[kind, level].lerp_(value.float(), 0.02)
        self.counts[kind, level].lerp_(torch.ones_like(value.float()), 0.02)
        return (self.sums[kind, level] / self.counts[kind, level]).clamp_min(1e-4)
