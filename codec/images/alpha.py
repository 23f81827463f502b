"""Packs alpha channels for rows: losslessly, in few bytes, with a checksum."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from ..errors import BrokenImageError, CorruptStreamError, UnsupportedImageError
from .files import MAX_PIXELS, MAX_WEBP_SIDE, read_image


def pack_alpha(alpha: np.ndarray) -> bytes:
    """Pack alpha ``(H, W) uint8`` losslessly; a constant plane of any size takes 14 bytes.

    Layout: ``uint32 crc32`` of the rest, then ``C``, value, ``uint32 width, height`` for a constant
    plane, or ``I`` and a lossless WebP or PNG, whichever is smaller.
    """
    if alpha.dtype != np.uint8 or alpha.ndim != 2 or 0 in alpha.shape:
        raise ValueError(f"expected (H, W) uint8 alpha, got {alpha.shape} {alpha.dtype}")
    height, width = alpha.shape
    if alpha.min() == alpha.max():
        body = struct.pack("<cBII", b"C", int(alpha[0, 0]), width, height)
    else:
        files = [io.BytesIO()]
        Image.fromarray(alpha).save(files[0], "PNG", optimize=True)
        if max(alpha.shape) <= MAX_WEBP_SIDE:
            files.append(io.BytesIO())
            Image.fromarray(alpha).save(files[1], "WEBP", lossless=True, quality=80)
        body = b"I" + min((file.getvalue() for file in files), key=len)
    return struct.pack("<I", zlib.crc32(body)) + body


def unpack_alpha(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Unpack alpha to ``(H, W) uint8``. Raises CorruptStreamError if it is damaged."""
    body = data[4:]
    if len(data) < 5 or struct.unpack_from("<I", data)[0] != zlib.crc32(body):
        raise CorruptStreamError("the alpha channel is damaged: its checksum does not match")
    try:
        if body[:1] == b"C":
            _, value, width, height = struct.unpack("<cBII", body)
            if not 0 < width * height <= max_pixels:
                raise CorruptStreamError(f"the alpha channel claims {width}x{height} pixels")
            return np.full((height, width), value, np.uint8)
        return read_image(body[1:], max_pixels=max_pixels).rgb[..., 0].copy()
    except (struct.error, BrokenImageError, UnsupportedImageError) as error:
        raise CorruptStreamError(f"the alpha channel cannot be read: {error}") from error


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """``(H, W, 3) uint8`` with alpha ``(H, W) uint8``, put on white: ``(H, W, 3) uint8``."""
    share = alpha[..., None].astype(np.uint16)
    return ((rgb * share + 255 * (255 - share) + 127) // 255).astype(np.uint8)
