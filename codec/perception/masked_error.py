"""Errors as eyes see them: in XYB, and less where the original has texture.

A small part of what Butteraugli measures, with gradients. Training holds a picture to it, so that
what gains by one measure of quality does not lose by another.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .ssimulacra2 import blurred, linear_light, xyb

_SCALES = 3  # the original, half and a quarter of its size
_ACTIVITY = 0.02  # of the original's luma; where it is this large, an error counts half
_CHANNELS = (1.0, 1.0, 0.5)  # weights of X, Y, B
_POWERS = (2.0, 3.0)  # of the norms over places: the larger one is for the worst places


def masked_error(original: Tensor, shown: Tensor) -> Tensor:
    """The error ``(B,)`` of pictures ``(B, 3, H, W)`` in [0, 1]; about 0 for equal pictures.

    Raises StrataError if the package ssimulacra2, which has the constants of XYB, is not installed.
    """
    weights = torch.tensor(_CHANNELS, device=original.device).view(1, 3, 1, 1)
    a, b = linear_light(original), linear_light(shown)
    total = torch.zeros(len(a), device=a.device)
    for _ in range(_SCALES):
        x, y = xyb(a), xyb(b)
        luma = x[:, 1:2]
        activity = blurred((luma - blurred(luma)).abs())
        error = (y - x) / (1 + activity / _ACTIVITY)
        # The small number keeps the slope of the root finite at 0.
        size = (weights * error.square()).sum(1).add(1e-10).sqrt()
        for power in _POWERS:
            total = total + (size**power).mean((1, 2)) ** (1 / power)
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total
