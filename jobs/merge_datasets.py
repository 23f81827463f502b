#!/usr/bin/env python
"""Merge several archives into one, without decoding: their files are copied.

Examples:
    strata merge monday tuesday --output week
    strata merge s3://bucket/part-{0..3} --output s3://bucket/whole

The archives must have the same model and the same number of layers. If they differ in other
parameters, or if a folder of pictures was compressed into one of them, nothing can be compressed
into the merged archive, but it can be read, checked, merged and have samples deleted. Inside one
object store, the store itself copies the files. The summary names keys that several archives have.
Running the same command again does only what is missing, and adds what the archives have got since.
It needs no Ray.
Exit code 0: everything was copied; 1: some files could not be copied, and the summary names them;
2: these archives cannot be merged, nothing was written, and the message says why; 130: a signal
stopped the job.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import MergeOptions, merge_datasets
from pipeline.running.arguments import (
    add_log,
    add_scratch,
    add_storage_options,
    new_parser,
    options_of,
    output_url,
)
from pipeline.running.command_line import stop_reason
from pipeline.running.json_report import add_json, run_job_as_json


def parse(arguments: list[str] | None = None) -> tuple[MergeOptions, str | None]:
    parser = new_parser(__doc__)
    parser.add_argument("inputs", nargs="+", metavar="ARCHIVE", help="paths or URLs of archives")
    parser.add_argument(
        "--output",
        required=True,
        metavar="URL",
        help="the merged archive: a new one, or one with the same plan",
    )
    add_json(parser)
    add_scratch(parser, " that are copied between stores")
    add_log(parser)
    add_storage_options(parser, "--input-options", "the inputs'")
    add_storage_options(parser, "--output-options", "the output's")
    given = parser.parse_args(arguments)
    return options_of(MergeOptions, given, output=output_url(parser, given.output)), given.json


def main(arguments: list[str] | None = None) -> int:
    options, target = parse(arguments)
    return run_job_as_json(lambda: merge_datasets(options, stop_reason), target)


if __name__ == "__main__":
    sys.exit(main())
