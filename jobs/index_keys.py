#!/usr/bin/env python
"""Write one map of all keys to the data files of a dataset that have them.

Examples:
    python jobs/index_keys.py --input archive
    python jobs/index_keys.py --input s3://bucket/archive --scratch /big/disk

Worth it for datasets of many shards whose keys are in no order: there a key could be in any of
them, and looking it up costs the index of each. The map is made of these indexes and holds for the
files of one manifest: write it again when the dataset has grown, or readers do without.
Exit code 0: it is there; 2: it could not be written, the message says why.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from codec.errors import StrataError
from pipeline.reader.dataset import open_dataset
from pipeline.reader.key_map import publish_key_map
from pipeline.running.command_line import storage_options


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, metavar="DATASET", help="the dataset's URL")
    parser.add_argument(
        "--scratch",
        metavar="DIR",
        help="local folder for temporary files, 24 bytes for each picture (default: the system's)",
    )
    parser.add_argument(
        "--input-options",
        type=storage_options,
        default={},
        metavar="JSON",
        help="the dataset's fsspec storage options, or @FILE that holds them",
    )
    given = parser.parse_args(arguments)
    try:
        dataset = open_dataset(given.input, given.input_options)
        print(publish_key_map(dataset.store, dataset.files, given.scratch))
    except StrataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
