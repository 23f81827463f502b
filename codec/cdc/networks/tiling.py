"""Large pictures in tiles: a network sees a tile with a halo, and what it says of the halo is cut.

With a halo as wide as the network looks, the result is that of the whole picture, up to the last
bits of floats. Everything is in multiples of 64 pixels, one position of the hyper-latent.
"""

import math
from collections.abc import Callable

from torch import Tensor

from ...numerics.tiles import Area, pieces, scaled

UNIT = 64
TILE_PIXELS = 1 << 22  # a network's input at once, unless the caller says otherwise
MIN_TILE_PIXELS = 1 << 20  # below, halos would be most of the work


def tile_size(height: int, width: int, tile_pixels: int, halo: int) -> tuple[int, int]:
    """Rows and columns of tiles that have at most ``tile_pixels`` with their halo.

    For sides that are multiples of 64. Raises ValueError for a ``tile_pixels`` below
    ``MIN_TILE_PIXELS``.
    """
    if tile_pixels < MIN_TILE_PIXELS:
        raise ValueError(f"tile_pixels must be at least {MIN_TILE_PIXELS}, got {tile_pixels}")
    if height * width <= tile_pixels:
        return height, width
    # A narrow picture is cut along its length only.
    tile_width = width
    if width > math.isqrt(tile_pixels):
        tile_width = min(width, max(math.isqrt(tile_pixels), tile_pixels // height))
    inner_width = width if tile_width >= width else _inner(tile_width, halo)
    tile_height = tile_pixels // min(inner_width + 2 * halo, width)
    return height if tile_height >= height else _inner(tile_height, halo), inner_width


def _inner(side: int, halo: int) -> int:
    return max((side - 2 * halo) // UNIT * UNIT, UNIT)


def by_tiles(
    function: Callable[[Tensor, Area], Tensor],
    x: Tensor,
    stride: int,
    out_stride: int,
    tile_pixels: int,
    halo: int,
) -> Tensor:
    """``function`` of ``x (B, C, H / stride, W / stride)``, computed in tiles.

    ``function`` takes a piece of ``x`` and where in the picture it lies (pixels), and gives
    ``(B, D, h, w)`` with one position in ``out_stride`` pixels.
    """
    height, width = x.shape[2] * stride, x.shape[3] * stride
    size = tile_size(height, width, max(tile_pixels // len(x), MIN_TILE_PIXELS), halo)
    if size == (height, width):
        return function(x, (slice(0, height), slice(0, width)))
    out: Tensor | None = None
    for piece in pieces(1, height, width, size, halo):
        part = function(x[..., *scaled(piece.seen, 1, stride)], piece.seen)
        if out is None:
            sides = (height // out_stride, width // out_stride)
            out = part.new_empty((*part.shape[:2], *sides))
        inner, tile = (scaled(area, 1, out_stride) for area in (piece.inner, piece.tile))
        out[..., *tile] = part[..., *inner]
    assert out is not None
    return out
