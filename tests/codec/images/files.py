"""Picture files made in memory, some written by hand because Pillow does not write their kind."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type


def picture(height: int = 16, width: int = 24, seed: int = 0) -> np.ndarray:
    """A smooth picture with some noise, ``(H, W, 3) uint8``."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).integers(0, 20, (height, width, 3))
    return (np.stack([9 * x, 13 * y, 5 * (x + y)], -1) % 230 + noise).astype(np.uint8)


def file(image: Image.Image | np.ndarray, format: str, **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def png(
    colour: int, depth: int, rows: bytes, width=2, height=1, extra: bytes = b"", interlaced=0
) -> bytes:
    """A PNG by hand; ``extra`` are chunks between its header and its ``rows``."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + zlib.crc32(kind + data).to_bytes(4)
