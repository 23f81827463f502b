"""Turns a decoded row into a sample: its fields, with the picture in the chosen format.

If a picture's original replaces its layers, has the chosen format and need not be made smaller, it
is written byte for byte.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from codec.errors import MissingPackageError
from codec.images.alpha import on_white, unpack_alpha
from codec.images.files import write_image
from codec.images.resizing import shrink

from ..dataset.rows import is_side_picture, original_file, original_key
from ..reader.originals import ORIGINAL, read_original
from ..stores.reasons import describe
from .selection import Chosen

# Counts in a commit record: streams, their decoded layers, the bytes of these layers, the bytes of
# originals that were used, the bytes of written pictures, pictures among the side fields that were
# left out, pictures whose first layer alone has more bytes than were asked for, and transparent
# pictures that were put on white.
COUNTS = (
    *("streams", "layers", "layer_bytes", "original_bytes", "decoded_bytes"),
    *("left_out", "above_limit", "on_white"),
)
# The names of the output formats in the column ``source_format``.
SOURCE_FORMATS = {"jpg": "jpeg", "png": "png", "webp": "webp", "avif": "avif"}


class Form(NamedTuple):
    """How pictures are written: format, quality (None: lossless), longest side (pixels).

    Pictures among the side fields are left out unless ``side_pictures``. Originals and
    alpha channels of more than ``max_pixels`` are refused.
    """

    image_format: str
    quality: int | None
    max_side: int | None
    max_pixels: int
    side_pictures: bool


@dataclass(frozen=True)
class Sample:
    """The fields of a row to write, or the reason why there are none; and ``COUNTS``.

    ``picture`` is the name of the field that holds it.
    """

    key: str
    fields: list[tuple[str, bytes]] | None = None
    status: str = "ok"
    reason: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    picture: str = ""


def finished(chosen: Chosen, result: np.ndarray | Exception | None, form: Form) -> Sample:
    """The sample of a row, with its side fields.

    ``result`` is the decoded picture, or the exception, or None if the original is used.
    """
    row, key = chosen.row, original_key(chosen.row)
    if not chosen.is_picture:
        return Sample(key, None, row["status"], row["reason"])
    if isinstance(result, Exception):
        return Sample(key, None, "bad", describe(result))
    try:
        if _can_write_original(chosen, form):
            file = original_file(row) or b""
            counts = {"original_bytes": len(row[ORIGINAL])}
            return _with_picture(row, row["source_field"], file, counts, form)
        rgb, counts = _pixels(chosen, result, form)
        alpha = None
        if row["alpha"] is not None:
            alpha = unpack_alpha(row["alpha"], max_pixels=form.max_pixels)
            if form.max_side is not None:
                alpha = shrink(alpha, rgb.shape[0], rgb.shape[1])
            if form.image_format == "jpg" and alpha.min() < 255:  # jpg has no transparency
                rgb, alpha = on_white(rgb, alpha), None
                counts["on_white"] = 1
        picture = write_image(rgb, alpha, form.image_format, quality=form.quality)
    except MissingPackageError:
        raise
    except Exception as error:
        return Sample(key, None, "bad", describe(error))
    taken = {field["name"] for field in row["fields"]}
    name = image_field_name(row["source_field"], form.image_format, taken)
    return _with_picture(row, name, picture, counts, form)


def _can_write_original(chosen: Chosen, form: Form) -> bool:
    """Whether the original can be written as it is."""
    row = chosen.row
    if not chosen.by_original or row["source_format"] != SOURCE_FORMATS[form.image_format]:
        return False
    small = form.max_side is None or max(row["width"], row["height"]) <= form.max_side
    return small and row["width"] * row["height"] <= form.max_pixels


def _with_picture(
    row: Mapping[str, Any], name: str, picture: bytes, counts: Mapping[str, int], form: Form
) -> Sample:
    """The sample of a row, with ``picture`` as the field ``name``."""
    fields = [
        (name, picture) if field["data"] is None else (field["name"], field["data"])
        for field in row["fields"]
        if form.side_pictures or not is_side_picture(field)
    ]
    written = {"decoded_bytes": len(picture), "left_out": len(row["fields"]) - len(fields)}
    return Sample(original_key(row), fields, picture=name, counts={**counts, **written})


def _pixels(
    chosen: Chosen, result: np.ndarray | None, form: Form
) -> tuple[np.ndarray, dict[str, int]]:
    """The picture, ``(H, W, 3) uint8``, and the counts of what it was made from."""
    row = chosen.row
    if result is not None:
        layers = min(chosen.take.layers, row["layers"])
        nbytes = row["cumulative_bytes"][layers - 1]
        above = int(chosen.take.above_limit)
        return result, {
            "streams": 1,
            "layers": layers,
            "layer_bytes": nbytes,
            "above_limit": above,
        }
    if not chosen.by_original:
        raise ValueError("the row has neither a stream nor an original")
    rgb = read_original(original_file(row) or b"", form.max_pixels, form.max_side).rgb
    return rgb, {"original_bytes": len(row[ORIGINAL])}


def image_field_name(field: str, image_format: str, taken: set[str]) -> str:
    """The picture's field with its new extension: ``jpg`` -> ``png``, ``a.jpg`` -> ``a.png``."""
    base, dot, _ = field.rpartition(".")
    name = f"{base}{dot}{image_format}"
    while name != field and name in taken:  # the sample has such a side field
        name = f"decoded.{name}"
    return name
