"""Options that a job refuses before it does anything."""

from collections.abc import Mapping
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
