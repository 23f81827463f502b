"""Captions and labels of a row group, and the side fields of one picture.

Side fields lie together in one column, whatever their names, so a caption costs the side fields of
its row group. What is too large for that is left alone.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ..dataset.captions import caption_of
from ..dataset.data_file import OpenFile
from ..dataset.parquet import group_bytes

# Of the side fields of a row group of 256 samples, unpacked. Some kilobytes of JSON for each fit,
# pictures beside the encoded ones do not.
MAX_BYTES = 8 << 20
_FIELDS = "fields"


@dataclass(frozen=True)
class GroupCaptions:
    """``table`` has ``caption`` and ``label`` of each row; None: too large to be looked into."""

    table: pa.Table | None

    @property
    def nbytes(self) -> int:
        return 200 if self.table is None else self.table.nbytes


def captions_of(opened: OpenFile, group: int) -> GroupCaptions:
    """The captions of a row group, which are kept in the file's cache."""

    def read() -> GroupCaptions:
        fields = side_fields(opened, group)
        if fields is None:
            return GroupCaptions(None)
        found = [caption_of(one or ()) for one in fields.to_pylist()]
        columns = {
            name: pa.array([getattr(one, name) for one in found], pa.string())
            for name in ("caption", "label")
        }
        return GroupCaptions(pa.table(columns))

    return opened.cached(("captions", group), read, lambda one: one.nbytes)


def side_fields(opened: OpenFile, group: int) -> pa.ChunkedArray | None:
    """The side fields of a row group; None, and nothing read, where they are too large."""
    if group_bytes(opened.metadata, group, [_FIELDS]) > MAX_BYTES:
        return None
    return opened.read(group, [_FIELDS]).column(_FIELDS)


def fields_at(opened: OpenFile, group: int, row: int) -> list[dict[str, Any]] | None:
    """``name`` and ``data`` of the side fields of a row of the file; None: too large to be read."""
    found = side_fields(opened, group)
    return None if found is None else found[row - opened.first_row(group)].as_py() or []
