#!/usr/bin/env python
"""The command ``strata COMMAND ...``, which pip installs.

Each command is one of the scripts in this folder, with the same options. ``ray job submit`` runs
the scripts themselves.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

COMMANDS = {
    "compress": ("jobs.compress_dataset", "compress folders, tars or Parquet into an archive"),
    "decode": ("jobs.decode_dataset", "decode an archive, or a part of it, at any quality"),
    "verify": ("jobs.verify_dataset", "check an archive, and repair it"),
    "info": ("jobs.info_dataset", "describe an archive: pictures, bytes by layer, model, health"),
    "merge": ("jobs.merge_datasets", "merge several archives into one, without decoding"),
    "delete": ("jobs.delete_samples", "delete samples from an archive, for good"),
    "serve": ("jobs.serve_previews", "serve a gallery of an archive, and previews over HTTP"),
    "index": ("jobs.index_keys", "write a map of keys, which speeds up look-ups"),
    "evaluate": ("jobs.evaluate", "compare models with other codecs, by quality and bits"),
    "train": ("jobs.train", "train a model on your own pictures"),
    "encode": ("jobs.encode_picture", "encode one picture as one file of layers"),
    "view": ("jobs.view_picture", "decode such a file into a picture"),
    "models": ("codec.__main__", "list, show, import and calibrate models"),
}
USAGE = """usage: strata COMMAND ...

{commands}

strata COMMAND --help explains a command's options; strata --version shows the release.
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
    sys.argv[0] = f"strata {name}"  # the name in argparse's messages
    code: int = importlib.import_module(module).main(rest)
    return code


def _release() -> str:
    try:
        return version("strata-images")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
