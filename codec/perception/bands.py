"""Colours and weights of transform bands by which squared error is near to what eyes see."""

from typing import NamedTuple

import numpy as np

from ..numerics.lapped_transform import BLOCK

# What luma, red against green, and blue against both add to red, green and blue: the linear part of
# XYB (the colours of JPEG XL), in pixel values. Multiples of 2**-14: UQDM inverts them exactly.
VISUAL_COLOURS = (
    *(0.57733154296875, 0.57733154296875, 0.57733154296875),
    *(0.90179443359375, -0.3306884765625, -0.27825927734375),
    *(-0.083984375, -0.083984375, 0.992919921875),
)


class _Slope(NamedTuple):
    """How the weights of a colour's bands fall: gain / (1 + (frequency / middle)**power)."""

    gain: float
    middle: float
    power: float
    mean: float  # the weight of the lowest band is so many times larger
    next: float  # and that of its two neighbours


_SLOPES = (
    _Slope(2.86123, 1.91980, 1.30835, 1.32810, 1.0),
    _Slope(0.85283, 2.13260, 1.16608, 1.23970, 0.85748),
    _Slope(0.99442, 0.77029, 0.93190, 1.76776, 0.94091),
)


def visual_weights() -> np.ndarray:
    """Weights ``(192,)`` of the bands that give the best picture to the eye at its bytes.

    In the order of ``codec.numerics.lapped_transform``, of ``VISUAL_COLOURS``. Chosen by
    SSIMULACRA2 and Butteraugli: docs/experiments.md.
    """
    frequency = np.hypot(*np.mgrid[:BLOCK, :BLOCK])
    weights = np.stack([s.gain / (1 + (frequency / s.middle) ** s.power) for s in _SLOPES])
    for own, slope in zip(weights, _SLOPES, strict=True):
        own[0, 0] *= slope.mean
        own[[0, 1], [1, 0]] *= slope.next
    return np.round(weights.flatten(), 4)
