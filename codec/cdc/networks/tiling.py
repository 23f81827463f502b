"""Large pictures in tiles: a network sees a tile with a halo, and what it says of the halo is cut.

With a halo as wide as the network looks, the result is that of the whole picture, up to the last
bits of floats. Everything is in multiples of 64 pixels, one position of the hyper-latent.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

UNIT = 64
TILE_PIXELS = 1 << 22  # a network's input at once, unless the caller says otherwise
MIN_TILE_PIXELS = 1 << 20  # below, halos would be most of the work


@dataclass(frozen=True)
class Tile:
    """Where a tile lies, in pixels: what it gives, and what the network must see for that."""

    top: int
    bottom: int
    left: int
    right: int
    outer_top: int
    outer_bottom: int
    outer_left: int
    outer_right: int

    def outer(self, x: Tensor, stride: int) -> Tensor:
        """What to hand to a network, of ``x (B, C, H / stride, W / stride)``."""
        rows = slice(self.outer_top // stride, self.outer_bottom // stride)
        return x[..., rows, self.outer_left // stride : self.outer_right // stride]


def tiles(height: int, width: int, tile_pixels: int, halo: int) -> list[Tile]:
    """Tiles of at most ``tile_pixels`` with their halo, for sides that are multiples of 64.

    Raises ValueError for a ``tile_pixels`` below ``MIN_TILE_PIXELS``.
    """
    if tile_pixels < MIN_TILE_PIXELS:
        raise ValueError(f"tile_pixels must be at least {MIN_TILE_PIXELS}, got {tile_pixels}")
    if height * width <= tile_pixels:
        return [Tile(0, height, 0, width, 0, height, 0, width)]
    # A narrow picture is cut along its length only.
    tile_width = width
    if width > math.isqrt(tile_pixels):
        tile_width = min(width, max(math.isqrt(tile_pixels), tile_pixels // height))
    inner_width = width if tile_width >= width else _inner(tile_width, halo)
    tile_height = tile_pixels // min(inner_width + 2 * halo, width)
    inner_height = height if tile_height >= height else _inner(tile_height, halo)
    out = []
    for top in range(0, height, inner_height):
        for left in range(0, width, inner_width):
            bottom, right = min(top + inner_height, height), min(left + inner_width, width)
            out.append(
                Tile(
                    top,
                    bottom,
                    left,
                    right,
                    max(top - halo, 0),
                    min(bottom + halo, height),
                    max(left - halo, 0),
                    min(right + halo, width),
                )
            )
    return out


def _inner(side: int, halo: int) -> int:
    return max((side - 2 * halo) // UNIT * UNIT, UNIT)


def by_tiles(
    function: Callable[[Tensor, Tile], Tensor],
    x: Tensor,
    stride: int,
    out_stride: int,
    tile_pixels: int,
    halo: int,
) -> Tensor:
    """``function`` of ``x (B, C, H / stride, W / stride)``, computed in tiles.

    ``function`` takes a piece of ``x`` and its tile, and gives ``(B, D, h, w)`` with one position
    in ``out_stride`` pixels.
    """
    height, width = x.shape[2] * stride, x.shape[3] * stride
    places = tiles(height, width, max(tile_pixels // len(x), MIN_TILE_PIXELS), halo)
    if len(places) == 1:
        return function(x, places[0])
    out: Tensor | None = None
    for tile in places:
        piece = function(tile.outer(x, stride), tile)
        if out is None:
            size = (len(x), piece.shape[1], height // out_stride, width // out_stride)
            out = torch.empty(size, dtype=piece.dtype, device=piece.device)
        top, left = (tile.top - tile.outer_top), (tile.left - tile.outer_left)
        rows, columns = tile.bottom - tile.top, tile.right - tile.left
        s = out_stride
        out[..., tile.top // s : tile.bottom // s, tile.left // s : tile.right // s] = piece[
            ..., top // s : (top + rows) // s, left // s : (left + columns) // s
        ]
    assert out is not None
    return out
