"""Frechet distance of features: do pictures, as a set, have the statistics of their originals?

Like FID (Heusel et al. 2017), but with features at each place of 16 pixels instead of whole
pictures, so that some dozens of pictures are enough, and with EfficientNet-Lite0 instead of
Inception. So figures can be compared with each other, but not with published ones. Statistics are
sums: they can be computed for single pictures, on many machines, and added.
"""

import base64
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .features import CHANNELS, STRIDES, unit

DIMENSIONS = 64  # the 192 features are projected to so many, for 8 KB of statistics per picture
_UPPER = np.triu_indices(DIMENSIONS)


def moments(features: list[Tensor]) -> np.ndarray:
    """Sums over all places of 1, of each feature, and of each product of two, float64.

    Args:
        features: of ``Features`` for a batch; the sums are over all its pictures.
    """
    coarsest = features[-1].shape[2:]
    maps = []
    for values, stride in zip(features, STRIDES, strict=True):
        pooled = F.avg_pool2d(unit(values), STRIDES[-1] // stride, ceil_mode=True)
        maps.append(pooled[:, :, : coarsest[0], : coarsest[1]])
    rows = torch.cat(maps, 1).permute(0, 2, 3, 1).flatten(0, 2).double().cpu().numpy()
    rows = rows @ _projection()
    products = (rows.T @ rows)[_UPPER]
    return np.concatenate([[len(rows)], rows.sum(0), products])


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """The distance of two sums of ``moments``; 0 for equal ones (Dowson & Landau 1982)."""
    (m1, c1), (m2, c2) = _gaussian(one), _gaussian(other)
    values, vectors = np.linalg.eigh(c1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    both = np.sqrt(np.linalg.eigvalsh(root @ c2 @ root).clip(0)).sum()
    distance = np.square(m1 - m2).sum() + np.trace(c1) + np.trace(c2) - 2 * both
    return float(max(distance, 0.0))


def to_text(sums: np.ndarray) -> str:
    """``moments`` for a record, in single precision."""
    return base64.b64encode(sums.astype("<f4").tobytes()).decode()


def from_text(text: str) -> np.ndarray:
    """The inverse of ``to_text``, float64. Raises ValueError for another length."""
    sums = np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(float)
    if sums.shape != (1 + DIMENSIONS + len(_UPPER[0]),):
        raise ValueError(f"statistics of features are not {len(sums)} numbers")
    return sums


def _gaussian(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance."""
    count, mean = sums[0], sums[1 : 1 + DIMENSIONS] / sums[0]
    square = np.zeros((DIMENSIONS, DIMENSIONS))
    square[_UPPER] = sums[1 + DIMENSIONS :] / count
    square = square + np.triu(square, 1).T
    return mean, square - np.outer(mean, mean)


@cache
def _projection() -> np.ndarray:
    """Fixed orthonormal directions ``(192, 64)``."""
    random = np.random.RandomState(0)  # numpy keeps these numbers
    matrix, _ = np.linalg.qr(random.standard_normal((sum(CHANNELS), DIMENSIONS)))
    return matrix
