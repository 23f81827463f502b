"""Images to layered bitstreams and back. Knows no Ray, no S3 and no Parquet.

codec = load_codec("uqdm-small")
stream = codec.encode([picture])[0]           # (H, W, 3) uint8 in, any size
preview = codec.decode([stream], layers=2)    # the first two layers
data = stream.truncate(2).to_bytes()          # what those two layers cost
"""

import os

# Read when torch is first imported: threads that wait by spinning make a machine with other work
# on it fifty times slower. Some microseconds of it are harmless there, and on an idle machine a
# second thread is of little use without: see docs/experiments.md.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from pathlib import Path

from .base import Codec, EncodedImage
from .errors import (
    CorruptStreamError,
    InvalidModelError,
    StrataError,
    UnknownModelError,
    UnsupportedImageError,
)


# The zoo is imported at its first use: ``python -m codec.models.zoo`` must not find it loaded.
def load_codec(name_or_path: str | Path, device: str = "cpu") -> Codec:
    """Load a model by shipped name, directory or file; see ``codec.models.zoo.load_codec``."""
    from .models import zoo

    return zoo.load_codec(name_or_path, device)


def list_models() -> list[str]:
    """Names of the shipped models."""
    from .models import zoo

    return zoo.list_models()


__all__ = [
    "Codec",
    "CorruptStreamError",
    "EncodedImage",
    "InvalidModelError",
    "StrataError",
    "UnknownModelError",
    "UnsupportedImageError",
    "list_models",
    "load_codec",
]
