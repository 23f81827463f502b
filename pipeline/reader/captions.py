"""Reads captions and labels of a row group, and the side fields of one picture.

All side fields are in one column, so reading a caption costs all side fields of its row group. Row
groups with too large side fields are not read.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..dataset.captions import caption_of
from ..dataset.data_file import DamagedDataError, OpenFile
from ..dataset.parquet import group_bytes

# Limit of the side fields of a row group of 256 samples, unpacked. Some kilobytes of JSON for each
# sample fit; further pictures do not.
MAX_BYTES = 8 << 20
_FIELDS = "fields"
# ``name`` and ``data`` of each; the picture's own field has no data.
Fields = list[dict[str, Any]]


@dataclass(frozen=True)
class GroupCaptions:
    """``table`` has ``caption`` and ``label`` of each row; None if the fields are too large."""

    table: pa.Table | None

    @property
    def nbytes(self) -> int:
        return 200 if self.table is None else self.table.nbytes


def captions_of(opened: OpenFile, group: int) -> GroupCaptions:
    """The captions of a row group. They are cached with the file."""

    def read() -> GroupCaptions:
        fields = _side_fields(opened, group)
        if fields is None:
            return GroupCaptions(None)
        found = [caption_of(one) for one in fields]
        columns = {
            name: pa.array([getattr(one, name) for one in found], pa.string())
            for name in ("caption", "label")
        }
        return GroupCaptions(pa.table(columns))

    return opened.cached(("captions", group), read, lambda one: one.nbytes)


def fields_at(opened: OpenFile, group: int, row: int) -> Fields | None:
    """The fields of a row of the file; None if those of its row group are too large."""
    place = row - opened.first_row(group)
    found = _side_fields(opened, group, slice(place, place + 1))
    return None if found is None else found[0] if found else []


def _side_fields(opened: OpenFile, group: int, rows: slice = slice(None)) -> list[Fields] | None:
    """The side fields of a row group. Returns None and reads nothing if they are too large."""
    if group_bytes(opened.metadata, group, [_FIELDS]) > MAX_BYTES:
        return None
    column = opened.read(group, [_FIELDS]).column(_FIELDS)[rows]
    try:
        return [[field for field in one or () if field] for one in column.to_pylist()]
    except UnicodeDecodeError as error:
        raise DamagedDataError(
            f"{opened.url}: row group {group} has side fields whose names are not UTF-8"
        ) from error
