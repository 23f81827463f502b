#!/usr/bin/env python
"""Decode an archive, or a part of it, at any quality.

Examples:
    strata decode --input archive --output previews --layers 2
    strata decode --input archive --output small --max-side 256 --target-bpp 0.5
    strata decode --input archive --output part --format strata --keys-file keys.txt
    strata decode --input archive --output corpus --format originals

Writes one tar for each data file, with the keys and side fields (json, cls, txt, ...) of the
original shard; or files; or Parquet with an image column. Without decoding it writes the files that
the archive keeps, byte for byte (originals), or an archive with the same streams, truncated
(strata). Only the chosen layers are read. Running the same command again does only what is missing.
Exit code 0: every picture came back; 1: some did not, or keys are unknown, and the summary names
them; 2: nothing was done, and the message says why; 130: a signal stopped the job.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from codec.images.files import DEFAULT_QUALITY
from pipeline import DecodeOptions, decode_dataset
from pipeline.running.arguments import (
    above_zero,
    add_dataset,
    add_decoder,
    add_keys,
    add_max_bad_fraction,
    add_running_options,
    given_options,
    new_parser,
    options_of,
    output_url,
    positive,
    running_options,
    zero_or_more,
)
from pipeline.running.command_line import run_job, stop_reason

DECODING = ("image_format", "image_quality", "max_side", "max_pixels")
CODEC_OPTIONS = ("decoder", "steps", "noise_scale", "seed", "tile_pixels")


_DEFAULTS = ", ".join(f"{name} {quality}" for name, quality in DEFAULT_QUALITY.items())


def _quality(text: str) -> int | str:
    """An argparse type: 1 to 100, or the word lossless."""
    if text == "lossless":
        return text
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 100:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be 1 to 100 or lossless, not {text}")


def parse(arguments: list[str] | None = None) -> DecodeOptions:
    parser = new_parser(__doc__, usage="%(prog)s --input ARCHIVE --output URL [options]")
    add_dataset(parser)
    parser.add_argument("--output", required=True, metavar="URL", help="the folder to write to")
    which = parser.add_argument_group("which pictures (default: all)")
    add_keys(which.add_mutually_exclusive_group())
    which.add_argument(
        "--ignore-missing",
        action="store_true",
        help="keys that the archive does not have do not change the exit code",
    )
    which.add_argument(
        "--filter",
        metavar="EXPR",
        help="the pictures whose metadata fulfil a condition, such as "
        "'width >= 512 and source_format == \"jpeg\"', 'key.startswith(\"a/\")', "
        "'source_format in [\"png\", \"webp\"]', '\"cat\" in key', 'width * height < 1e6'",
    )
    many = parser.add_argument_group("how many layers of each (default: all)")
    quality = many.add_mutually_exclusive_group()
    quality.add_argument("--layers", type=positive, metavar="K", help="the first K layers")
    quality.add_argument(
        "--target-bpp",
        type=above_zero,
        metavar="X",
        help="the most layers that fit into X bits per pixel with the header, but at least one; "
        "a kept original only if it fits as well",
    )
    quality.add_argument(
        "--max-bytes",
        type=positive,
        metavar="N",
        help="the most layers that fit into N bytes with the header, but at least one; a kept "
        "original only if it fits as well",
    )
    quality.add_argument(
        "--min-psnr",
        type=above_zero,
        metavar="DB",
        help="the fewest layers that reach DB dB, or else all, or the original if it is kept; only "
        "for archives that were compressed with --target-quality, which store the PSNR",
    )
    form = parser.add_argument_group("in which form")
    form.add_argument(
        "--format",
        choices=["webdataset", "files", "parquet", "originals", "strata"],
        default="webdataset",
        help="webdataset: a tar for each data file; files: a folder of files for each; parquet: a "
        "Parquet file for each, with an image column as in Hugging Face datasets and side fields "
        "as columns; originals: the kept files of all samples, also of bad ones, in tars with the "
        "names of the inputs; strata: an archive of its own with the same streams, truncated to "
        "the chosen layers and not decoded (default: %(default)s)",
    )
    form.add_argument(
        "--image-format",
        choices=["png", "webp", "avif", "jpg", "jpeg"],
        help="format of the decoded pictures; png is lossless, and jpg puts transparent ones on "
        "white (default: png)",
    )
    form.add_argument(
        "--image-quality",
        type=_quality,
        metavar="Q",
        help=f"quality of webp, avif and jpg, 1 to 100 (default: {_DEFAULTS}), or lossless, for "
        "webp",
    )
    form.add_argument(
        "--max-side",
        type=positive,
        metavar="PIXELS",
        help="scale pictures down to this many pixels per side, which is faster than full size",
    )
    form.add_argument(
        "--max-pixels",
        type=positive,
        metavar="N",
        help="larger pictures (width times height) are not decoded and count as bad, which limits "
        "the memory that an untrusted archive can claim (default: the limit with which it was "
        "compressed, but for streams at least 268435456)",
    )
    form.add_argument(
        "--side-pictures",
        action="store_true",
        help="include the pictures among the side fields, which are stored as files at full size; "
        "without a limit of quality or size they are always included",
    )
    form.add_argument(
        "--keep-original",
        action="store_true",
        help="with --format strata, copy the originals that the archive keeps",
    )
    add_decoder(form)
    cdc = parser.add_argument_group("archives of cdc models")
    cdc.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="steps of the diffusion: more are slower (default: the model's choice)",
    )
    cdc.add_argument(
        "--noise-scale",
        type=zero_or_more,
        metavar="G",
        help="scale of the noise from which the diffusion starts: 0 is closest to the original, "
        "more adds detail (default: 0)",
    )
    cdc.add_argument(
        "--seed",
        type=int,
        metavar="S",
        help="seed of that noise (default: 0); a picture does not depend on other pictures",
    )
    cdc.add_argument(
        "--tile-pixels",
        type=positive,
        metavar="N",
        help="larger pictures are cut into tiles of so many pixels, at least 1048576, which limits "
        "memory (default: 4194304)",
    )
    add_max_bad_fraction(parser, "data files")
    add_running_options(parser, "a data file", shards=False)
    given = parser.parse_args(arguments)
    decoding = given_options(given, DECODING)
    if given.format in ("strata", "originals") and decoding:
        names = ", ".join("--" + name.replace("_", "-") for name in decoding)
        parser.error(f"{names}: --format {given.format} decodes nothing")
    if given.image_format == "jpeg":
        given.image_format = "jpg"
    if given.ignore_missing and given.keys_file is None and not given.keys:
        parser.error("--ignore-missing: needs --keys or --keys-file")
    return options_of(
        DecodeOptions,
        given,
        output=output_url(parser, given.output),
        codec_options=given_options(given, CODEC_OPTIONS),
        **running_options(given),
    )


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    return run_job(lambda: decode_dataset(options, stop_reason))


if __name__ == "__main__":
    sys.exit(main())
