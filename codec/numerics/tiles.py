"""A grid in pieces: tiles with as much around them as a network sees, a few pictures at a time.

They bound the memory of a network, and give exactly what the whole gives.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Area = tuple[slice, slice]  # rows and columns


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
    seen: Area
    inner: Area
    tile: Area


def pieces(
    count: int, height: int, width: int, size: int | tuple[int, int], halo: int
) -> Iterator[Piece]:
    """Pieces of ``count`` grids ``(height, width)``, tiles of at most ``size`` (rows, columns).

    Of small grids, several together; all pieces of some grids come one after the other.
    """
    tall, wide = size if isinstance(size, tuple) else (size, size)
    together = max(1, tall * wide // max(1, height * width))
    for first in range(0, count, together):
        for top in range(0, height, tall):
            for left in range(0, width, wide):
                rows = _spans(top, height, tall, halo)
                columns = _spans(left, width, wide, halo)
                pictures = slice(first, min(first + together, count))
                yield Piece(pictures, *zip(rows, columns, strict=True))


def scaled(area: Area, up: int = 1, down: int = 1) -> Area:
    """The same area in another resolution, ``up / down`` times as fine."""
    rows, columns = (slice(s.start * up // down, s.stop * up // down) for s in area)
    return rows, columns


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
