"""A grid in pieces: tiles with as much around them as a network sees, a few pictures at a time.

They bound the memory of a network, and give exactly what the whole gives.
"""

from collections.abc import Iterator
from dataclasses import dataclass

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
