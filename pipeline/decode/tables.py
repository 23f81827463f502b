"""Writes decoded pictures as Parquet, with a Hugging Face ``Image`` column and side fields."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..dataset.rows import is_side_picture
from ..dataset.untrusted import MAX_PLAN_BYTES, parse_json
from ..reader.dataset import Dataset
from ..sources.parquet_rows import IMAGE, KEY
from ..sources.parquet_rows import OTHER_FIELDS as OTHERS
from ..stores.store import Store
from .request import DecodeOptions
from .targets import DECODE_PLAN, printable

LOOKED_INTO = 16  # data files whose first samples decide which fields become columns
MAX_COLUMNS = 64
ROWS_PER_GROUP, BYTES_PER_GROUP = 256, 64 << 20
_TEXTS = ("txt", "text", "caption", "json", "jsonl", "xml", "csv")
_NUMBERS = ("cls", "cls2", "id", "index")
_TYPES = {"string": pa.string(), "int64": pa.int64(), "binary": pa.binary()}
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_FIELDS = pa.list_(pa.struct([("name", pa.string()), ("data", pa.binary())]))


def field_columns(dataset: Dataset, options: DecodeOptions, store: Store) -> list[str]:
    """The names of side fields that become columns: those of the first samples of some data files.

    If the output has a plan already, its columns are kept.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        columns = parse_json(store.read(DECODE_PLAN, MAX_PLAN_BYTES))["parameters"]["columns"]
        return [str(name) for name in columns]
    names: set[str] = set()
    for file in dataset.files[:: max(1, len(dataset.files) // LOOKED_INTO)]:
        with dataset.open(file) as opened:
            groups = range(min(1, opened.metadata.num_row_groups))
            rows = [row for group in groups for row in opened.read(group, ["fields"]).to_pylist()]
        names |= {
            one["name"]
            for row in rows
            for one in row["fields"]
            if one["data"] is not None
            and (options.includes_side_pictures or not is_side_picture(one))
        }
    return sorted(names - {KEY, IMAGE, OTHERS})[:MAX_COLUMNS]


def _kind(name: str) -> str:
    extension = name.rpartition(".")[2].lower()
    return "string" if extension in _TEXTS else "int64" if extension in _NUMBERS else "binary"


def schema_of(columns: Sequence[str]) -> pa.Schema:
    """The table's columns, with Hugging Face's metadata about the image column."""
    kinds = {name: _kind(name) for name in columns}
    features: dict[str, Any] = {
        KEY: {"dtype": "string", "_type": "Value"},
        IMAGE: {"_type": "Image"},
        **{name: {"dtype": kind, "_type": "Value"} for name, kind in kinds.items()},
        OTHERS: {
            "feature": {
                "name": {"dtype": "string", "_type": "Value"},
                "data": {"dtype": "binary", "_type": "Value"},
            },
            "_type": "List",
        },
    }
    typed = [(name, _TYPES[kind]) for name, kind in kinds.items()]
    metadata = json.dumps({"info": {"features": features}})
    plain = pa.schema([(KEY, pa.string()), (IMAGE, _IMAGE), *typed, (OTHERS, _FIELDS)])
    return plain.with_metadata({"huggingface": metadata})


class TableTarget:
    """Writes a Parquet file to local disk, whose bytes depend only on its samples.

    Fields that have no column, or do not fit the type of their column, go into ``other_fields``.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._schema = schema_of(columns)
        self._kinds = {name: _kind(name) for name in columns}
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression={f"{IMAGE}.bytes": "NONE"},
            use_dictionary=False,
            write_page_checksum=True,
        )
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def write(self, key: str, fields: list[tuple[str, bytes]], picture: str) -> None:
        row: dict[str, Any] = {KEY: printable(key), OTHERS: []}
        for name, data in fields:
            if name == picture:
                base = printable(key).rpartition("/")[2]
                row[IMAGE] = {"bytes": data, "path": f"{base}.{name}"}
                continue
            value = _value(self._kinds.get(name), data)
            if value is None:
                row[OTHERS].append({"name": name, "data": data})
            else:
                row[name] = value
        nbytes = sum(len(data) for _, data in fields)
        if self._rows and self._bytes + nbytes > BYTES_PER_GROUP:
            self._flush()
        self._rows.append(row)
        self._bytes += nbytes
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._bytes = [], 0

    def close(self) -> None:
        self._flush()
        self._writer.close()


def _value(kind: str | None, data: bytes) -> Any:
    """A field's value in a column of this kind; None if the field could not be restored from it."""
    try:
        if kind == "string":
            return data.decode()
        if kind == "int64":
            number = int(data)
            fits = -(1 << 63) <= number < 1 << 63
            return number if fits and str(number).encode() == data else None
    except ValueError:
        return None
    return data if kind == "binary" else None
