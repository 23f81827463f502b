"""A grid in pieces: tiles with as much around them as a network sees, a few pictures at a time.

They bound the memory of a network, and give exactly what the whole gives.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_Area = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class Piece:
    """What a network looks at, and what of it counts.

    Attributes:
        pictures: which of the batch.
        seen: the area to look at, tile and halo.
        inner: where the tile is in that area.
        tile: where it is in the whole.
    """

    pictures: slice
    seen: _Area
    inner: _Area
    tile: _Area


def pieces(count: int, height: int, width: int, size: int, halo: int) -> Iterator[Piece]:
    """Pieces of ``count`` grids ``(height, width)``, tiles of at most ``size`` on a side.

    Of small grids, several together; all pieces of some grids come one after the other.
    """
    together = max(1, size * size // (height * width))
    for first in range(0, count, together):
        for top in range(0, height, size):
            for left in range(0, width, size):
                rows = _spans(top, height, size, halo)
                columns = _spans(left, width, size, halo)
                yield Piece(slice(first, first + together), *zip(rows, columns, strict=True))


def _spans(start: int, length: int, size: int, halo: int) -> tuple[slice, slice, slice]:
    """Along one axis: what is seen, the tile in it, the tile in the whole."""
    end, outer = min(start + size, length), max(start - halo, 0)
    return (
        slice(outer, min(end + halo, length)),
        slice(start - outer, end - outer),
        slice(start, end),
    )


def in_tiles(
    shape: Sequence[int],
    size: int,
    halo: int,
    of: Callable[[Piece, Tensor | None], Tensor],
    device: torch.device,
    wanted: np.ndarray | None = None,
) -> Tensor:
    """What ``of`` gives of every block, or of some: ``(B, n, channels)``.

    Which blocks are wanted is known without the device, so that it is not waited for.

    Args:
        shape: count, height and width of the grids.
        size: tiles have at most so many blocks on a side.
        halo: how far a network looks on each side.
        of: called with a piece and the blocks of its ``seen`` area that are wanted, ``(n,)``
            row by row, or None for all; gives ``(b, n, channels)`` on ``device``.
        wanted: ``(h, w) bool``; None: all of them.
    """
    count, height, width = shape

    def there(places: np.ndarray) -> Tensor:
        return torch.from_numpy(places).to(device, non_blocking=True)

    if max(height, width) <= size and count <= max(1, size * size // (height * width)):
        whole = (slice(height), slice(width))
        at = None if wanted is None else there(np.flatnonzero(wanted))
        return of(Piece(slice(count), whole, whole, whole), at)
    every = np.ones((height, width), bool) if wanted is None else wanted
    # Where in the result each block is.
    number = np.cumsum(every).reshape(every.shape) - 1
    result: Tensor | None = None
    for piece in pieces(count, height, width, size, halo):
        inner = np.zeros_like(every[piece.seen])
        inner[piece.inner] = every[piece.tile]
        values = of(piece, there(np.flatnonzero(inner)))
        if result is None:
            total = int(every.sum())
            result = values.new_empty((count, total, values.shape[-1]))
        result[piece.pictures, there(number[piece.seen][inner])] = values
    assert result is not None
    return result
