"""How good the pictures of a finished data file are: a random sample, decoded from the file itself.

Which pictures are looked at depends on their keys alone, so a shard that is done again, or goes on
after a loss, tells the same.
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

ONE_OF, MOST = 20, 8  # pictures of a shard, at least one: decoding takes as long as encoding
MIDDLE = 512  # pixels a side of what SSIMULACRA2 looks at: it takes three seconds for a megapixel


def sampled_quality(
    path: Path,
    layers: int,
    decode: Callable[[EncodedImage], np.ndarray],
    original: Callable[[int], np.ndarray | None],
) -> dict[str, list[float | None]]:
    """PSNR in dB (None: exact) and SSIMULACRA2 of some pictures that have only their streams.

    If all pictures have their files as well, one is decoded to see that this can be done, and there
    is no quality to tell.

    Args:
        path: the data file, with ``layers`` layer columns.
        decode: a stream to its picture, ``(H, W, 3) uint8``.
        original: the picture as it was encoded, by its number in the file; None where its file is
            gone since.

    Raises CorruptStreamError where a stream does not give a picture of its size.
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
    """The numbers and rows of the pictures to look at."""
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
    """At most ``MIDDLE`` pixels each way of an ``(H, W, 3)`` picture."""
    top, left = (max(0, (side - MIDDLE) // 2) for side in picture.shape[:2])
    return np.ascontiguousarray(picture[top : top + MIDDLE, left : left + MIDDLE])
