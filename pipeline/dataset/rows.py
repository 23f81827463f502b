"""The Parquet schema of data files: one row per sample, one column per layer.

The order of the columns lets a reader of k layers fetch one contiguous run of bytes per row group:
bulky metadata, small metadata, ``key``, ``width``, ``height``, ``header``,
``layer_00``, ``layer_01``, ... Layer columns are neither compressed nor dictionary-coded, so a
layer's bytes lie verbatim in the file; every page has a checksum.
"""

import functools
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from codec import EncodedImage
from codec.errors import StrataError
from codec.images.packing import unpack_file
from codec.stream.bitstream import MAX_LAYERS

from ..sources.samples import is_picture
from .parquet import BYTES_PER_GROUP, DICTIONARY_COLUMNS, ROWS_PER_GROUP

SCHEMA_VERSION = 2
METADATA_KEY = b"strata"
FOOTER_END = 8  # bytes behind Parquet's footer: its length and the magic number
Status = Literal["ok", "bad", "filtered"]

_FIELDS = pa.list_(pa.struct([("name", pa.string()), ("data", pa.binary())]))
_METADATA = [
    ("fields", _FIELDS),  # every field of the sample in the tar's order; the picture's is null
    ("original", pa.binary()),  # the picture's file itself, where it is kept, perhaps packed
    ("alpha", pa.binary()),  # lossless alpha channel, null for opaque pictures
    ("key_bytes", pa.binary()),  # the key as it was, where that is not UTF-8
    ("status", pa.string()),
    ("reason", pa.string()),
    ("original_packing", pa.string()),  # of original: null (as it was) or "lepton"
    ("source_field", pa.string()),
    ("source_format", pa.string()),
    ("source_bytes", pa.int64()),
    ("source_sha256", pa.binary()),
    ("image_sha256", pa.binary()),  # of the picture's (H, W, 3) uint8 bytes, as encoded
    ("notes", pa.string()),  # what was done to the picture before encoding (orientation, ...)
    ("index", pa.int32()),  # position of the sample in its shard
    ("layers", pa.int16()),  # layers stored
    ("cumulative_bytes", pa.list_(pa.int64())),  # header and layers 0..i together
    ("psnr", pa.list_(pa.float32())),  # in dB after layers 0..i, where it was measured
]
_STREAM = [
    ("key", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("header", pa.binary()),
]
STREAM_COLUMNS = [name for name, _ in _STREAM]
# Columns that hold a field of Row as it is.
_UNCHANGED = (
    *("original", "alpha", "status", "reason", "original_packing", "source_field"),
    *("source_format", "source_bytes", "source_sha256", "image_sha256", "notes", "index"),
)


class RecordError(StrataError):
    """A data file contradicts itself; the message names file, row and key."""


def layer_column(number: int) -> str:
    return f"layer_{number:02d}"


def schema(layers: int) -> pa.Schema:
    columns = [(layer_column(number), pa.binary()) for number in range(layers)]
    return pa.schema([*_METADATA, *_STREAM, *columns])


def check_columns(found: pa.Schema, names: Sequence[str]) -> None:
    """Raise ValueError unless ``found`` has these columns, with their types."""
    expected = _widest()
    for name in names:
        if name in expected.names and (
            name not in found.names or found.field(name).type != expected.field(name).type
        ):
            raise ValueError(f"it has no column {name} of {expected.field(name).type}")


@functools.cache
def _widest() -> pa.Schema:
    return schema(MAX_LAYERS)


def stream_columns(layers: int) -> list[str]:
    """The columns that decoding the first ``layers`` layers needs."""
    return [*STREAM_COLUMNS, *map(layer_column, range(layers))]


@dataclass(frozen=True)
class Row:
    """One sample, be it a picture, bad or filtered.

    ``fields`` are (name, bytes) in the tar's order, with None for the encoded picture.
    ``original`` is the picture's file as ``original_packing`` says (``codec.images.packing``).
    ``source_sha256`` is the 32-byte digest of the picture's file, ``image_sha256`` that of its
    ``(H, W, 3) uint8`` pixels; ``psnr`` in dB after each layer, where it was measured.
    """

    key: str
    index: int
    status: Status = "ok"
    reason: str = ""
    fields: tuple[tuple[str, bytes | None], ...] = ()
    original: bytes | None = None
    original_packing: str | None = None
    alpha: bytes | None = None
    source_field: str | None = None
    source_format: str | None = None
    source_bytes: int | None = None
    source_sha256: bytes | None = None
    image_sha256: bytes | None = None
    notes: str = ""
    encoded: EncodedImage | None = None
    psnr: tuple[float, ...] | None = None

    def columns(self, layers: int) -> dict[str, Any]:
        """The row as a dictionary, for a file with ``layers`` layer columns."""
        raw = self.key.encode("utf-8", "surrogateescape")
        printable = raw.decode("utf-8", "backslashreplace")
        row: dict[str, Any] = dict.fromkeys(name for name, _ in (*_METADATA, *_STREAM))
        row |= {name: getattr(self, name) for name in _UNCHANGED}
        row |= {
            "fields": [{"name": name, "data": data} for name, data in self.fields],
            "key_bytes": None if printable == self.key else raw,
            "layers": 0,
            "psnr": None if self.psnr is None else list(self.psnr),
            "key": printable,
        }
        stored: tuple[bytes, ...] = ()
        if self.encoded is not None:
            stored, info = self.encoded.layers, self.encoded.info
            sizes = accumulate(map(len, stored), initial=len(self.encoded.header))
            row |= {
                "layers": len(stored),
                "cumulative_bytes": list(sizes)[1:],
                "width": info.width,
                "height": info.height,
                "header": self.encoded.header,
            }
        for number in range(layers):
            row[layer_column(number)] = stored[number] if number < len(stored) else None
        return row


class RowWriter:
    """Writes rows to a local Parquet file, flushing row groups by count and by bytes.

    It is deliberately no context manager. An abandoned file may still be valid Parquet with fewer
    rows (pyarrow closes it when the writer is collected), so callers count rows before publishing.
    """

    def __init__(self, path: Path, layers: int, metadata: Mapping[str, Any]) -> None:
        self.layers = layers
        self._schema = schema(layers).with_metadata({METADATA_KEY: json.dumps(metadata).encode()})
        verbatim = [layer_column(number) for number in range(layers)]
        small = [leaf for leaf in _leaves(self._schema) if leaf not in verbatim]
        unpacked = {"header", "original", "alpha", "source_sha256", "image_sha256", *verbatim}
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression={
                leaf: "NONE" if leaf in unpacked else "ZSTD" for leaf in [*small, *verbatim]
            },
            use_dictionary=list(DICTIONARY_COLUMNS),
            write_statistics=["key"],
            write_page_checksum=True,
        )
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self._texts: set[str] = set()  # of the dictionaries

    def append(self, row: Row) -> None:
        self.copy(row.columns(self.layers))

    def copy(self, columns: dict[str, Any]) -> None:
        """Append a row as ``iter_rows`` gives it, of a file with the same schema."""
        nbytes = row_bytes(columns)
        texts = {columns.get(name) or "" for name in DICTIONARY_COLUMNS}
        # Readers count with the longest text of a dictionary for every row.
        spread = sum(map(len, self._texts | texts)) * (len(self._rows) + 1)
        if self._rows and max(self._bytes + nbytes, spread) > BYTES_PER_GROUP:
            self._flush()
        self._rows.append(columns)
        self._bytes += nbytes
        self._texts |= texts
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    def copy_group(self, table: pa.Table) -> None:
        """Append a row group, or a part of one, of a file with the same schema."""
        if self._rows:
            self._flush()
        self._writer.write_table(
            table.replace_schema_metadata(self._schema.metadata), row_group_size=len(table)
        )

    def _flush(self) -> None:
        table = pa.Table.from_pylist(self._rows, schema=self._schema)
        self._writer.write_table(table, row_group_size=len(self._rows))
        self._rows, self._bytes, self._texts = [], 0, set()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()


def row_bytes(columns: Mapping[str, Any]) -> int:
    """About how many bytes a row takes in memory and in the file: its bytes and texts."""
    side = sum(len(field["name"]) + len(field["data"] or b"") for field in columns["fields"])
    return side + sum(len(value) for value in columns.values() if isinstance(value, bytes | str))


def _leaves(columns: pa.Schema) -> list[str]:
    """Parquet's names of the leaf columns."""
    leaves = []
    for column in columns:
        if column.name == "fields":
            leaves += ["fields.list.element.name", "fields.list.element.data"]
        elif pa.types.is_list(column.type):
            leaves.append(f"{column.name}.list.element")
        else:
            leaves.append(column.name)
    return leaves


def read_metadata(file: pq.ParquetFile, name: str) -> dict[str, Any]:
    """The ``metadata`` given to RowWriter. Raises RecordError for another program's file."""
    packed = (file.schema_arrow.metadata or {}).get(METADATA_KEY)
    if packed is None:
        raise RecordError(f"{name}: this Parquet file was not written by Strata")
    try:
        return dict(json.loads(packed))
    except (ValueError, TypeError, RecursionError) as error:
        raise RecordError(f"{name}: its metadata are damaged") from error


def is_side_picture(field: Mapping[str, Any]) -> bool:
    """Whether an element of the column ``fields`` is a picture beside the encoded one."""
    return field["data"] is not None and is_picture(field["name"])


def local_footer(path: Path, metadata: pq.FileMetaData) -> tuple[int, int]:
    """Size and CRC32 of a local file's footer, with what follows it: its length and a magic."""
    size = metadata.serialized_size + FOOTER_END
    with open(path, "rb") as raw:
        raw.seek(-size, os.SEEK_END)
        return size, zlib.crc32(raw.read())


def footer_problem(tail: bytes, size: int, checksums: Collection[int | None]) -> str:
    """What is wrong with the last ``size`` bytes of a file, before they are parsed; or ''.

    ``checksums`` are those that are allowed; None is any.
    """
    if int.from_bytes(tail[-FOOTER_END:-4], "little") + FOOTER_END != size:
        return "its footer is not where it was written"
    if None not in checksums and zlib.crc32(tail) not in checksums:
        return "its footer is damaged"
    return ""


def column_bytes(metadata: pq.FileMetaData, groups: Sequence[int] | None = None) -> dict[str, int]:
    """Compressed bytes of every top-level column, over all row groups or some."""
    totals: Counter[str] = Counter()
    for group in range(metadata.num_row_groups) if groups is None else groups:
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            totals[column.path_in_schema.split(".")[0]] += column.total_compressed_size
    return dict(totals)


def iter_rows(
    file: pq.ParquetFile, columns: Sequence[str], groups: Sequence[int] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows as dictionaries, one row group in memory at a time."""
    for group in range(file.num_row_groups) if groups is None else groups:
        yield from file.read_row_group(group, columns=list(columns)).to_pylist()


def encoded_image(row: Mapping[str, Any], layers: int, name: str) -> EncodedImage:
    """The first ``layers`` layers of an ok row, as far as they were stored."""
    if row["header"] is None:
        raise RecordError(f"{name}: {row['key']} has no stream")
    stored: list[bytes] = []
    for number in range(layers):
        layer = row[layer_column(number)]
        if layer is None:
            break
        stored.append(layer)
    return EncodedImage(row["header"], tuple(stored))


def original_file(row: Mapping[str, Any]) -> bytes | None:
    """The picture's own file as it was, None if it is not kept.

    Raises CorruptStreamError for damaged bytes, MissingPackageError.
    """
    stored: bytes | None = row["original"]
    return None if stored is None else unpack_file(stored, row["original_packing"])


def original_key(row: Mapping[str, Any]) -> str:
    """The key as the tar had it (``key`` itself is always printable UTF-8)."""
    raw = row.get("key_bytes")
    return raw.decode("utf-8", "surrogateescape") if raw is not None else str(row["key"])


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
