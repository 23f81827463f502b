"""What large pictures take in memory: reading their files, encoding and decoding them.

    python tests/benchmarks/large_pictures.py --read 16383 8192
    python tests/benchmarks/large_pictures.py --model uqdm --megapixels 2 6

Prints bytes a pixel at the peak, beyond what was there before. Files are of one colour; what is
encoded is made of random squares.
"""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image

from codec import load_codec
from codec.images.colour import made_profile
from tests.pipeline.hostile import in_child

ADOBE = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
PROFILE = made_profile("benchmark", ADOBE, 2.2)
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "1 bit.png": ("1", {}),
    "grey.png": ("L", {}),
    "grey.jpeg": ("L", {}),
    "grey.jpeg2000": ("L", {}),
    "palette.gif": ("P", {}),
    "rgb.png": ("RGB", {}),
    "rgb with a profile.png": ("RGB", {"icc_profile": PROFILE}),
    "rgba.png": ("RGBA", {}),
    "rgb.jpeg": ("RGB", {}),
    "progressive.jpeg": ("RGB", {"progressive": True, "subsampling": 0}),
    "cmyk.jpeg": ("CMYK", {}),
    "rgb.webp": ("RGB", {"lossless": True, "quality": 0, "method": 0}),
    "rgb.avif": ("RGB", {"speed": 10, "max_threads": 1}),
}
READ = """
from codec.images.files import read_image

def read(path):
    read_image(open(path, "rb").read())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--read", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--model", default="uqdm")
    parser.add_argument("--megapixels", type=float, nargs="*", default=[])
    given = parser.parse_args()
    if given.read:
        read(*given.read)
    if given.megapixels:
        encode(given.model, given.megapixels)


def read(width: int, height: int) -> None:
    """The peak of reading one file of each kind, each in a process of its own."""
    for name, (mode, options) in FILES.items():
        colour = 1 if len(mode) == 1 else (1, 2, 3, 4)[: len(mode)]
        image, out = Image.new(mode, (width, height), colour), io.BytesIO()
        image.save(out, name.rpartition(".")[2].upper(), **options)
        with tempfile.NamedTemporaryFile() as file:
            file.write(out.getvalue())
            file.flush()
            ((error, _, peak),) = in_child([(name, file.name)], "read", READ).values()
        shown = f"{peak / width / height:5.1f} bytes a pixel, {peak / 1e9:.2f} GB"
        print(f"{name:24} {len(out.getvalue()):10,} bytes  {error or shown}", flush=True)


def encode(model: str, megapixels: list[float]) -> None:
    codec = load_codec(model)
    codec.encode([squares(0.2)])  # warms up
    for size in megapixels:
        picture = squares(size)
        stream = measured(f"{model} encode", picture, codec.encode, picture)
        measured(f"{model} decode", picture, codec.decode, stream)


def squares(megapixels: float) -> np.ndarray:
    side = int((megapixels * 1e6) ** 0.5)
    few = np.random.default_rng(0).integers(0, 255, (side // 64 + 1, side // 64 + 1, 3), np.uint8)
    return np.kron(few, np.ones((64, 64, 1), np.uint8))[:side, :side]


def measured(
    what: str, picture: np.ndarray, work: Callable[[list[Any]], list[Any]], given: Any
) -> Any:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, began = status("VmRSS"), time.monotonic()
    (result,) = work([given])
    peak, pixels = status("VmHWM") - before, picture[..., 0].size
    took = f"{peak / pixels:.0f} bytes a pixel, {peak / 1e9:.2f} GB"
    print(f"{what}, {pixels / 1e6:.1f} MP: {took}, {time.monotonic() - began:.0f} s", flush=True)
    return result


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
