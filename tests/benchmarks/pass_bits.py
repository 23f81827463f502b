#!/usr/bin/env python
"""What each pass of each layer of a nested UQDM model costs, and how many digits it has.

    python tests/benchmarks/pass_bits.py --model uqdm --data kodak.tar --first 12 --layers 3

Bits are ideal code lengths of the tables that the model chooses, without headers and checksums:
what shows where a model's bits are, and how much less they are where more is known already.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from codec import load_codec
from codec.stream.entropy import PRECISION
from codec.uqdm.nested.scheme import NestedScheme
from tests.benchmarks import pictures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="uqdm")
    parser.add_argument("--data", type=Path, required=True, metavar="TAR")
    parser.add_argument("--first", type=int, default=4, help="how many pictures (default: 4)")
    parser.add_argument("--layers", type=int, default=2, help="of the first layers (default: 2)")
    parser.add_argument("--out", type=Path, metavar="JSON")
    options = parser.parse_args()
    scheme = load_codec(options.model).scheme
    if not isinstance(scheme, NestedScheme):
        parser.error(f"--model {options.model}: not a nested model")
    layers = min(options.layers, scheme.num_layers)
    passes = [(layer, number) for layer in range(layers) for number in range(scheme.passes(layer))]
    found, pixels = np.zeros((len(passes), 2)), 0
    for picture in pictures.from_tar(options.data, options.first):
        pixels += picture.shape[0] * picture.shape[1]
        (stream,) = scheme.encode([picture], [0], layers)
        for row, part in zip(found, (part for of in stream for part in of.parts()), strict=True):
            symbols, index, tables = part
            entry, _ = tables.entries(symbols, index)
            share = tables.counts[tables.start[index] + entry] / 2.0**PRECISION
            row += -np.log2(share).sum(), len(symbols)
    print("| layer | pass | bands | colours | bits per pixel | bits per digit |")
    print("|---" * 6 + "|")
    out = []
    for (layer, number), (bits, digits) in zip(passes, found, strict=True):
        kind, colours = "pixels", ""
        if layer < scheme.config.levels:
            kind = scheme.config.passes[layer][number][0]
            colours = " ".join(map(str, scheme.config.pass_lattices(layer, number)))
        row = [layer + 1, number + 1, kind, colours, f"{bits / pixels:.5f}", f"{bits / digits:.3f}"]
        print("| " + " | ".join(map(str, row)) + " |")
        out.append(
            dict(zip(("layer", "pass", "bands", "colours", "bpp", "bits"), row, strict=True))
        )
    if options.out:
        options.out.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
