#!/usr/bin/env python
"""Describe an archive: pictures, bytes by layer, rates, quality, model, inputs, health.

Examples:
    strata info archive
    strata info s3://bucket/archive --json -
    strata info s3://bucket/archive --all
    strata info archive --bad

Reads the plan, the manifest, the model's card and up to 256 commit records, and lists a few
folders. It reads no picture. If there are more data files, bytes by layer are estimates. Exit code
0: manifest, records and files agree; 1: they do not, and strata verify says more; 2: there is no
archive, or it cannot be read.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from codec.errors import printable
from pipeline import info_dataset, open_dataset
from pipeline.running.arguments import add_archive, add_storage_options, new_parser
from pipeline.running.command_line import exit_code
from pipeline.running.json_report import add_json, print_result


def main(arguments: list[str] | None = None) -> int:
    parser = new_parser(__doc__)
    add_archive(parser)
    parser.add_argument(
        "--all", action="store_true", help="read all commit records, so that no figure is estimated"
    )
    parser.add_argument(
        "--bad",
        action="store_true",
        help="instead list every bad sample, with its shard and the reason; reads the data files "
        "that have some",
    )
    add_json(parser)
    add_storage_options(parser, "--input-options", "the archive's")
    given = parser.parse_args(arguments)
    if given.bad and (given.json or given.all):
        parser.error("--bad: leave out --all and --json")

    def job() -> int:
        if given.bad:
            for shard, key, status, reason in open_dataset(
                given.dataset, given.input_options
            ).problems():
                if status == "bad":
                    print(printable(f"{shard} : {key!r} : {reason}"))
            return 0
        records = {"records": None} if given.all else {}
        info = info_dataset(given.dataset, given.input_options, **records)
        print_result(info, given.json)
        return info.exit_code

    return exit_code(job)


if __name__ == "__main__":
    sys.exit(main())
