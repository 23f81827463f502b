"""Shards for measuring: crops of the photographs that scikit-image bundles, many or large."""

import io
import os
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from codec.images.files import write_image

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")  # all bundled: nothing is downloaded


@cache
def photographs() -> tuple[np.ndarray, ...]:
    from skimage import data

    return tuple(getattr(data, name)() for name in PHOTOGRAPHS)


def crops(count: int, side: int, first: int = 0) -> Iterator[np.ndarray]:
    """``count`` crops of ``side`` pixels, each from another place of another photograph."""
    for number in range(first, first + count):
        photo = photographs()[number % len(PHOTOGRAPHS)]
        height, width = photo.shape[:2]
        if min(height, width) < side:
            photo = np.tile(photo, (-(-side // height) + 1, -(-side // width) + 1, 1))
            height, width = photo.shape[:2]
        top, left = 37 * number % (height - side + 1), 101 * number % (width - side + 1)
        yield np.ascontiguousarray(photo[top : top + side, left : left + side])


def write_shard(path: Path, count: int, side: int, first: int = 0) -> Path:
    """A tar of ``count`` PNG crops, each with a little JSON beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, crop in enumerate(crops(count, side, first), start=first):
            for field, data in (
                ("png", write_image(crop, None, "png")),
                ("json", b'{"n": %d}' % number),
            ):
                member = tarfile.TarInfo(f"{number:07d}.{field}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def write_shards(folder: Path, shards: int, count: int, side: int) -> Path:
    """``shards`` tars of ``count`` different crops each; returns their folder."""
    for number in range(shards):
        write_shard(folder / f"shard-{number:03d}.tar", count, side, number * count)
    return folder


def repeat_shard(folder: Path, shards: int, count: int, side: int) -> Path:
    """The same tar under many names, as hard links: as many shards as wanted, without a disk."""
    first = write_shard(folder / "shard-000.tar", count, side)
    for number in range(1, shards):
        os.link(first, folder / f"shard-{number:03d}.tar")
    return folder
