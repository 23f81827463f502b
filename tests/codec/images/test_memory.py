"""The memory that reading a picture may take, measured in a child process with a limit."""

import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codec.images.memory import Room
from tests.pipeline.hostile import in_child

SIDE = 4000
READ = """
from codec.images.files import read_image

def read(path):
    picture = read_image(open(path, "rb").read())
    assert picture.rgb.shape[:2] == ({side}, {side})
"""
TOGETHER = """
import threading
from codec.images import files

def read(path):
    data = open(path, "rb").read()
    files.room = files.Room({most})
    threads = [threading.Thread(target=files.read_image, args=(data,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""
# Bytes a pixel at the peak, the 3 of the result and 1 of alpha included, and Pillow's own.
FILES = {
    "grey.png": ("L", {}, 5),
    "bits.png": ("1", {}, 5),
    "rgb.png": ("RGB", {}, 8),
    "rgba.png": ("RGBA", {}, 9),
    "palette.gif": ("P", {}, 5),
    "rgb.jpg": ("RGB", {}, 8),
    "progressive.jpg": ("RGB", {"progressive": True, "subsampling": 0}, 11),
    "cmyk.jpg": ("CMYK", {}, 8),
    "rgba.webp": ("RGBA", {"lossless": True, "quality": 0, "method": 0}, 17),
}


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one colour: the WebP has 38 bytes."""
    folder = tmp_path_factory.mktemp("bombs")
    for name, (mode, options, _) in FILES.items():
        image = Image.new(mode, (SIDE, SIDE), 1 if len(mode) == 1 else (1, 2, 3, 4)[: len(mode)])
        if mode == "P":
            image.putpalette(list(range(256)) * 3)
        out = io.BytesIO()
        image.save(out, {"jpg": "JPEG"}.get(name[-3:], name.rpartition(".")[2].upper()), **options)
        (folder / name).write_bytes(out.getvalue())
    return folder


def test_reading_takes_few_bytes_a_pixel(bombs: Path) -> None:
    cases = [(name, str(bombs / name)) for name in ("grey.png", *FILES)]  # the first warms up
    told = in_child(cases, call="read", before=READ.format(side=SIDE))
    for name, (_, _, most) in FILES.items():
        error, _, peak = told[name]
        assert not error, (name, error)
        assert peak < most * SIDE * SIDE + (10 << 20), (name, peak / SIDE / SIDE)


def test_large_pictures_take_turns(bombs: Path) -> None:
    """Eight threads take the memory of one where there is room for one."""
    before = TOGETHER.format(most=SIDE * SIDE)
    cases = [("warm", str(bombs / "bits.png")), ("eight", str(bombs / "grey.png"))]
    error, _, peak = in_child(cases, call="read", before=before)["eight"]
    assert not error
    assert peak < 12 * SIDE * SIDE, peak / SIDE / SIDE  # without turns, five times eight


def test_room_is_for_some_at_once_and_for_a_large_one_alone() -> None:
    room = Room(10)
    lock, inside, most = threading.Lock(), [0], [0]

    def take(pixels: int) -> None:
        with room.taken(pixels):
            with lock:
                inside[0] += pixels
                most[0] = max(most[0], inside[0])
            time.sleep(0.005)
            with lock:
                inside[0] -= pixels

    sizes = np.random.default_rng(0).integers(1, 9, 40).tolist()
    threads = [threading.Thread(target=take, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert 5 < most[0] <= 10
    take(25)
    assert most[0] == 25
