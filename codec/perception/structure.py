"""MS-SSIM in torch, with gradients for training."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images.metrics import C1, C2, LUMA, MS_SSIM_WEIGHTS, PEAK, SIGMA, WINDOW
from ..numerics.bounds import lower_bound

# The slope of a power is infinite at 0. So similarities below this have the gradient at this value.
_STEEPEST = 0.01


def ms_ssim_loss(x: Tensor, y: Tensor) -> Tensor:
    """1 - MS-SSIM (Wang, Simoncelli & Bovik 2003) of pictures' lumas: ``(B,)``, 0 to 1.

    Pictures are ``(B, 3, H, W)`` in [-1, 1], of any floating-point type. The result is at least
    float32, also under autocast. The values are those of ``codec.images.metrics.ms_ssim``, with the
    same windows, scales and weights: five scales from 161 pixels on the shorter side, otherwise
    those that fit.

    If a scale's mean similarity is below 0.01, the gradient is that at 0.01. So it stays finite,
    and it also raises a negative similarity, which counts as 0.

    Raises ValueError for shapes that differ or are not of colour pictures.
    """
    check_pictures(x, y)
    with torch.autocast(x.device.type, enabled=False):  # variances are differences of large numbers
        x, y = _luma(x), _luma(y)
        shorter = min(x.shape[1:])
        halved = [(shorter - 1) // 2**scale + 1 for scale in range(1, len(MS_SSIM_WEIGHTS))]
        scales = 1 + sum(size >= WINDOW for size in halved)
        weights = torch.tensor(MS_SSIM_WEIGHTS[:scales], dtype=x.dtype, device=x.device)
        if scales < len(MS_SSIM_WEIGHTS):
            weights = weights / weights.sum()
        similarities = []
        for scale in range(scales):
            last = scale == scales - 1
            similarities.append(_similarity(x, y, with_luminance=last))
            if not last:
                x, y = _halve(x), _halve(y)
        similarity = torch.stack(similarities, dim=1)  # (B, scales)
        score = lower_bound(similarity, _STEEPEST).pow(weights).prod(dim=1)
        exact = similarity.detach().clamp(min=0).pow(weights).prod(dim=1)
        return 1 - (score + (exact - score).detach())  # the value of exact, the gradient of score


def _luma(x: Tensor) -> Tensor:
    """Luma ``(B, H, W)`` between -0.5 and 0.5, centred so that variances are more precise."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    weights = torch.as_tensor(LUMA / 2, dtype=x.dtype, device=x.device)
    return torch.einsum("bchw,c->bhw", x, weights)


def _similarity(x: Tensor, y: Tensor, *, with_luminance: bool) -> Tensor:
    """Mean contrast-structure, or the whole of SSIM (Wang 2004, eqs. 9, 13): ``(B,)``."""
    # Only the sum of the variances is needed, so four maps are enough.
    mean_x, mean_y, squares, products = _blur(torch.stack([x, y, x * x + y * y, x * y], dim=-1))
    variances = squares - mean_x.square() - mean_y.square()
    covariance = products - mean_x * mean_y
    c1, c2 = C1 / PEAK**2, C2 / PEAK**2
    similarity = (2 * covariance + c2) / (variances + c2)
    if with_luminance:
        mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
        luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
        similarity = luminance * similarity
    return similarity.mean(dim=(1, 2))


def _blur(maps: Tensor) -> tuple[Tensor, ...]:
    """Gaussian means of maps ``(B, H, W, n)`` over windows inside the picture: n times (B, h, w).

    Maps are the last dimension, which makes depthwise convolutions several times faster on a CPU.
    """
    size, n = min(WINDOW, *maps.shape[1:3]), maps.shape[3]
    at = torch.arange(size, dtype=maps.dtype, device=maps.device) - (size - 1) / 2
    window = torch.exp(-at.square() / (2 * SIGMA**2))
    window = (window / window.sum()).expand(n, 1, 1, size)
    maps = maps.permute(0, 3, 1, 2)
    maps = F.conv2d(F.conv2d(maps, window.transpose(2, 3), groups=n), window, groups=n)
    return maps.unbind(dim=1)


def _halve(x: Tensor) -> Tensor:
    """2x2 means of ``(B, H, W)``. An odd last row or column gives means of fewer values."""
    return F.avg_pool2d(x, 2, ceil_mode=True)


def check_pictures(x: Tensor, y: Tensor) -> None:
    """Raises ValueError unless both are batches of colour pictures of one shape."""
    if x.ndim != 4 or x.shape[1] != 3 or x.shape != y.shape or not math.prod(x.shape):
        raise ValueError(
            f"expected two batches of pictures (B, 3, H, W), got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
