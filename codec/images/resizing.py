"""Scales pictures down."""

import numpy as np
from PIL import Image


def fit(height: int, width: int, max_side: int) -> tuple[int, int]:
    """Height and width of a picture scaled down to at most ``max_side`` pixels per side.

    Raises ValueError unless ``max_side`` is at least 1.
    """
    if max_side < 1:
        raise ValueError(f"max_side must be at least 1, got {max_side}")
    longest = max(height, width)
    if longest <= max_side:
        return height, width

    def scaled(side: int) -> int:
        return max(1, (side * max_side + longest // 2) // longest)

    return scaled(height), scaled(width)


def shrink(
    picture: np.ndarray, height: int, width: int, part: tuple[float, float] | None = None
) -> np.ndarray:
    """``(H, W, 3) uint8`` resampled to ``(height, width, 3)`` with a filter against aliasing.

    ``part`` is the height and width of the part to use, from the top left corner; they need not be
    whole numbers.
    """
    rows, columns = part or picture.shape[:2]
    if rows == height and columns == width:
        return picture[:height, :width]
    box = (0.0, 0.0, columns, rows)
    small = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS, box)
    return np.asarray(small)
