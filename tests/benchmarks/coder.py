#!/usr/bin/env python
"""Speed of entropy coding alone, in million symbols a second each way, on a picture's own symbols.

python tests/benchmarks/coder.py --model uqdm --data kodak.tar
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from codec import load_codec
from codec.models import zoo
from codec.stream import entropy
from codec.uqdm.codec import UQDMCodec
from tests.benchmarks.pictures import from_tar


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=zoo.DEFAULT_MODELS["uqdm"])
    parser.add_argument("--data", type=Path, required=True, help="a tar of pictures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    codec = load_codec(options.model)
    assert isinstance(codec, UQDMCodec)
    (picture,) = from_tar(options.data, 1)
    print("| layer | symbols | bytes | encode Msym/s | decode Msym/s |\n|---|---|---|---|---|")
    total = [0, 0.0, 0.0]
    for number, symbols in enumerate(codec.scheme.encode([picture], [0], codec.num_layers)[0]):
        parts = symbols.parts()
        count = sum(len(part[0]) for part in parts)
        begin = time.perf_counter()
        data = entropy.encode(parts)
        encoded = time.perf_counter()
        decoder = entropy.Decoder(data)
        for _, index, tables in parts:
            decoder.decode(index, tables)
        assert decoder.ends_with(0)
        seconds = encoded - begin, time.perf_counter() - encoded
        total = [total[0] + count, total[1] + seconds[0], total[2] + seconds[1]]
        rates = " | ".join(f"{count / s / 1e6:.1f}" for s in seconds)
        print(f"| {number} | {count:,} | {len(data):,} | {rates} |")
    print(
        f"| all | {total[0]:,} | | " + " | ".join(f"{total[0] / s / 1e6:.1f} |" for s in total[1:])
    )


if __name__ == "__main__":
    main()
