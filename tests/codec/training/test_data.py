"""Training pictures: crops, flips, and groups of one size."""

import io
import itertools
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codec import StrataError
from codec.training.data import Pictures, ShardWindow, read_share, share_of
from tests.codec.small_models import noise_pictures
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


def test_pictures_of_every_format_are_read_and_others_named(tmp_path: Path) -> None:
    formats = {"gif": "GIF", "jfif": "JPEG", "jp2": "JPEG2000", "avif": "AVIF", "PNG": "PNG"}
    files = []
    for extension, format in formats.items():
        out = io.BytesIO()
        Image.fromarray(np.full((48, 48, 3), 99, np.uint8)).save(out, format)
        files.append((f"{extension}.{extension}", out.getvalue()))
    path = write_tar(tmp_path / "x.tar", [*files, ("h.heic", b"ftypheic"), ("t.txt", b"text")])
    lines: list[str] = []
    pictures = Pictures(crop=32)
    with open(path, "rb") as stream:
        pictures.add_tar("x.tar", stream, lines.append)
    assert len(pictures) == len(formats)
    assert len(lines) == 2
    assert "x.tar: h.heic left out: not an image" in lines[0]


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

    shares = [read_share(share_of(shards, n, size), open_shard, 8, str) for n in range(size)]
    once = opened.copy()
    whole = read_share(share_of(shards, 0, 1), open_shard, 8, str)
    found = [picture.tobytes() for share in shares for picture in share.large]
    assert sorted(found) == sorted(picture.tobytes() for picture in whole.large)
    assert len(whole) == len(set(found)) == 15
    sources = sum((Counter(share.sources) for share in shares), Counter())
    assert sources == Counter(whole.sources)
    assert len(sources) == 15
    alone = 3 // size * size
    assert [once[name] for name in shards] == [1] * alone + [size] * (3 - alone)


def numbered(folder: Path, shards: int, each: int = 2) -> list[str]:
    """Shards of grey pictures, whose value is their shard's number."""
    names = []
    for number in range(shards):
        out = io.BytesIO()
        Image.new("RGB", (20, 20), (number,) * 3).save(out, "png")
        files = [(f"{i}.png", out.getvalue()) for i in range(each)]
        names.append(str(write_tar(folder / f"{number}.tar", files)))
    return names


def opened_here(name: str) -> io.BytesIO:
    return io.BytesIO(Path(name).read_bytes())


def values(pictures: Pictures) -> list[int]:
    return sorted(int(picture[0, 0, 0]) for picture in pictures.large)


def test_a_window_goes_through_all_shards_a_few_at_a_time(tmp_path: Path) -> None:
    shards = numbered(tmp_path, 7)
    opened: list[int] = []

    def open_shard(name: str) -> io.BytesIO:
        opened.append(int(Path(name).stem))
        return io.BytesIO(Path(name).read_bytes())

    def window(seed: int = 0) -> ShardWindow:
        return ShardWindow(share_of(shards, 0, 1), open_shard, 8, 3, 10, seed, str)

    one = window()
    one.at(0)
    deadline = time.monotonic() + 30
    while len(opened) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(opened) == 4  # the next one is read before it is asked for
    seen = []
    for step in range(140):  # twice round
        pictures = one.at(step)
        assert pictures is one.at(step)
        assert len(pictures) == 6
        if step % 10 == 0:
            seen.append(values(pictures))
            begun = len(opened)
        assert len(opened) <= step // 10 + 4  # three, and one that is being read meanwhile
        assert len(opened) >= begun
    one.close()
    assert opened[:7] == opened[7:14] != sorted(opened[:7]) == list(range(7))
    for before, after in itertools.pairwise(seen):
        assert len(set(before) & set(after)) == 2
    # A run that goes on amid its steps has what it would have had.
    resumed = window()
    assert values(resumed.at(55)) == seen[5]
    assert values(resumed.at(60)) == seen[6]
    resumed.close()
    other = window(seed=1)
    assert [values(other.at(step)) for step in range(0, 140, 10)] != seen
    other.close()


def test_workers_have_windows_of_their_own_shares(tmp_path: Path) -> None:
    shards = numbered(tmp_path, 5)
    found = []
    for rank in range(2):
        share = share_of(shards, rank, 2)
        one = ShardWindow(share, opened_here, 8, 1, 1, 0, str)
        for step in range(len(share)):
            found += values(one.at(step))
        one.close()
    assert sorted(found) == sorted([0, 1, 2, 3, 4] * 2)


def test_a_window_says_which_shards_hold_nothing(tmp_path: Path) -> None:
    shards = numbered(tmp_path, 3)
    write_tar(tmp_path / "1.tar", [("a.txt", b"no picture")])
    one = ShardWindow(share_of(shards, 0, 1), opened_here, 8, 1, 1, 0, str)
    with pytest.raises(StrataError, match=r"no picture of at least 16x16 in .*1\.tar"):
        [one.at(step) for step in range(3)]
    one.close()
    (tmp_path / "2.tar").unlink()
    gone = ShardWindow(share_of(shards, 0, 1), opened_here, 8, 2, 1, 0, str)
    with pytest.raises(FileNotFoundError, match=r"2\.tar"):
        [gone.at(step) for step in range(3)]
    gone.close()
