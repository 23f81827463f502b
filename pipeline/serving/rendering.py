"""Writes decoded pictures as files for display, and makes their ETags."""

import hashlib
import io
from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
import PIL
import torch
from PIL import Image

from codec.images import resizing
from codec.images.alpha import on_white, unpack_alpha
from codec.images.files import MAX_JPEG_SIDE, MAX_WEBP_SIDE, write_image

from .answers import CannotShow

Format = Literal["webp", "jpeg", "png"]
FORMATS: tuple[Format, ...] = get_args(Format)
MEDIA_TYPES = {name: f"image/{name}" for name in FORMATS}
# Part of every ETag. Raise it when the same stream gives another file.
RELEASE = 1
QUALITY = 88  # of webp and jpeg: lower differs visibly from a png, higher only makes larger files
_WEBP_EFFORT = 1  # of 0 to 6: twice as fast as 4, with files 6 % larger


def render(rgb: np.ndarray, alpha: np.ndarray | None, format: Format) -> bytes:
    """``(H, W, 3) uint8`` with alpha ``(H, W) uint8`` or None as a file.

    ``png`` is lossless, ``webp`` and ``jpeg`` are not. ``jpeg`` has no transparency: the picture is
    put on white. Raises CannotShow if the picture is too large for the format.
    """
    limit = {"webp": MAX_WEBP_SIDE, "jpeg": MAX_JPEG_SIDE}.get(format)
    height, width = rgb.shape[:2]
    if limit and max(height, width) > limit:
        raise CannotShow(
            f"{format} allows {limit} pixels a side, and this picture has {width}x{height}: ask "
            "for png, or give max_side"
        )
    if format == "png":
        return write_image(rgb, alpha, "png")
    out = io.BytesIO()
    if format == "jpeg":
        shown = rgb if alpha is None else on_white(rgb, alpha)
        Image.fromarray(shown).save(out, "JPEG", quality=QUALITY, subsampling=0)
    else:
        pixels = rgb if alpha is None else np.dstack([rgb, alpha])
        Image.fromarray(pixels).save(out, "WEBP", quality=QUALITY, method=_WEBP_EFFORT)
    return out.getvalue()


def alpha_like(packed: bytes, rgb: np.ndarray, max_pixels: int) -> np.ndarray:
    """A stored alpha channel, shrunk to the size of ``rgb``. Raises CorruptStreamError."""
    return resizing.shrink(unpack_alpha(packed, max_pixels=max_pixels), *rgb.shape[:2])


def etag(parts: Iterable[object]) -> str:
    """A strong ETag, with quotes, of ``parts`` and of the versions of this module and libraries."""
    versions = (RELEASE, PIL.__version__, torch.__version__)
    text = "\0".join(map(repr, (*versions, *parts)))
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
