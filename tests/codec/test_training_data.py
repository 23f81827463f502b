"""Training pictures: crops, flips, and groups of one size."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from codec.training_data import Pictures, read_share
from tests.codec.models import noise_pictures
from tests.pipeline.makers import png, write_tar


def test_pictures_are_cropped_flipped_and_kept_apart_by_size() -> None:
    pictures = Pictures(crop=32)
    for picture in noise_pictures(5, 48).permute(0, 2, 3, 1).numpy():
        pictures.add(picture)
    for picture in noise_pictures(6, 24).permute(0, 2, 3, 1).numpy():
        pictures.add(picture)
    pictures.add(np.zeros((8, 8, 3), np.uint8))  # too small to learn from
    assert len(pictures) == 11
    rng = np.random.default_rng(0)
    assert pictures.batch(4, 0.0, rng).shape == (4, 3, 32, 32)
    assert pictures.batch(4, 1.0, rng).shape[2:] == (24, 24)
    assert len(pictures.take(4)) == 4
    assert len(pictures) == 7


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_workers_share_the_pictures(tmp_path: Path, size: int) -> None:
    """Each is somebody's once, with its source, and a shard of their own is read by nobody else."""
    shards = []
    for shard in range(3):
        files = []
        for i in range(5):
            label = json.dumps({"source": f"{shard}-{i}", "license": "CC0"}).encode()
            files += [(f"{shard}.d/{i}.png", png(10 * shard + i)), (f"{shard}.d/{i}.json", label)]
        shards.append(str(write_tar(tmp_path / f"{shard}.tar", files)))
    opened: Counter[str] = Counter()

    def open_shard(name: str) -> io.BytesIO:
        opened[name] += 1
        return io.BytesIO(Path(name).read_bytes())

    shares = [read_share(shards, open_shard, 8, rank, size, str) for rank in range(size)]
    once = opened.copy()
    whole = read_share(shards, open_shard, 8, 0, 1, str)
    found = [picture.tobytes() for share in shares for picture in share.large]
    assert sorted(found) == sorted(picture.tobytes() for picture in whole.large)
    assert len(whole) == len(set(found)) == 15
    sources = sum((Counter(share.sources) for share in shares), Counter())
    assert sources == Counter(whole.sources)
    assert len(sources) == 15
    alone = 3 // size * size
    assert [once[name] for name in shards] == [1] * alone + [size] * (3 - alone)
