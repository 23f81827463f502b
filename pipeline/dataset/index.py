"""The index of a data file: where the layers of each picture lie, by key.

Layer columns are neither compressed nor dictionary-coded, so a layer's bytes lie verbatim in the
data file, and one ranged GET of these bytes is enough for a preview. ``index/<name>.parquet`` has a
row for each picture of ``data/<name>.parquet``, sorted by key, in row groups of some hundred rows
with statistics of the key. It is published before the commit record that names it. A file whose
index is missing or damaged is read by row groups.
"""

from dataclasses import dataclass

import pyarrow as pa

from codec.errors import StrataError

from .data_file import DataFile

_SPAN = pa.struct([("offset", pa.int64()), ("length", pa.int32()), ("crc32", pa.uint32())])
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("row", pa.int32()),  # in the data file
        ("row_group", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("header", pa.binary()),
        ("offsets", pa.list_(pa.int64())),  # in the data file, of each layer that is stored
        ("lengths", pa.list_(pa.int32())),
        ("crc32s", pa.list_(pa.uint32())),
        ("original", _SPAN),  # null where there is none
        ("original_packing", pa.string()),
        ("alpha", _SPAN),
    ]
)


class BrokenIndexError(StrataError):
    """An index is gone or damaged; the message names it."""


@dataclass(frozen=True)
class Span:
    """Bytes of a data file, and their checksum."""

    offset: int
    length: int
    crc32: int


@dataclass(frozen=True)
class IndexEntry:
    """Where a picture lies: its ``row`` in ``file``, its row group, and its layers in the file.

    ``lengths`` are the bytes of each stored layer. ``offsets`` and ``crc32s`` are empty if the file
    has no index; then its layers are read by row groups. ``original`` and ``alpha`` say where these
    lie, None if the picture has none or the file no index; ``original_packing`` is the row's.
    """

    file: DataFile
    row: int
    row_group: int
    key: str
    width: int
    height: int
    header: bytes
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    crc32s: tuple[int, ...]
    original: Span | None = None
    alpha: Span | None = None
    original_packing: str | None = None

    @property
    def indexed(self) -> bool:
        """Whether offsets are known."""
        return len(self.offsets) == len(self.lengths)

    @property
    def num_layers(self) -> int:
        """Layers that are stored."""
        return len(self.lengths)
