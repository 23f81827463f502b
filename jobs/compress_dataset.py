#!/usr/bin/env python
"""Compress folders of pictures, WebDataset tars or Parquet into an archive of layered streams.

Examples:
    strata compress --input photos/ --output archive
    strata compress --input 's3://in/photos-{000..127}.tar' --output s3://out/archive
    ray job submit --working-dir . -- python jobs/compress_dataset.py --input ... --output ...

Inputs and outputs are paths or any fsspec URL (s3://bucket/folder, ...). Running the same command
again does only what is missing. Exit code 0: every sample came through; 1: a sample or a shard was
bad, and the summary names it; 2: nothing was done, and the message says why; 130: a signal stopped
the job.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from codec.models.zoo import DEFAULT_MODELS
from pipeline import CompressOptions, compress_dataset, estimate_compression
from pipeline.running.arguments import (
    add_input_format,
    add_max_bad_fraction,
    add_running_options,
    given_options,
    new_parser,
    options_of,
    output_url,
    positive,
    running_options,
    sample_bytes,
    zero_or_more,
)
from pipeline.running.command_line import stop_reason
from pipeline.running.json_report import add_json, run_job_as_json
from pipeline.sources.samples import MAX_SAMPLE_BYTES


def parse(arguments: list[str] | None = None) -> CompressOptions:
    return _parse(arguments)[0]


def _parse(arguments: list[str] | None) -> tuple[CompressOptions, str | None, bool]:
    """The job's options, the argument of --json, and whether it is a dry run."""
    parser = new_parser(__doc__, usage="%(prog)s --input URL ... --output URL [options]")
    parser.add_argument(
        "--input",
        dest="inputs",
        nargs="+",
        action="extend",
        required=True,
        metavar="URL",
        help="folders of pictures, WebDataset tars (.tar, .tar.gz, .tgz) or Parquet files with "
        "pictures, as paths, globs ('a-*.tar'), brace ranges ('a-{00..31}.tar'), folders that are "
        "searched, and fsspec URLs (s3://bucket/photos, hf://datasets/org/name)",
    )
    parser.add_argument("--output", required=True, metavar="URL", help="the archive to write")
    parser.add_argument(
        "--lossless",
        action="store_true",
        help="store all layers, so that every pixel comes back exactly; JPEG files, and other "
        "files that are smaller than their exact streams, are kept as files",
    )
    parser.add_argument(
        "--target-quality",
        metavar="Q",
        help="store for each picture the fewest layers that reach a SSIMULACRA2 (80) or a PSNR "
        "(38dB); every stream is decoded to measure it, which takes time. With --store-layers or "
        "--lossless the number of layers is fixed. Pictures that do not reach Q keep their file",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="write nothing: list the shards, encode a sample of the pictures here, and estimate "
        "size, quality and time, also with other options",
    )
    inputs = parser.add_argument_group("which inputs")
    add_input_format(inputs)
    inputs.add_argument(
        "--image-column",
        metavar="NAME",
        help="Parquet files: the column of pictures (default: found by its type and name)",
    )
    inputs.add_argument(
        "--key-column",
        metavar="NAME",
        help="Parquet files: the column of keys (default: a column called key, or the pictures' "
        "paths if these are all different, or else file and row)",
    )
    inputs.add_argument(
        "--min-side",
        type=int,
        default=0,
        metavar="PIXELS",
        help="leave out pictures with a smaller side; they are recorded as filtered",
    )
    inputs.add_argument(
        "--max-pixels",
        type=positive,
        metavar="N",
        help="larger pictures are bad (default: 134217728)",
    )
    inputs.add_argument(
        "--max-sample-bytes",
        type=sample_bytes,
        default=MAX_SAMPLE_BYTES,
        metavar="N",
        help="a sample whose files have more bytes together is bad; a worker needs several times "
        "as much memory (default: %(default)s)",
    )
    stored = parser.add_argument_group("what is stored")
    stored.add_argument(
        "--store-layers",
        type=_store_layers,
        metavar="K|fit",
        help="store the first K layers of every picture (default: the model's archive layers, with "
        "which people see no difference); fit: the most layers that are together not larger than "
        "the picture's file",
    )
    stored.add_argument(
        "--keep-original",
        choices=["never", "bad", "larger", "always"],
        default="larger",
        help="keep the picture's own file in the archive, and only two layers for previews. larger "
        "(default): if the stream would not be smaller, or does not reach --target-quality; such "
        "pictures come back exactly. always: of all pictures, so every file comes back byte for "
        "byte (--store-layers and --lossless store more layers). bad: only of bad samples, which "
        "larger and always keep as well. JPEG files are packed losslessly if lepton_jpeg_python is "
        "installed",
    )
    stored.add_argument(
        "--retry",
        choices=["bad"],
        help="try again the samples that were bad in earlier runs; the others stay as they are",
    )
    codec = parser.add_argument_group("codec and model")
    codec.add_argument(
        "--codec",
        choices=sorted(DEFAULT_MODELS),
        help="the codec family (default: that of --model, or else uqdm)",
    )
    codec.add_argument(
        "--model",
        metavar="NAME",
        help="a shipped model's name, or a model's folder or file (default: the codec's default)",
    )
    codec.add_argument(
        "--quality",
        type=int,
        metavar="N",
        help="one of the model's rates, from 0 (fewest bits), for models with several rates "
        "(default: the model's choice)",
    )
    codec.add_argument(
        "--tile-pixels",
        type=positive,
        metavar="N",
        help="cdc: larger pictures are cut into tiles of so many pixels, at least 1048576, which "
        "limits memory (default: 4194304)",
    )
    running = add_running_options(parser)
    running.add_argument(
        "--save-seconds",
        type=zero_or_more,
        metavar="S",
        help="how often the finished rows of a running shard are saved, which limits what a lost "
        "worker loses (default: 120)",
    )
    add_json(running)
    add_max_bad_fraction(running, "shards")
    given = parser.parse_args(arguments)
    options = options_of(
        CompressOptions,
        given,
        output=output_url(parser, given.output),
        model=given.model or DEFAULT_MODELS[given.codec or "uqdm"],
        codec_options=given_options(given, ["quality", "tile_pixels"]),
        **running_options(given),
    )
    return options, given.json, given.dry_run


def _store_layers(text: str) -> int | str:
    if text == "fit":
        return text
    try:
        return positive(text)
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"must be a positive number or fit: {text}") from None


def main(arguments: list[str] | None = None) -> int:
    options, target, dry_run = _parse(arguments)
    job = estimate_compression if dry_run else compress_dataset
    return run_job_as_json(lambda: job(options, stop_reason), target)


if __name__ == "__main__":
    sys.exit(main())
