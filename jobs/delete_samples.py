#!/usr/bin/env python
"""Delete samples from an archive by their keys, for good (privacy requests).

Examples:
    strata delete archive --keys cats/0001 cats/0002 --dry-run
    strata delete archive --keys-file gone.txt
    cat gone.txt | strata delete s3://bucket/archive --keys-file -

The data files with these keys are written again without the samples and all their fields. Then a
new manifest is written, and everything that still has the samples is removed: old data files, older
manifests, saved rows, maps of keys. Readers that have the archive open must open it again. No later
job brings the samples back, because the archive keeps a hash of each key. Other copies of the
archive, object versions in a bucket, and the original shards are not changed.
A job that was interrupted goes on when the same command is run again. It needs no Ray.
Exit code 0: all of these samples are deleted; 1: some keys are not in the archive, the summary
names them, and the others are deleted; 2: nothing could be done, and the message says why; 130: a
signal stopped the job.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from codec.errors import StrataError
from pipeline import DeleteOptions, delete_samples
from pipeline.decode.key_list import chosen_keys
from pipeline.running.arguments import (
    add_archive,
    add_keys,
    add_log,
    add_scratch,
    add_storage_options,
    new_parser,
    options_of,
)
from pipeline.running.command_line import stop_reason
from pipeline.running.json_report import add_json, run_job_as_json


def parse(arguments: list[str] | None = None) -> tuple[DeleteOptions, str | None]:
    """The options, and where the summary goes as JSON."""
    parser = new_parser(__doc__)
    add_archive(parser)
    add_keys(parser.add_mutually_exclusive_group(required=True))
    parser.add_argument(
        "--dry-run", action="store_true", help="only say what would be deleted; change nothing"
    )
    add_json(parser)
    add_scratch(parser, " of the size of a few data files")
    add_log(parser)
    add_storage_options(parser, "--input-options", "the archive's")
    given = parser.parse_args(arguments)
    try:
        keys = chosen_keys(given.keys, given.keys_file, given.input_options)
    except StrataError as error:
        parser.error(str(error))
    return options_of(DeleteOptions, given, keys=keys), given.json


def main(arguments: list[str] | None = None) -> int:
    options, target = parse(arguments)
    return run_job_as_json(lambda: delete_samples(options, stop_reason), target)


if __name__ == "__main__":
    sys.exit(main())
