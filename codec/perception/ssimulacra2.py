"""SSIMULACRA2 in torch, with gradients for training, and with the weights of the package.

Evaluation calls the package itself (``codec.images.perception``). This is the same sum. On a CPU,
blurs are products with banded matrices, which is several times faster than convolutions of one
channel.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import StrataError

_SCALES, _SMALLEST = 6, 8
_RADIUS, _SIGMA = 5, 1.5
_C2 = 0.0009
_GAIN, _SQUARE, _CUBE, _POWER = (
    0.9562382616834844,
    -0.020884521182843837,
    6.248496625763138e-05,
    (0.6276336467831387),
)
_LINEAR = 2.326765642916932


def ssimulacra2_sum(original: Tensor, shown: Tensor) -> Tensor:
    """The sum in SSIMULACRA2 of pictures ``(B, 3, H, W)`` in [0, 1]: ``(B,)``, less is better.

    It is about 0 for equal pictures. ``score`` computes SSIMULACRA2 from it. Pictures of less than
    225 pixels per side have fewer than six scales, and a smaller sum.

    Raises StrataError if the package is not installed.
    """
    weights = _weights().to(original.device)
    a, b = linear_light(original), linear_light(shown)
    total = torch.zeros(len(a), device=a.device)
    for scale in range(_SCALES):
        if min(a.shape[2:]) < _SMALLEST:
            break
        x, y = xyb(a), xyb(b)
        means = blurred(torch.cat([x, y, x * x, y * y, x * y], 1)).chunk(5, 1)
        m1, m2, s11, s22, s12 = means
        structure = 2 * (s12 - m1 * m2) + _C2
        structure = structure / ((s11 - m1 * m1) + (s22 - m2 * m2) + _C2)
        unlike = (1 - (1 - (m1 - m2).square()) * structure).clamp_min(0)
        edges = (1 + (y - m2).abs()) / (1 + (x - m1).abs()) - 1
        maps = (unlike, edges.clamp_min(0), (-edges).clamp_min(0))
        for number, values in enumerate(maps):
            own = weights[:, scale, :, number]
            total = total + (values.mean((2, 3)) * own[:, 0] + _norm(values) * own[:, 1]).sum(1)
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total * _GAIN


def score(total: Tensor) -> Tensor:
    """SSIMULACRA2, 100 for equal pictures, from ``ssimulacra2_sum``."""
    x = _LINEAR * total + _SQUARE * total.square() + _CUBE * total**3
    return 100 - 10 * x.clamp_min(1e-6) ** _POWER


def _norm(values: Tensor) -> Tensor:
    """The 4-norm of each map; its slope at 0 is bounded."""
    return (values**4).mean((2, 3)).add(1e-20) ** 0.25


def linear_light(x: Tensor) -> Tensor:
    """sRGB to linear light."""
    return torch.where(x <= 0.04045, x / 12.92, ((x.clamp_min(1e-3) + 0.055) / 1.055) ** 2.4)


def xyb(x: Tensor) -> Tensor:
    """Linear light to XYB, shifted to positive values as the package has it."""
    package = _package()
    matrix = torch.tensor(package.kOpsinAbsorbanceMatrix, dtype=torch.float32, device=x.device)
    bias = float(package.kB0)
    cones = torch.einsum("ij,bjhw->bihw", matrix.view(3, 3), x) + bias
    cones = cones.clamp_min(1e-6) ** (1 / 3) - bias ** (1 / 3)
    red, green, blue = cones.unbind(1)
    luma = (red + green) / 2
    return torch.stack([(red - green) * 7 + 0.42, luma + 0.01, blue - luma + 0.55], 1)


def blurred(maps: Tensor) -> Tensor:
    """Maps ``(B, C, H, W)`` under the metric's Gaussian."""
    height, width = maps.shape[2:]
    down, right = _band_matrix(height, True, maps.device), _band_matrix(width, False, maps.device)
    return torch.matmul(torch.matmul(down, maps), right.T)


@cache
def _band_matrix(size: int, mirrored: bool, device: torch.device) -> Tensor:
    """A Gaussian along one side as a matrix ``(size, size)``.

    As in the package, vertical blurs mirror the edges, and horizontal ones pad with zeros.
    """
    taps = [math.exp(-0.5 * (i / _SIGMA) ** 2) for i in range(-_RADIUS, _RADIUS + 1)]
    matrix = np.zeros((size, size))
    for row in range(size):
        for i, tap in enumerate(taps):
            column = row + i - _RADIUS
            if mirrored:
                column = -1 - column if column < 0 else min(column, 2 * size - 1 - column)
            if 0 <= column < size:
                matrix[row, column] += tap / sum(taps)
    return torch.from_numpy(matrix).float().to(device)


@cache
def _package() -> Any:
    try:
        from ssimulacra2 import ssimulacra2
    except ImportError as error:
        raise StrataError(
            "SSIMULACRA2 is not installed: pip install -e '.[eyes]' -c infra/constraints.txt"
        ) from error
    return ssimulacra2


@cache
def _weights() -> Tensor:
    """Weights ``(3, 6, 2, 3)`` by channel, scale, norm and kind of map."""
    return torch.tensor(_package().weights, dtype=torch.float32).view(3, _SCALES, 2, 3)
