"""Originals that stand in for streams.

A job may keep the file of a picture in place of layers that would be larger (``--keep-original
larger``). If more layers are asked for than a picture stores, and its original is kept, the picture
is read from the original, which is exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from codec import EncodedImage
from codec.images.files import Picture, read_image
from codec.images.resizing import fit, shrink

from ..dataset.rows import encoded_image

ORIGINAL = "original"  # the column


@dataclass(frozen=True)
class KeptOriginal:
    """A picture's own file, which a dataset holds in place of the layers asked for."""

    data: bytes = field(repr=False)
    width: int
    height: int


def stream_or_original(
    row: Mapping[str, Any], layers: int, name: str
) -> EncodedImage | KeptOriginal:
    """What the picture of a row is made from: its first ``layers`` layers, or its original."""
    encoded = encoded_image(row, layers, name)
    if encoded.num_layers < layers and row.get(ORIGINAL) is not None:
        return KeptOriginal(row[ORIGINAL], row["width"], row["height"])
    return encoded


def read_original(data: bytes, max_pixels: int, max_side: int | None = None) -> Picture:
    """The picture in a kept file, scaled down so that no side is longer than ``max_side`` pixels.

    Raises BrokenImageError, UnsupportedImageError.
    """
    picture = read_image(data, max_pixels=max_pixels)
    if max_side is None:
        return picture
    size = fit(picture.height, picture.width, max_side)
    alpha = None if picture.alpha is None else shrink(picture.alpha, *size)
    return replace(picture, rgb=shrink(picture.rgb, *size), alpha=alpha)
