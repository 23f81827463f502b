"""Whether two pictures have the same textures: statistics of features around each place.

Wasserstein distortion (Qiu, Ballé et al. 2023): features around a place are taken for samples of a
distribution, and distributions are compared by their means and deviations. Over a small radius that
is fidelity, over a large one it is texture alone, wherever its details lie.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def wasserstein_distortion(original: Tensor, shown: Tensor, radii: Sequence[int]) -> Tensor:
    """Of feature maps ``(B, C, h, w)``: ``(B,)``, summed over channels, mean over places and radii.

    Local means and deviations are those of squares of ``2 r + 1`` places a side for each radius r,
    Gaussian where a texture has been taken for its two first moments (eq. 7).
    """
    total = torch.zeros(len(original), device=original.device)
    for radius in radii:
        (m1, s1), (m2, s2) = (_moments(x, radius) for x in (original, shown))
        total = total + ((m1 - m2).square() + (s1 - s2).square()).sum(1).mean((1, 2))
    return total / len(radii)


def _moments(x: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Local means and deviations; windows are cut at the edges, and overlap by half."""
    side, stride = 2 * radius + 1, max(1, radius)

    def mean(y: Tensor) -> Tensor:
        return F.avg_pool2d(y, side, stride, radius, ceil_mode=False, count_include_pad=False)

    means = mean(x)
    variance = mean(x * x) - means * means
    return means, variance.clamp_min(0).add(1e-4).sqrt()
