"""Measures the quality of a random sample of a finished data file, decoded from the file itself.

The choice of pictures depends only on their keys, so a shard that is compressed again, or resumed
after a loss, gives the same figures.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from codec import EncodedImage
from codec.errors import CorruptStreamError
from codec.images.metrics import psnr
from codec.images.perception import can_judge, ssimulacra2

from ..dataset.kept_files import KEPT
from ..dataset.parquet import ParquetFile
from ..dataset.rows import encoded_image, iter_rows, stream_columns

ONE_OF, MOST = 20, 8  # one picture of 20, at least 1 and at most 8: decoding takes time
MIDDLE = 512  # pixels per side for SSIMULACRA2, which takes three seconds per megapixel


def sampled_quality(
    path: Path,
    layers: int,
    decode: Callable[[EncodedImage], np.ndarray],
    original: Callable[[int], np.ndarray | None],
) -> dict[str, list[float | None]]:
    """PSNR in dB (None: exact) and SSIMULACRA2 of some pictures whose originals are not kept.

    If all originals are kept, one picture is decoded as a check, and no quality is returned.

    Args:
        path: the data file, with ``layers`` layer columns.
        decode: decodes a stream to ``(H, W, 3) uint8``.
        original: returns the picture that was encoded, by its number in the file; None if its file
            was removed since.

    Raises CorruptStreamError if a stream does not decode to a picture of its size.
    """
    found: dict[str, list[float | None]] = {"psnr": [], "ssimulacra2": []}
    for number, row in _chosen(path, layers):
        shown = decode(encoded_image(row, layers, path.name))
        if shown.shape != (row["height"], row["width"], 3):
            raise CorruptStreamError(f"{path.name}: {row['key']} decodes to {shown.shape}")
        if row["reason"] in KEPT:
            continue
        image = original(number)
        if image is None:
            continue
        exact = np.array_equal(image, shown)
        found["psnr"].append(None if exact else round(psnr(image, shown), 2))
        if can_judge():
            score = ssimulacra2(middle(image), middle(shown))
            found["ssimulacra2"] += [] if score is None else [round(score, 2)]
    return {name: values for name, values in found.items() if values}


def _chosen(path: Path, layers: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The numbers and rows of the sampled pictures."""
    file = ParquetFile(path)
    states = list(enumerate(iter_rows(file, ["status", "reason", "key"])))
    pictures = [(n, row) for n, row in states if row["status"] == "ok"]
    streams = [(n, row) for n, row in pictures if row["reason"] not in KEPT]
    by_chance = sorted((_lot(row["key"]), n) for n, row in streams or pictures)
    count = min(MOST, max(1, len(pictures) // ONE_OF))
    wanted = {n for _, n in by_chance[:count]}
    first = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        here = sorted(n for n in wanted if first <= n < first + rows)
        if here:
            columns = ["reason", *stream_columns(layers)]
            read = list(iter_rows(file, columns, [group]))
            yield from ((n, read[n - first]) for n in here)
        first += rows


def _lot(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def middle(picture: np.ndarray) -> np.ndarray:
    """The middle of an ``(H, W, 3)`` picture, with at most ``MIDDLE`` pixels per side."""
    top, left = (max(0, (side - MIDDLE) // 2) for side in picture.shape[:2])
    return np.ascontiguousarray(picture[top : top + MIDDLE, left : left + MIDDLE])
