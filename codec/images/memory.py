"""Limits the memory of reading pictures: copies a few rows at a time, and large pictures in turn.

Pillow copies a whole picture, with 3 or 4 bytes per pixel, when it converts it or makes an array.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

STRIP_PIXELS = 1 << 20


class Room:
    """Lets threads read pictures at the same time, up to ``most`` pixels together.

    A larger picture waits until it is alone.
    """

    def __init__(self, most: int) -> None:
        self.most, self._taken, self._changed = most, 0, threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + pixels <= self.most)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


def to_arrays(
    image: Image.Image,
    with_alpha: str | None,
    mode: str,
    convert: Callable[[Image.Image], np.ndarray],
) -> tuple[np.ndarray, np.ndarray | None]:
    """A loaded picture as ``(H, W, 3) uint8``, and its alpha ``(H, W) uint8`` or None.

    Args:
        with_alpha: the mode that has the alpha channel, or None.
        mode: of the colours.
        convert: converts a picture of that mode to ``(H, W, 3) uint8``.
    """
    width, height = image.size
    rgb = np.empty((height, width, 3), np.uint8)
    alpha = np.empty((height, width), np.uint8) if with_alpha else None
    for rows, part in _strips(image):
        if with_alpha and alpha is not None:
            part = part if part.mode == with_alpha else part.convert(with_alpha)
            alpha[rows] = np.asarray(part.getchannel("A"))
        rgb[rows] = convert(part if part.mode == mode else part.convert(mode))
    return rgb, alpha


def pixel_hash(image: Image.Image) -> bytes:
    """A hash of a picture's mode, size and pixels."""
    digest = hashlib.sha256(f"{image.mode} {image.size}".encode())
    image.load()
    for _, part in _strips(image):
        digest.update(part.tobytes())
    return digest.digest()


def _strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """The picture in strips of some rows, from top to bottom, each with its range of rows."""
    width, height = image.size
    count = max(1, STRIP_PIXELS // width)
    for top in range(0, height, count):
        bottom = min(top + count, height)
        yield slice(top, bottom), image.crop((0, top, width, bottom))
