#!/usr/bin/env python
"""Write a map of all keys to the data files of an archive.

Examples:
    strata index --input archive
    strata index --input s3://bucket/archive --scratch /big/disk

Use it for archives with many shards whose keys are not sorted: there a key could be in any shard,
and looking it up reads the index of each. The map is made from these indexes and is valid for one
manifest. Write it again when the archive has grown; until then readers do not use it.
Exit code 0: the map exists; 2: it could not be written, and the message says why.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import index_keys
from pipeline.running.arguments import add_dataset, add_scratch, add_storage_options, new_parser
from pipeline.running.command_line import exit_code


def main(arguments: list[str] | None = None) -> int:
    parser = new_parser(__doc__)
    add_dataset(parser)
    add_scratch(parser, ", 24 bytes per picture")
    add_storage_options(parser, "--input-options", "the archive's")
    given = parser.parse_args(arguments)
    return exit_code(lambda: print(index_keys(given.dataset, given.input_options, given.scratch)))


if __name__ == "__main__":
    sys.exit(main())
