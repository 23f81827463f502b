#!/usr/bin/env python
"""One command for all jobs: strata COMMAND ...; pip installs it.

A command is one of the scripts in this folder, with the same options. ``ray job submit`` takes the
scripts themselves.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

COMMANDS = {
    "compress": ("jobs.compress_dataset", "folders, tars or Parquet of pictures into an archive"),
    "decode": ("jobs.decode_dataset", "an archive back into pictures, of any quality"),
    "verify": ("jobs.verify_dataset", "check an archive, and repair it"),
    "info": ("jobs.info_dataset", "what an archive is: pictures, bytes by layer, model, health"),
    "merge": ("jobs.merge_datasets", "one archive of several, without decoding"),
    "delete": ("jobs.delete_samples", "samples from an archive, for good"),
    "serve": ("jobs.serve_previews", "a gallery of an archive, and previews by HTTP"),
    "index": ("jobs.index_keys", "find keys of a large archive at once"),
    "evaluate": ("jobs.evaluate", "models beside other codecs, by eyes and by bits"),
    "train": ("jobs.train", "a model on pictures of yours"),
    "encode": ("jobs.encode_picture", "one picture into one file of layers"),
    "view": ("jobs.view_picture", "such a file into a picture, from as many layers as you want"),
    "models": ("codec.__main__", "list, show, import and calibrate models"),
}
USAGE = """usage: strata COMMAND ...

{commands}

strata COMMAND --help tells the options of a command, strata --version which release this is.
Begin with

    strata compress --input photos/ --output archive
    strata serve --input archive
"""


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        lines = [f"  {name:10} {what}" for name, (_, what) in COMMANDS.items()]
        print(USAGE.format(commands="\n".join(lines)), end="")
        return 0
    name, *rest = given
    if name == "--version":
        print(f"strata {_release()}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        print(f"error: strata has no command {name}{meant} (strata --help)", file=sys.stderr)
        return 2
    module, _ = COMMANDS[name]
    sys.argv[0] = f"strata {name}"  # what argparse calls it
    code: int = importlib.import_module(module).main(rest)
    return code


def _release() -> str:
    try:
        return version("strata-images")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
