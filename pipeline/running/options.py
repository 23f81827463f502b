"""Options that a job refuses before it does anything."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codec import Codec
from codec.base import Purpose
from codec.errors import StrataError


class OptionError(StrataError):
    """Options contradict each other, the model or the dataset."""


def check_codec_options(
    codec: Codec, purpose: Purpose, options: Mapping[str, Any], where: str
) -> None:
    """Raise OptionError if the codec does not have these options; ``where`` names its source."""
    try:
        codec.check_options(purpose, options)
    except (TypeError, ValueError) as error:
        flags = ", ".join("--" + name.replace("_", "-") for name in options)
        raise OptionError(f"{flags}: {where}: {error}") from error


def check_output_file(source: Path, output: Path, overwrite: bool) -> None:
    """Raise OptionError for a file that a command must not or cannot write."""
    if not output.parent.is_dir():
        raise OptionError(f"{output}: the folder {output.parent} does not exist: make it first")
    if output.is_dir():
        raise OptionError(f"{output}: is a folder: give the name of a file in it")
    if output.exists() and source.exists() and output.samefile(source):
        raise OptionError(f"{output}: is the input itself, which is never overwritten")
    if output.exists() and not overwrite:
        raise OptionError(f"{output}: exists already: give another output, or --overwrite")
