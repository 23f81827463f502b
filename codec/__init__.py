"""Images to layered bitstreams and back. Knows no Ray, no S3 and no Parquet.

codec = load_codec("uqdm-small")
stream = codec.encode([picture])[0]           # (H, W, 3) uint8 in, any size
preview = codec.decode([stream], layers=2)    # the first two layers
data = stream.truncate(2).to_bytes()          # what those two layers cost
"""

from .base import Codec, EncodedImage
from .errors import (
    CorruptStreamError,
    InvalidModelError,
    StrataError,
    UnknownModelError,
    UnsupportedImageError,
)
from .zoo import list_models, load_codec

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
