#!/usr/bin/env python
"""Check an archive, and repair what is damaged from the original shards.

Examples:
    strata verify --input archive
    strata verify --input archive --read-data-subset 3/7
    strata verify --input s3://bucket/archive --read-data --repair

The quick check reads the plan, the manifest, the model, and the commit record and footer of each
data file. --read-data reads and decodes everything. --repair encodes the shards of damaged files
again if the shards have not changed, and restores records, indexes, manifests and copies of shipped
models; it removes no data file. Exit code 0: everything is sound or repaired; 1: some damage is
left, or some files could not be checked; 2: nothing could be checked, and the message says why;
130: a signal stopped the job.
"""

import argparse
import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import Subset, VerifyOptions, verify_dataset
from pipeline.running.arguments import (
    add_dataset,
    add_running_options,
    add_storage_options,
    new_parser,
    options_of,
    running_options,
    zero_or_more,
)
from pipeline.running.command_line import stop_reason
from pipeline.running.json_report import add_json, run_job_as_json
from pipeline.stores.urls import place_of


def subset(text: str) -> Subset:
    """``2/5`` or ``10%``."""
    part = re.fullmatch(r"(\d+)/(\d+)", text)
    if part and 1 <= int(part[1]) <= int(part[2]):
        return Subset(int(part[1]), int(part[2]))
    share = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if share and 0 < float(share[1]) <= 100:
        return Subset(share=float(share[1]) / 100)
    raise argparse.ArgumentTypeError(
        f"must be N/T with N from 1 to T, or a percentage from 0 to 100, not {text}"
    )


def source_host(text: str) -> str:
    if not place_of(text).partition("://")[2]:
        raise argparse.ArgumentTypeError(f"must be a URL such as https://host, not {text}")
    return text


def parse(arguments: list[str] | None = None) -> tuple[VerifyOptions, str | None]:
    """The options, and where the report goes as JSON."""
    parser = new_parser(__doc__)
    add_dataset(parser)
    level = parser.add_mutually_exclusive_group()
    level.add_argument("--read-data", action="store_true", help="read every data file in full")
    level.add_argument(
        "--read-data-subset",
        type=subset,
        metavar="N/T|P%",
        help="read part N of T of the data files in full, or a random share of them",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="S",
        help="choose the same random share as the report with this seed",
    )
    parser.add_argument(
        "--no-decode", action="store_true", help="read in full, but do not decode the pictures"
    )
    parser.add_argument("--repair", action="store_true", help="repair the damage that is found")
    add_storage_options(parser, "--source-options", "for --repair: the original shards'")
    parser.add_argument(
        "--source-hosts",
        nargs="+",
        type=source_host,
        default=[],
        metavar="URL",
        help="for --repair: hosts or buckets from which original shards may be read and to which "
        "--source-options may be sent, such as s3://bucket or https://host; files of this machine "
        "and the archive's own host or bucket are always allowed",
    )
    parser.add_argument(
        "--collect-garbage",
        action="store_true",
        help="remove what killed jobs and repairs left behind, if nothing is damaged",
    )
    parser.add_argument(
        "--older-than",
        type=zero_or_more,
        default=24.0,
        metavar="HOURS",
        help="only older files are garbage, because younger ones may belong to a running job "
        "(default: %(default)s)",
    )
    add_json(parser)
    add_running_options(parser, "a data file", output=False)
    given = parser.parse_args(arguments)
    read = Subset() if given.read_data else given.read_data_subset
    if given.no_decode and read is None:
        parser.error("--no-decode: only with --read-data or --read-data-subset")
    if read is not None and read.share is not None:
        seed = random.randrange(1 << 16) if given.seed is None else given.seed
        read = Subset(share=read.share, seed=seed)
    elif given.seed is not None:
        parser.error("--seed: only with --read-data-subset and a percentage")
    options = options_of(
        VerifyOptions,
        given,
        read=read,
        decode=not given.no_decode,
        source_hosts=tuple(given.source_hosts),
        older_than=3600 * given.older_than,
        **running_options(given),
    )
    return options, given.json


def main(arguments: list[str] | None = None) -> int:
    options, target = parse(arguments)
    return run_job_as_json(lambda: verify_dataset(options, stop_reason), target)


if __name__ == "__main__":
    sys.exit(main())
