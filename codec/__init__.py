"""Encodes pictures to layered streams and decodes them. Does not need Ray, S3 or Parquet.

codec = load_codec("uqdm")
stream = codec.encode([picture])[0]           # a picture (H, W, 3) uint8 of any size
preview = codec.decode([stream], layers=2)    # from the first two layers
data = stream.truncate(2).to_bytes()          # the bytes of these two layers
"""

import os

# torch reads these when it is imported. Threads that wait by spinning make a busy machine fifty
# times slower. Some microseconds of spinning are harmless, and without them a second thread is of
# little use on an idle machine: see docs/experiments.md.
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
