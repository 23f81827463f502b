"""Checks the arguments of a codec, with helpful messages for common mistakes."""

from typing import Any

import numpy as np

# PIL modes that convert to (H, W, 3) uint8 without loss.
_MODES = ("RGB", "L", "1")


def pictures(given: Any) -> list[np.ndarray]:
    """Pictures as arrays ``(H, W, 3) uint8``. PIL images of mode RGB, L and 1 are converted.

    Raises TypeError for a single picture, ValueError for other arrays and modes.
    """
    if hasattr(given, "convert") or (isinstance(given, np.ndarray) and given.ndim == 3):
        raise TypeError("pictures come in a list: write encode([picture])")
    return [_array(number, picture) for number, picture in enumerate(given)]


def _array(number: int, picture: Any) -> np.ndarray:
    if hasattr(picture, "convert"):
        if picture.mode not in _MODES:
            raise ValueError(
                f"picture {number} has the PIL mode {picture.mode}: convert it with "
                "picture.convert('RGB'), which drops transparency"
            )
        return np.asarray(picture.convert("RGB"))
    if not isinstance(picture, np.ndarray):
        raise TypeError(
            f"picture {number} must be an array (H, W, 3) uint8 or a PIL image, not "
            f"{type(picture).__name__}"
        )
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(
            f"picture {number} must be (H, W, 3) uint8, got {picture.shape} {picture.dtype}"
        )
    return picture


def check_streams(given: Any) -> None:
    """Raises TypeError for a single stream, and for bytes instead of a stream."""
    if hasattr(given, "header"):
        raise TypeError("streams come in a list: write decode([stream])")
    for stream in given:
        if isinstance(stream, bytes | bytearray | memoryview):
            raise TypeError("a stream is an EncodedImage: write EncodedImage.from_bytes(data)")


def check_layers(layers: int | None, most: int) -> None:
    """Raises ValueError for a number of layers that the model does not have."""
    if layers is not None and not 0 <= layers <= most:
        raise ValueError(f"layers must be 0 to {most}, got {layers}")


def check_device(device: str) -> None:
    """Raises ValueError for a GPU that does not exist."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"device {device!r}: torch finds no GPU here, or is a build without CUDA: use 'cpu'"
        )
