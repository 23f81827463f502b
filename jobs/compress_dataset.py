#!/usr/bin/env python
"""Compress folders of pictures, WebDataset tars or Parquet into an archive of layered streams.

Examples:
    strata compress --input photos/ --output archive
    strata compress --input 's3://in/photos-{000..127}.tar' --output s3://out/archive
    ray job submit --working-dir . -- python jobs/compress_dataset.py --input ... --output ...

Inputs and outputs are paths or any fsspec URL (s3://bucket/folder, ...). Running the same command
again does only what is missing. Exit code 0: every sample is accounted for and none was lost;
1: a sample or a shard was bad, and the summary names it; 2: nothing was done, the message says why.
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
        help="folders of pictures, WebDataset tars (.tar, .tar.gz, .tgz), Parquet files with "
        "pictures: paths, globs ('a-*.tar'), brace ranges ('a-{00..31}.tar'), folders, which are "
        "searched, and fsspec URLs (s3://bucket/photos, hf://datasets/org/name)",
    )
    parser.add_argument("--output", required=True, metavar="URL", help="the archive to write")
    parser.add_argument(
        "--lossless",
        action="store_true",
        help="keep all layers, so pictures come back bit-exact; JPEG files, and other files that "
        "are smaller than their exact streams, are kept themselves",
    )
    parser.add_argument(
        "--target-quality",
        metavar="Q",
        help="keep for each picture the fewest layers that reach a SSIMULACRA2 (80) or a PSNR "
        "(38dB); every stream is decoded to find out, which takes time. With --store-layers or "
        "--lossless the number of layers is fixed. Pictures that stay below it keep their file",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="write nothing: list the shards, encode a sample of the pictures here, and tell what "
        "the job would give and take, and what other options would",
    )
    inputs = parser.add_argument_group("which inputs")
    add_input_format(inputs)
    inputs.add_argument(
        "--image-column",
        metavar="NAME",
        help="of Parquet files: the column of pictures (default: found by its type and name)",
    )
    inputs.add_argument(
        "--key-column",
        metavar="NAME",
        help="of Parquet files: the column of keys (default: a column called key, or the pictures' "
        "own names where these differ, or else file and row)",
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
        help="refuse larger pictures as bad (default: what the image reader allows)",
    )
    inputs.add_argument(
        "--max-sample-bytes",
        type=sample_bytes,
        default=MAX_SAMPLE_BYTES,
        metavar="N",
        help="a sample whose files have more bytes together is recorded as bad; a worker needs "
        "several times as much memory (default: %(default)s)",
    )
    stored = parser.add_argument_group("what is stored")
    stored.add_argument(
        "--store-layers",
        type=_store_layers,
        metavar="K|fit",
        help="keep exactly the first K layers of every picture (default: all that are worth "
        "archiving: people see no difference); fit keeps for each picture the most layers that are "
        "together not larger than its original file",
    )
    stored.add_argument(
        "--keep-original",
        choices=["never", "bad", "larger", "always"],
        default="larger",
        help="keep the picture's own file in the archive, and of its stream two layers for "
        "previews. larger (default): where the stream would not be smaller, or stays below "
        "--target-quality; such pictures come back exactly. always: of all pictures, a byte-exact "
        "archive with previews (--store-layers and --lossless give more layers beside them). bad: "
        "only where a picture could not be encoded, which larger and always keep as well. JPEG "
        "files are packed without loss if lepton_jpeg_python is installed",
    )
    stored.add_argument(
        "--retry",
        choices=["bad"],
        help="try the samples again that were bad in earlier runs; the good ones stay as they are",
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
        help="a shipped model's name or a model file (default: the codec's shipped one)",
    )
    codec.add_argument(
        "--quality",
        type=int,
        metavar="N",
        help="which of the model's rates, from 0 (fewest bits), for models that have several "
        "(default: the model's own choice)",
    )
    codec.add_argument(
        "--tile-pixels",
        type=positive,
        metavar="N",
        help="how large an area cdc models are given at once, at least 1048576; larger pictures "
        "are cut into tiles, which bounds the memory (default: 4194304)",
    )
    running = add_running_options(parser)
    running.add_argument(
        "--save-seconds",
        type=zero_or_more,
        metavar="S",
        help="how often the finished rows of a shard under way are saved: a lost worker loses no "
        "more than that and what is under way (default: 120)",
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
