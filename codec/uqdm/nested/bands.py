"""Pictures as the bands that a nested model quantises, and back: in floats, and exactly."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...numerics import lapped_transform
from ...numerics.lapped_transform import BLOCK
from .schedule import PIXEL_UNIT, SHIFT_UNIT, NestedConfig

_BAND_UNIT = 64  # and its bands in 1/64
_LARGEST_BAND = float(1 << 19)
_FACTOR_BITS = 16


def padded(images: Tensor) -> Tensor:
    """uint8 pictures ``(B, 3, H, W)``, their last row and column repeated up to whole blocks."""
    height, width = images.shape[-2:]
    padding = (0, -width % BLOCK, 0, -height % BLOCK)
    if not any(padding):
        return images
    return F.pad(images.float(), padding, mode="replicate").to(torch.uint8)


def to_unit(images: Tensor) -> Tensor:
    """uint8 pictures ``(B, 3, H, W)`` to float32 in (-1, 1): x = 2 (raw + .5) / 256 - 1."""
    return (images.float() + 0.5) / 128.0 - 1.0


def to_bands(images: Tensor, config: NestedConfig) -> Tensor:
    """Coefficients ``(B, h, w, 192) float32`` of uint8 pictures, in units of the last Delta."""
    scale = torch.tensor(config.band_weights) / config.last_delta
    scale = scale.to(images.device, non_blocking=True)
    analysis = np.linalg.inv(config.synthesis.T)
    return lapped_transform.forward(to_unit(images), analysis).permute(0, 2, 3, 1) * scale


def to_pictures(coefficients: Tensor, config: NestedConfig) -> Tensor:
    """Pictures ``(B, 3, H, W)`` in [-1, 1] of coefficients ``(B, h, w, 192)``."""
    return lapped_transform.inverse(from_bands(coefficients, config), config.synthesis)


def to_arrays(pictures: Tensor, height: int, width: int) -> list[np.ndarray]:
    """The top left of ``(B, 3, H, W)`` in [-1, 1] as ``(height, width, 3) uint8`` each."""
    pixels = ((pictures + 1) * 128 - 0.5).round_().clamp_(0, 255).to(torch.uint8)
    return list(pixels[:, :, :height, :width].permute(0, 2, 3, 1).contiguous().cpu().numpy())


def from_bands(coefficients: Tensor, config: NestedConfig, chosen: Tensor | None = None) -> Tensor:
    """Bands ``(B, n, h, w)`` of pictures in [-1, 1], of coefficients ``(B, h, w, n)``.

    Of all bands, or of the ``chosen`` ones, ``(n,)`` positions.
    """
    scale = config.last_delta / torch.tensor(config.band_weights, dtype=torch.float64)
    scale = scale.float().to(coefficients.device, non_blocking=True)
    scale = scale if chosen is None else scale[chosen]
    return (coefficients * scale).permute(0, 3, 1, 2)


def predict_pixels(coefficients: Tensor, config: NestedConfig) -> Tensor:
    """Integer pixel predictions in 1/16 of a pixel value, ``(B, 3, H, W) float64``, exact.

    Args:
        coefficients: ``(B, h, w, 192)`` integers in 1/32 of the last Delta.

    A band's unit becomes 1/64 of a pixel value by an integer factor over 2**16: float64 holds the
    product, so that it is the same on every device.
    """
    one = float(1 << _FACTOR_BITS)
    unit = config.last_delta / SHIFT_UNIT * 128.0 * _BAND_UNIT
    factors = np.round(one * unit / np.array(config.band_weights))
    factor = torch.from_numpy(factors).to(coefficients.device, non_blocking=True)
    values = torch.round(coefficients.double() * factor / one)
    values.clamp_(-_LARGEST_BAND, _LARGEST_BAND)  # beyond lie only forged ones
    pixels = lapped_transform.inverse_exact(values.permute(0, 3, 1, 2), config.synthesis)
    pixels = torch.round(pixels * (PIXEL_UNIT / _BAND_UNIT)) + 127.5 * PIXEL_UNIT
    return pixels.clamp_(0.0, 255.0 * PIXEL_UNIT)
