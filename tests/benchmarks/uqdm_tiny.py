"""Speed of the authors' small model in our codec, against their own code on two such cores.

    python tests/benchmarks/uqdm_tiny.py [--pictures 16] [--threads 2]

Imports ``reference/uqdm-tiny`` of the shared folder (STRATA_SHARED, or ``shared`` beside the
checkout), encodes and decodes 64x64 pictures of its development set, and prints seconds a picture,
coding speed, rate and PSNR. Run it on a machine that does nothing else.
"""

import argparse
import io
import os
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from codec.models import zoo  # noqa: E402
from codec.stream import entropy  # noqa: E402
from codec.uqdm.paper import authors  # noqa: E402

AUTHORS_SECONDS = {"encode": 70.0, "decode": 89.0}  # per 64x64 picture, two cores


def pictures(shared: Path, count: int) -> list[np.ndarray]:
    with tarfile.open(shared / "data" / "dev" / "px64-000000.tar") as tar:
        members = [m for m in tar if m.name.endswith(".webp")][:count]
        files = [io.BytesIO(tar.extractfile(m).read()) for m in members]  # type: ignore[union-attr]
    return [np.asarray(Image.open(f).convert("RGB")) for f in files]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    shared = Path(os.environ.get("STRATA_SHARED", ROOT.parent / "shared"))
    if not shared.is_dir():
        parser.error("no folder of shared data beside the checkout (or in STRATA_SHARED)")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / zoo.MODEL_FILE
        zoo.write_model(path, *authors.load(shared / "reference" / "uqdm-tiny"))
        codec = zoo.load_codec(path)
    images = pictures(shared, options.pictures)
    codec.decode(codec.encode(images[:1]))  # first calls compile and allocate

    begin = time.perf_counter()
    streams = codec.encode(images)
    middle = time.perf_counter()
    decoded = codec.decode(streams)
    end = time.perf_counter()
    assert all((a == b).all() for a, b in zip(images, decoded, strict=True))
    for verb, seconds in (("encode", middle - begin), ("decode", end - middle)):
        each = seconds / len(images)
        gain = AUTHORS_SECONDS[verb] / each
        print(f"{verb}: {each:.3f} s a picture, {gain:.0f} times faster than the authors' code")

    ids = [s.info.stream_id for s in streams]
    symbols = codec.scheme.encode(images, ids, codec.num_layers)  # type: ignore[attr-defined]
    parts = [layer.parts() for layers in symbols for layer in layers]
    count = sum(len(part[0]) for layer in parts for part in layer)
    begin = time.perf_counter()
    coded = [entropy.encode(layer) for layer in parts]
    middle = time.perf_counter()
    for data, layer in zip(coded, parts, strict=True):
        decoder = entropy.Decoder(data)
        for _, index, tables in layer:
            decoder.decode(index, tables)
    end = time.perf_counter()
    speeds = count / np.array([middle - begin, end - middle]) / 1e6
    print(f"coding alone: {speeds[0]:.1f} Msymbols/s encoding, {speeds[1]:.1f} decoding")

    pixels = sum(i.shape[0] * i.shape[1] for i in images)
    print("layers  bpp (real bytes)  PSNR dB")
    for layers in range(1, codec.num_layers + 1):
        cut = [s.truncate(layers) for s in streams]
        errors = [
            (a.astype(float) - b) ** 2 for a, b in zip(images, codec.decode(cut), strict=True)
        ]
        psnr = 10 * np.log10(255**2 / np.mean(errors)) if np.any(errors) else np.inf
        print(f"{layers:6}  {8 * sum(s.nbytes for s in cut) / pixels:16.3f}  {psnr:7.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
