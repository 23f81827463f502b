"""Transform bands: an orthonormal lapped transform over 8x8 blocks and a 3-point DCT over colour.

A picture (3, H, W) becomes 192 bands at 1/8 resolution, so networks run at 1/64 of the positions
and PSNR can be computed on coefficients. The lapped transform is an 8-point DCT after an
orthogonal pre-filter across block boundaries (Malvar's type-II fast LOT in the form of Tran,
Liang and Tu 2003, "Lapped transform via time-domain pre- and post-filtering"): coding gain 9.22
dB on an AR(0.95) source against 8.83 dB for the DCT alone, and no block edges. At picture edges
no filter is applied, which keeps the whole transform orthonormal for any size.
"""

from functools import cache

import numpy as np
import torch

BLOCK = 8
BANDS = 3 * BLOCK * BLOCK  # ordered colour, vertical frequency, horizontal frequency
_FRACTION_BITS = 14  # of the integer matrices of ``inverse_exact``


def dct_matrix(n: int) -> np.ndarray:
    """Orthonormal type-II DCT ``(n, n) float64``, row k is frequency k."""
    k, i = np.arange(n)[:, None], np.arange(n)[None]
    matrix = np.cos(np.pi * (2 * i + 1) * k / (2 * n)) * np.sqrt(2 / n)
    matrix[0] /= np.sqrt(2)
    return matrix


def _prefilter_matrix() -> np.ndarray:
    """Orthogonal ``(8, 8)`` filter over the four samples on each side of a block boundary."""
    half = BLOCK // 2
    i = np.arange(half)
    dct4 = np.sqrt(2 / half) * np.cos(np.pi * np.outer(2 * i + 1, 2 * i + 1) / (4 * half))
    flip, eye, zero = np.eye(half)[::-1], np.eye(half), np.zeros((half, half))
    rotation = flip @ dct_matrix(half).T @ dct4 @ flip
    butterfly = np.block([[eye, flip], [flip, -eye]]) / np.sqrt(2)
    return butterfly @ np.block([[eye, zero], [zero, rotation]]) @ butterfly


_MATRICES = {"colour": dct_matrix(3), "block": dct_matrix(BLOCK), "lap": _prefilter_matrix()}


@cache
def _matrix(name: str, dtype: torch.dtype, device: torch.device, exact: bool) -> torch.Tensor:
    values = _MATRICES[name]
    if exact:
        values = np.round(values * (1 << _FRACTION_BITS))
    return torch.from_numpy(values).to(device=device, dtype=dtype)


def _lap(x: torch.Tensor, matrix: torch.Tensor, dim: int, gain: float = 1.0) -> torch.Tensor:
    """Apply ``matrix`` across each block boundary along ``dim``; elsewhere multiply by gain."""
    n, half = x.shape[dim], BLOCK // 2
    if n <= BLOCK:
        return x * gain
    x = x.movedim(dim, -1)
    inner = x[..., half:-half].unflatten(-1, (n // BLOCK - 1, BLOCK)) @ matrix.T
    ends = (x[..., :half] * gain, inner.flatten(-2), x[..., -half:] * gain)
    return torch.cat(ends, -1).movedim(-1, dim)


def forward(x: torch.Tensor) -> torch.Tensor:
    """Bands ``(B, 192, H/8, W/8)`` of pictures ``(B, 3, H, W)``, H and W multiples of 8."""
    block = _matrix("block", x.dtype, x.device, False)
    lap = _matrix("lap", x.dtype, x.device, False)
    x = torch.einsum("ac,bchw->bahw", _matrix("colour", x.dtype, x.device, False), x)
    x = _lap(_lap(x, lap, 2), lap, 3)
    x = x.unflatten(2, (-1, BLOCK)).unflatten(4, (-1, BLOCK))
    x = torch.einsum("uy,vx,bchywx->bcuvhw", block, block, x)
    return x.flatten(1, 3)


def inverse(bands: torch.Tensor) -> torch.Tensor:
    """Pictures ``(B, 3, H, W)`` of bands ``(B, 192, H/8, W/8)``."""
    block = _matrix("block", bands.dtype, bands.device, False)
    lap = _matrix("lap", bands.dtype, bands.device, False)
    x = bands.unflatten(1, (3, BLOCK, BLOCK))
    x = torch.einsum("uy,vx,bcuvhw->bchywx", block, block, x).flatten(4, 5).flatten(2, 3)
    x = _lap(_lap(x, lap.T, 2), lap.T, 3)
    return torch.einsum("ac,bahw->bchw", _matrix("colour", x.dtype, x.device, False), x)


def inverse_exact(bands: torch.Tensor) -> torch.Tensor:
    """``inverse`` for integer bands, the same to the last bit on every device.

    Args:
        bands: ``(B, 192, H/8, W/8) float64`` holding integers of at most 2**19 in magnitude.

    Returns:
        ``(B, 3, H, W) float64`` holding integers: the picture in the bands' unit.

    The matrices are rounded to integers over 2**14, and every product and sum stays below 2**53, so
    float64 adds them exactly in whatever order a device chooses; each stage ends in one rounding.
    """
    dtype, device, one = bands.dtype, bands.device, float(1 << _FRACTION_BITS)
    block = _matrix("block", dtype, device, True)
    lap = _matrix("lap", dtype, device, True)
    colour = _matrix("colour", dtype, device, True)
    x = bands.unflatten(1, (3, BLOCK, BLOCK))
    x = torch.einsum("uy,bcuvhw->bchyvw", block, x)
    x = torch.round(torch.einsum("vx,bchyvw->bchywx", block, x) / one)
    x = x.flatten(4, 5).flatten(2, 3)  # in 2**-14 of the bands' unit
    x = torch.round(_lap(x, lap.T, 2, one) / one)
    x = torch.round(_lap(x, lap.T, 3, one) / one)
    return torch.round(torch.einsum("ac,bahw->bchw", colour, x) / one**2)
