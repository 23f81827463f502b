"""SSIMULACRA2: how good a picture looks to people, by the package ``ssimulacra2`` (optional)."""

import importlib.util
from io import BytesIO

import numpy as np

SMALLEST = 8  # pixels a side, that it can judge
# The measure looks at six scales. Of a smaller picture it sees fewer, weighs them as if they were
# others, and calls everything bad.
WHOLE = 256
EXACT = 100.0  # what a picture has that came back as it was


def can_judge() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("ssimulacra2") is not None


def ssimulacra2(original: np.ndarray, shown: np.ndarray) -> float | None:
    """Of two ``(H, W, 3) uint8`` pictures of one shape; None for those too small.

    30 is low quality, 50 medium, 70 high, 90 cannot be told from the original in a flicker test.
    Takes some three seconds for a megapixel. Pictures of less than ``WHOLE`` pixels a side are
    continued by their mirror images.
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
    """An ``(H, W, 3) uint8`` picture as a file without compression."""
    height, width = picture.shape[:2]
    return b"P6 %d %d 255\n" % (width, height) + picture.tobytes()
