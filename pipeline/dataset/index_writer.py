"""Make the index of a data file: find where its values lie, and publish the result."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..stores.store import Store
from .index import SCHEMA
from .layout import index_path
from .parquet import ROWS_PER_GROUP, ParquetFile
from .rows import RecordError, file_sha256, layer_column, local_footer

Create = Callable[[str, Path], bool]  # publish a local file under a name; False if it is taken

_LENGTH = 4  # bytes before each value of a PLAIN column of binaries
_KEY_BOUND = 64  # characters of a key in a manifest
_LAST = "\U0010ffff"


def publish_index(
    store: Store, name: str, table: pa.Table, scratch: Path, create: Create | None = None
) -> dict[str, Any]:
    """Publish ``table`` as the index of the data file ``name``.

    Returns its facts for the commit record. An equal index that exists already stays; any other is
    damaged or belongs to a file that was removed, and is replaced. ``create`` is used in place of
    ``store.create_from``. Raises a passing StorageError if another job writes the same index now.
    """
    path, local = index_path(name), scratch / f"{name}.index"
    write_index(table, local)
    standing = scratch / f"{name}.index.standing"
    kept = store.create_or_keep(path, local, standing, lambda it: same_index(it, table), create)
    return index_facts(path, kept, table)


def write_index(table: pa.Table, path: Path) -> None:
    pq.write_table(
        table,
        path,
        row_group_size=ROWS_PER_GROUP,
        compression="ZSTD",
        use_dictionary=False,
        write_statistics=["key"],
        write_page_checksum=True,
    )


def same_index(path: Path, table: pa.Table) -> bool:
    """Whether a file is an index that holds this table."""
    try:
        return bool(ParquetFile(path).read().equals(table))
    except (OSError, ValueError, pa.ArrowException):
        return False


def index_facts(path: str, local: Path, table: pa.Table) -> dict[str, Any]:
    """What a commit record holds of an index at ``path``, from a local copy and its table.

    ``key_min`` and ``key_max`` bound all of its keys.
    """
    footer_bytes, footer_crc32 = local_footer(local, pq.read_metadata(local))
    keys = table.column("key")
    return {
        "path": path,
        "rows": table.num_rows,
        "bytes": local.stat().st_size,
        "sha256": file_sha256(local),
        "footer_bytes": footer_bytes,
        "footer_crc32": footer_crc32,
        "key_min": keys[0].as_py()[:_KEY_BOUND] if table.num_rows else "",
        "key_max": _upper_bound(keys[-1].as_py()) if table.num_rows else "",
    }


def _upper_bound(key: str) -> str:
    """The key, or something shorter that is not below any key with the same beginning."""
    if len(key) <= _KEY_BOUND or key[_KEY_BOUND] == _LAST:
        return key
    return key[:_KEY_BOUND] + _LAST


# -- places of values -----------------------------------------------------------------------------


def index_table(path: Path, layers: int) -> pa.Table:
    """The index of a local data file. Raises RecordError if a value is not found in it."""
    file = ParquetFile(path)
    first = 0
    tables = [SCHEMA.empty_table()]
    with open(path, "rb") as raw:
        for group in range(file.num_row_groups):
            tables.append(_of_group(file, raw, group, first, layers, path.name))
            first += file.metadata.row_group(group).num_rows
    table = pa.concat_tables(tables)
    order = pc.sort_indices(table, sort_keys=[("key", "ascending"), ("row", "ascending")])
    return table.take(order).combine_chunks()


def _of_group(
    file: ParquetFile, raw: BinaryIO, group: int, first: int, layers: int, name: str
) -> pa.Table:
    """The rows of the index for the pictures of one row group, in the order of the data file."""
    verbatim = ["original", "alpha", *map(layer_column, range(layers))]
    columns = ["key", "width", "height", "header"]
    table = file.read_row_group(group, columns=[*columns, "original_packing", *verbatim])
    pictures = np.flatnonzero(table.column("header").is_valid().to_numpy())
    spans = {}
    for column in verbatim:
        values = table.column(column)
        if values.null_count == len(values):
            spans[column] = np.full((3, len(values)), -1, np.int64)
        else:
            start, chunk = _chunk(file.metadata.row_group(group), raw, column)
            try:
                spans[column] = _spans(chunk, start, values.to_pylist())
            except LookupError as error:
                key = table.column("key")[error.args[0]].as_py()
                raise RecordError(
                    f"{name}: {column} of {key!r} is not in the file as it was written"
                ) from None
    shape = (len(pictures), layers, 3)
    stacked = [spans[layer_column(number)].T[pictures] for number in range(layers)]
    places = np.stack(stacked, axis=1) if layers else np.empty(shape, np.int64)
    stored = places[:, :, 0] >= 0
    bounds = pa.array(np.concatenate([[0], stored.sum(axis=1).cumsum()]), pa.int32())
    count = len(pictures)
    return pa.Table.from_arrays(
        [
            table.column("key").combine_chunks().take(pa.array(pictures)),
            pa.array(first + pictures, pa.int32()),
            pa.array(np.full(count, group), pa.int32()),
            *(table.column(one).combine_chunks().take(pa.array(pictures)) for one in columns[1:]),
            *(
                pa.ListArray.from_arrays(bounds, pa.array(places[:, :, part][stored], kind))
                for part, kind in enumerate((pa.int64(), pa.int32(), pa.uint32()))
            ),
            _side_spans(spans["original"].T[pictures]),
            table.column("original_packing").combine_chunks().take(pa.array(pictures)),
            _side_spans(spans["alpha"].T[pictures]),
        ],
        schema=SCHEMA,
    )


def _side_spans(places: np.ndarray) -> pa.Array:
    kinds = [SCHEMA.field("original").type.field(number) for number in range(3)]
    parts = [pa.array(places[:, n], kind.type, safe=False) for n, kind in enumerate(kinds)]
    return pa.StructArray.from_arrays(parts, fields=kinds, mask=pa.array(places[:, 0] < 0))


def _chunk(group: pq.RowGroupMetaData, raw: BinaryIO, column: str) -> tuple[int, bytes]:
    """The bytes of a column in a row group, and where they begin in the file."""
    chunks = map(group.column, range(group.num_columns))
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema == column)
    raw.seek(chunk.data_page_offset)
    return chunk.data_page_offset, raw.read(chunk.total_compressed_size)


def _spans(chunk: bytes, start: int, values: Sequence[bytes | None]) -> np.ndarray:
    """Offset in the file, length and CRC of each value, -1 for nulls: ``(3, rows) int64``.

    Values follow one another, each after its length, with a header where a page begins. The bytes
    that are found are those of the value, so reading them gives the value. Raises LookupError with
    the number of a value that is not found.
    """
    return np.array(list(_places(chunk, start, values)), np.int64).reshape(-1, 3).T


def _places(
    chunk: bytes, start: int, values: Sequence[bytes | None]
) -> Iterator[tuple[int, int, int]]:
    position = 0
    for number, value in enumerate(values):
        if value is None:
            yield -1, -1, -1
            continue
        written = len(value).to_bytes(_LENGTH, "little") + value
        if not chunk.startswith(written, position):
            position = chunk.find(written, position)
            if position < 0:
                raise LookupError(number)
        yield start + position + _LENGTH, len(value), zlib.crc32(value)
        position += len(written)
