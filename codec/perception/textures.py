"""Wasserstein distortion: do two pictures have the same textures?

Features around a place are taken as samples of a distribution, and distributions are compared by
their means and deviations (Qiu, Ballé et al. 2023). With a small radius this measures fidelity;
with a large one it measures only texture, wherever its details are.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def wasserstein_distortion(original: Tensor, shown: Tensor, radii: Sequence[int]) -> Tensor:
    """The distortion ``(B,)`` of feature maps ``(B, C, h, w)``.

    It is the sum over channels and the mean over places and radii. Local means and deviations are
    those of squares of ``2 r + 1`` places per side for each radius r. Distributions are taken as
    Gaussian (eq. 7).
    """
    total = torch.zeros(len(original), device=original.device)
    for radius in radii:
        (m1, s1), (m2, s2) = (_moments(x, radius) for x in (original, shown))
        total = total + ((m1 - m2).square() + (s1 - s2).square()).sum(1).mean((1, 2))
    return total / len(radii)


def _moments(x: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Local means and deviations. Windows overlap by half and are cut at the edges."""
    side, stride = 2 * radius + 1, max(1, radius)

    def mean(y: Tensor) -> Tensor:
        return F.avg_pool2d(y, side, stride, radius, ceil_mode=False, count_include_pad=False)

    means = mean(x)
    variance = mean(x * x) - means * means
    return means, variance.clamp_min(0).add(1e-4).sqrt()
