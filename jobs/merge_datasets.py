#!/usr/bin/env python
"""Make one archive of several, without decoding: their files are copied as they are.

Examples:
    strata merge monday tuesday --output week
    strata merge s3://bucket/part-{0..3} --output s3://bucket/whole

The archives must be of one model and have as many layers. They may differ in other parameters; then
the merged one can be read, checked, merged and thinned out, but nothing can be compressed into it.
Inside one object store the bytes never come here. Keys that several archives have are told. The
same command again, after whatever ended it, does only what is missing, and adds what an archive has
got since. No Ray is needed.
Exit code 0: all is there; 1: some files could not be copied, the summary names them; 2: these
archives cannot be merged, the message says why, and nothing was written; 130: a signal stopped it.
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
        help="the merged one: new, or one of the same plan",
    )
    add_json(parser)
    add_scratch(parser, " that come from one store and go to another")
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
