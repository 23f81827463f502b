#!/usr/bin/env python
"""Delete samples from an archive by their keys, for good (privacy requests).

Examples:
    strata delete archive --keys cats/0001 cats/0002 --dry-run
    strata delete archive --keys-file gone.txt
    cat gone.txt | strata delete s3://bucket/archive --keys-file -

The data files that have these keys are written again without the samples, with everything that was
with them. Then a new manifest is written, and all that still has them is removed: the old files,
older manifests, saved rows, maps of keys. Readers that have the archive open must open it again.
No later job brings them back: the archive keeps a hash of each key. Other copies of the archive,
versions that a bucket keeps, and the shards themselves are not touched.
The same command again, after whatever ended it, goes on. No Ray is needed.
Exit code 0: none of these samples is there any more; 1: some of the keys are no keys of the
archive, the summary names them, the others are gone; 2: it could not be done, the message says why;
130: a signal stopped it.
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
        "--dry-run", action="store_true", help="only say what would go; nothing is changed"
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
