"""A grid in pieces: tiles with as much around them as a network sees, a few pictures at a time.

They bound the memory of a network, and give exactly what the whole gives.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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
    places: Tensor | None = None,
) -> Tensor:
    """What ``of`` gives of every block, or of some: ``(B, n, channels)``.

    Args:
        shape: count, height and width of the grids.
        size: tiles have at most so many blocks on a side.
        halo: how far a network looks on each side.
        of: called with a piece and the blocks of its ``seen`` area that are wanted, ``(n,)``
            row by row, or None for all; gives ``(b, n, channels)``.
        places: ``(n,)`` blocks of the ``h * w``, ascending; None: all of them.
    """
    count, height, width = shape
    if max(height, width) <= size and count <= max(1, size * size // (height * width)):
        whole = (slice(height), slice(width))
        return of(Piece(slice(count), whole, whole, whole), places)
    device = None if places is None else places.device
    wanted = torch.zeros(height * width, dtype=torch.bool, device=device)
    wanted[slice(None) if places is None else places] = True
    number = torch.arange(height * width, device=device).view(height, width)
    result: Tensor | None = None
    for piece in pieces(count, height, width, size, halo):
        inner = torch.zeros_like(number[piece.seen], dtype=torch.bool)
        inner[piece.inner] = True
        inner &= wanted[number[piece.seen]]
        at, whole_at = torch.nonzero(inner.flatten()).flatten(), number[piece.seen][inner]
        values = of(piece, at)
        if result is None:
            result = values.new_empty((count, height * width, values.shape[-1]))
        result[piece.pictures, whole_at.to(result.device)] = values
    assert result is not None
    return result if places is None else result.index_select(1, places)
