#!/usr/bin/env python
"""Decode a compressed dataset at a chosen number of layers, with the dataset's own model.

Example:
    python jobs/decode_dataset.py --input archive --output previews --layers 2

Writes one tar for each data file, with the keys and side fields (json, cls, txt, ...) of the
original shard, or plain files. Only the columns of the layers asked for are read. Running the same
command again does only what is missing. Exit code 0: every picture came back; 1: some did not, and
the summary names them; 2: nothing was done, the message says why; 130: it was told to stop.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.command import (
    add_running_options,
    given_options,
    output_url,
    positive,
    run_job,
    running_options,
    stop_reason,
)
from pipeline.decode import DecodeOptions, decode

CODEC_OPTIONS = ("realism", "decoder", "steps", "noise_scale", "seed", "tile_pixels")


def noise_scale(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must not be negative, but is {text}")
    return number


def parse(arguments: list[str] | None = None) -> DecodeOptions:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, metavar="DATASET", help="the dataset's URL")
    parser.add_argument("--output", required=True, metavar="URL", help="the folder to write to")
    parser.add_argument(
        "--layers", type=positive, metavar="K", help="decode the first K layers (default: all)"
    )
    parser.add_argument(
        "--format",
        choices=["webdataset", "files"],
        default="webdataset",
        help="one tar for each data file, or a folder of files (default: %(default)s)",
    )
    parser.add_argument(
        "--image-format",
        choices=["png", "webp", "jpg"],
        default="png",
        help="of the decoded pictures; png and webp are lossless (default: %(default)s)",
    )
    parser.add_argument(
        "--quality", type=positive, default=95, help="of jpg, 1 to 100 (default: %(default)s)"
    )
    uqdm = parser.add_argument_group("datasets of uqdm models")
    uqdm.add_argument(
        "--realism",
        choices=["denoise", "flow"],
        help="denoise: closest to the original; flow: as sharp as the model can imagine it "
        "(default: denoise)",
    )
    cdc = parser.add_argument_group("datasets of cdc models")
    cdc.add_argument(
        "--decoder",
        choices=["fast", "diffusion"],
        help="fast: in one step; diffusion: in many (default: the model's own choice)",
    )
    cdc.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="of the diffusion: more are slower (default: the model's own choice)",
    )
    cdc.add_argument(
        "--noise-scale",
        type=noise_scale,
        metavar="G",
        help="of the noise that the diffusion starts from: 0 is closest to the original, more "
        "adds detail (default: 0)",
    )
    cdc.add_argument(
        "--seed",
        type=int,
        metavar="S",
        help="of that noise (default: 0); a picture comes out the same whatever is decoded "
        "beside it",
    )
    cdc.add_argument(
        "--tile-pixels",
        type=positive,
        metavar="N",
        help="how large an area the model is given at once, at least 1048576; larger pictures are "
        "cut into tiles, which bounds the memory (default: 4194304)",
    )
    add_running_options(parser)
    given = parser.parse_args(arguments)
    if given.quality > 100:
        parser.error(f"--quality must be 1 to 100, not {given.quality}")
    return DecodeOptions(
        dataset=given.input,
        output=output_url(parser, given.output),
        layers=given.layers,
        format=given.format,
        image_format=given.image_format,
        codec_options=given_options(given, CODEC_OPTIONS),
        quality=given.quality,
        **running_options(given),
    )


if __name__ == "__main__":
    options = parse()
    sys.exit(run_job(lambda: decode(options, stop_reason)))
