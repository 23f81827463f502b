"""Makes the fuzzer's sound seeds: small streams of the shipped models, whole and cut.

    python tests/fuzz/make_seeds.py uqdm    # whenever another model is shipped by that name

Seeds with ``found`` in their names are what a fuzzer has found: those are kept as they are.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from codec import EncodedImage, load_codec
from tests.codec.small_models import noise_pictures

SEEDS = Path(__file__).parent / "seeds"


def write_seeds(folder: Path, name: str) -> None:
    """Five pictures of up to 17 pixels, one of noise, one of one colour and one of one pixel."""
    smooth = noise_pictures(1, 24)[0].permute(1, 2, 0).numpy()
    noise = np.random.default_rng(0).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    flat = np.full((16, 16, 3), 128, np.uint8)
    pictures = [smooth[:8, :8], smooth[:17, :12], noise, flat, smooth[:1, :1]]
    family = name.split("-")[0]
    streams = load_codec(name).encode([np.ascontiguousarray(picture) for picture in pictures])
    for number, stream in enumerate(streams):
        (folder / f"{family}-{number}.strata").write_bytes(stream.to_bytes())
    cut = EncodedImage(streams[1].header, streams[1].layers[:2])
    (folder / f"{family}-1-cut.strata").write_bytes(cut.to_bytes())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", nargs="+", help="such as uqdm")
    for name in parser.parse_args(arguments).model:
        write_seeds(SEEDS, name)


if __name__ == "__main__":
    main()
