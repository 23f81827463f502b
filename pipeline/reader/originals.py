"""Originals: the pictures' own files, which a dataset may keep and which may replace layers.

A job may keep the file of a picture instead of layers that would be larger (``--keep-original
larger``). If a reader wants more layers than a picture stores, and its original is kept, the
picture is read from the original, which is exact.

A data file may store originals packed (``codec/images/packing.py``). Readers return the unpacked
files. Code that copies stored originals reads ``ORIGINAL`` and ``PACKING`` together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from codec import CorruptStreamError, EncodedImage
from codec.images.files import Picture, read_image
from codec.images.resizing import fit, shrink

from ..dataset.data_file import DamagedDataError, OpenFile, within
from ..dataset.rows import encoded_image, original_file
from ..sources.samples import image_field

ORIGINAL, PACKING = "original", "original_packing"  # the columns


def stored_columns(columns: Sequence[str]) -> list[str]:
    """The stored columns to read for ``columns``: an original needs its packing."""
    return list(dict.fromkeys([*columns, *([PACKING] if ORIGINAL in columns else [])]))


def file_of(row: Mapping[str, Any], url: str) -> bytes | None:
    """The original file in a row with ORIGINAL and PACKING; None if it is not kept.

    ``url`` is for messages. Raises DamagedDataError, MissingPackageError.
    """
    try:
        return original_file(row)
    except CorruptStreamError as error:
        raise DamagedDataError(f"{url}: {row['key']!r}: {error}", row["key"]) from error


def file_of_problem(opened: OpenFile, key: str) -> tuple[bool, bytes | None]:
    """Whether a data file has a row with this key, and its original file if it is kept.

    Reads all keys of the row groups that may have the key, because an index has pictures only.
    """
    for group, bounds in enumerate(opened.group_bounds()):
        if not within([key], bounds):
            continue
        places = pc.indices_nonzero(pc.equal(opened.read(group, ["key"]).column("key"), key))
        if len(places):
            names = ["fields", ORIGINAL, PACKING, "source_field", "key"]
            (row,) = opened.read(group, names).take(places[:1]).to_pylist()
            if row["source_field"] is not None:
                return True, file_of(row, opened.url)
            # In a bad sample the picture's own file may still be among the fields.
            fields = {field["name"]: field["data"] for field in row["fields"]}
            return True, fields.get(image_field(list(fields)))
    return False, None


def with_files(table: pa.Table, columns: Sequence[str], url: str) -> pa.Table:
    """``columns`` of a table that was read with ``stored_columns`` and has ``key``.

    Unpacks its originals. Raises what ``file_of`` raises.
    """
    names = list(dict.fromkeys(columns))
    if ORIGINAL in names and table.column(PACKING).null_count < table.num_rows:
        rows = table.select(["key", ORIGINAL, PACKING]).to_pylist()
        files = pa.array([file_of(row, url) for row in rows], pa.binary())
        table = table.set_column(table.column_names.index(ORIGINAL), ORIGINAL, files)
    return table.select(names)


@dataclass(frozen=True)
class KeptOriginal:
    """A picture's original file, which a dataset keeps instead of the wanted layers."""

    data: bytes = field(repr=False)
    width: int
    height: int


def stream_or_original(
    row: Mapping[str, Any], layers: int, name: str
) -> EncodedImage | KeptOriginal:
    """The first ``layers`` layers of a row's picture, or its original if it stores fewer."""
    encoded = encoded_image(row, layers, name)
    if encoded.num_layers < layers and row.get(ORIGINAL) is not None:
        return KeptOriginal(row[ORIGINAL], row["width"], row["height"])
    return encoded


def read_original(data: bytes, max_pixels: int, max_side: int | None = None) -> Picture:
    """The picture in a kept file, scaled down so that no side is longer than ``max_side`` pixels.

    Raises BrokenImageError, UnsupportedImageError.
    """
    picture = read_image(data, max_pixels=max_pixels)
    if max_side is None:
        return picture
    size = fit(picture.height, picture.width, max_side)
    alpha = None if picture.alpha is None else shrink(picture.alpha, *size)
    return replace(picture, rgb=shrink(picture.rgb, *size), alpha=alpha)
