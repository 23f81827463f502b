"""Pictures for the benchmarks: from a tar, cut to a size, or made up."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from codec.training.data import Pictures


def from_tar(path: Path, first: int | None = None) -> list[np.ndarray]:
    """The pictures of a tar, or only the first of them, ``(H, W, 3) uint8`` each."""
    with path.open("rb") as stream:
        found = Pictures(1)
        found.add_tar(path.name, stream, lambda line: None)
    return found.take(len(found) if first is None else first)


def of_size(
    pictures: Sequence[np.ndarray], count: int, height: int, width: int
) -> list[np.ndarray]:
    """``count`` pictures of one size: turned where that fits better, cut, or mirrored at an edge.

    Where there are fewer, they come again.
    """
    out = []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        if (picture.shape[0] > picture.shape[1]) != (height > width):
            picture = np.rot90(picture)
        picture = picture[:height, :width]
        missing = [(0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0)]
        out.append(np.ascontiguousarray(np.pad(picture, missing, "symmetric")))
    return out


def synthetic(count: int, height: int, width: int, seed: int = 0) -> list[np.ndarray]:
    """Noise at every scale, coarse noise strongest, as in photographs."""
    rng = np.random.default_rng(seed)
    return [_clouds(height, width, rng) for _ in range(count)]


def _clouds(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    total = np.full((height, width, 3), 127.5, np.float32)
    cell = 2
    while cell <= max(height, width):
        size = (-(-width // cell) + 1, -(-height // cell) + 1)
        deviation = 128 * cell / max(height, width)
        for channel in range(3):
            noise = rng.normal(0, deviation, (size[1], size[0])).astype(np.float32)
            wide = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            total[..., channel] += np.asarray(wide)
        cell *= 2
    return total.round().clip(0, 255).astype(np.uint8)
