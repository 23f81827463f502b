"""Images to layered bitstreams and back. Knows no Ray, no S3 and no Parquet.

codec = load_codec("uqdm")
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

from .base import Codec, EncodedImage
from .errors import (
    CorruptStreamError,
    InvalidModelError,
    StrataError,
    UnknownModelError,
    UnsupportedImageError,
)
from .models.zoo import list_models, load_codec

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
