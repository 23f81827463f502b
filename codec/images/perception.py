"""SSIMULACRA2, a measure of how good a picture looks, from the optional package ``ssimulacra2``."""

import importlib.util
from io import BytesIO

import numpy as np

SMALLEST = 8  # pixels per side that it needs
# SSIMULACRA2 uses six scales. On a smaller picture it uses fewer, with the weights of others, and
# calls everything bad.
WHOLE = 256
EXACT = 100.0  # of an exact picture


def can_judge() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("ssimulacra2") is not None


def ssimulacra2(original: np.ndarray, shown: np.ndarray) -> float | None:
    """SSIMULACRA2 of two ``(H, W, 3) uint8`` pictures of one shape; None if they are too small.

    30 is low quality, 50 medium, 70 high, 90 cannot be told from the original in a flicker test.
    Takes some three seconds per megapixel. Pictures of less than ``WHOLE`` pixels a side are
    extended by their mirror images.
    """
    from ssimulacra2 import compute_ssimulacra2

    if min(shown.shape[:2]) < SMALLEST:
        return None
    files = (BytesIO(ppm(_mirrored(picture))) for picture in (original, shown))
    return float(compute_ssimulacra2(*files))


def _mirrored(picture: np.ndarray) -> np.ndarray:
    height, width = (max(0, WHOLE - side) for side in picture.shape[:2])
    return np.pad(picture, ((0, height), (0, width), (0, 0)), mode="symmetric")


def ppm(picture: np.ndarray) -> bytes:
    """An ``(H, W, 3) uint8`` picture as a PPM file."""
    height, width = picture.shape[:2]
    return b"P6 %d %d 255\n" % (width, height) + picture.tobytes()
