"""Parquet files of a few kilobytes that would take gigabytes are refused before that."""

import json
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import open_dataset
from pipeline.dataset.parquet import MAX_FOOTER_BYTES, ParquetFile, read_footer
from tests.pipeline.hostile import in_child
from tests.pipeline.streams import rows, write_dataset

KEYS = [f"k{number:04d}" for number in range(300)]
LAYERS = (20, 0, 70)
MOST_BYTES = 256 << 20  # an honest row group has 16 MiB, and is there as a table and as rows
MOST_SECONDS = 5.0


def make(folder: Path) -> Path:
    write_dataset(str(folder), [list(rows(KEYS, LAYERS, 0))], len(LAYERS))
    return folder


def forge(folder: Path, part: str, write: Callable[[pa.Table, Path], None]) -> Path:
    """A dataset whose only data file, or index, is another one that the manifest agrees with."""
    make(folder)
    manifest = folder / "manifest-000001.json"
    content = json.loads(manifest.read_text())
    entry = content["files"][0]
    path = folder / (entry["path"] if part == "data" else entry["index"]["path"])
    table = pq.read_table(path)
    write(table, path)
    data = path.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little") + 8
    told = {
        "bytes": len(data),
        "footer_bytes": footer,
        "footer_crc32": zlib.crc32(data[-footer:]),
    }
    if part == "data":
        told |= {"index": None}
        entry.update(told)
    else:
        entry["index"].update(told)
    manifest.write_text(json.dumps(content))
    return folder


def with_column(table: pa.Table, name: str, values: Any, count: int | None = None) -> pa.Table:
    """The first rows of a table, as often as it takes, with another column."""
    count = len(values) if count is None else count
    table = pa.concat_tables([table] * -(-count // len(table))).slice(0, count)
    kind = table.schema.field(name).type
    column = pa.array(values, kind) if isinstance(values, list) else values
    return table.set_column(table.column_names.index(name), name, column)


def one_key(table: pa.Table, path: Path) -> None:
    """A key of a mebibyte, 12,000 times."""
    key = pa.DictionaryArray.from_arrays(pa.array([0] * 12_000, pa.int32()), ["a" * (1 << 20)])
    pq.write_table(with_column(table, "key", key), path, compression="ZSTD", row_group_size=12_000)


def one_key_in_a_group(table: pa.Table, path: Path) -> None:
    """The same in a group of as many rows as there may be."""
    key = pa.DictionaryArray.from_arrays(pa.array([0] * 256, pa.int32()), ["a" * (8 << 20)])
    pq.write_table(with_column(table, "key", key), path, compression="ZSTD", use_dictionary=["key"])


def one_reason(table: pa.Table, path: Path) -> None:
    """A dictionary where there may be one, and too long a value in it."""
    reason = pa.DictionaryArray.from_arrays(pa.array([0] * 256, pa.int32()), ["a" * (8 << 20)])
    pq.write_table(
        with_column(table, "status", reason), path, compression="ZSTD", use_dictionary=["status"]
    )


def prefixes(table: pa.Table, path: Path) -> None:
    """Keys that are told by what they have in common with the one before."""
    table = with_column(table, "key", ["a" * (1 << 20)] * 256)
    encoding = {"key": "DELTA_BYTE_ARRAY"}
    pq.write_table(table, path, compression="ZSTD", use_dictionary=False, column_encoding=encoding)


def zeros(table: pa.Table, path: Path) -> None:
    """Compressed zeros."""
    table = with_column(table, "header", [bytes(1 << 20)] * 256)
    pq.write_table(table, path, compression="ZSTD", use_dictionary=False)


def lying_zeros(table: pa.Table, path: Path) -> None:
    """Compressed zeros, and a footer that says there are few of them."""
    zeros(table, path)
    data = path.read_bytes()
    group = pq.read_metadata(path).row_group(0)
    chunks = map(group.column, range(group.num_columns))
    size = next(one for one in chunks if one.path_in_schema == "header").total_uncompressed_size
    small = bytearray(varint(7000))
    small[-1] |= 128
    small += b"\x80" * (len(varint(size)) - len(small) - 1) + b"\0"
    footer = int.from_bytes(data[-8:-4], "little") + 8
    assert varint(size) in data[-footer:]
    path.write_bytes(data[:-footer] + data[-footer:].replace(varint(size), bytes(small)))


def varint(value: int) -> bytes:
    value <<= 1  # as a signed number
    packed = bytearray()
    while value > 127:
        packed.append(value & 127 | 128)
        value >>= 7
    return bytes(packed + bytes([value]))


def nulls_in(name: str) -> Callable[[pa.Table, Path], None]:
    def write(table: pa.Table, path: Path) -> None:
        """A list of fifty million nulls."""
        kind = table.schema.field(name).type
        many = pa.nulls(50_000_000, kind.value_type)
        column = pa.ListArray.from_arrays(pa.array([0, len(many)], pa.int32()), many)
        table = with_column(table, name, column, 1)
        pq.write_table(table, path, compression="ZSTD", use_dictionary=False)

    return write


def many_groups(table: pa.Table, path: Path) -> None:
    """Row groups that are small enough, and too many of them to be held at once."""
    part = with_column(table, "header", [bytes(100 << 10)] * 256)
    part = pa.concat_tables([part] * 60)
    pq.write_table(part, path, compression="ZSTD", use_dictionary=False, row_group_size=256)


BOMBS = {
    ("data", "one key"): one_key,
    ("data", "one key in a group"): one_key_in_a_group,
    ("data", "one reason"): one_reason,
    ("data", "prefixes"): prefixes,
    ("data", "zeros"): zeros,
    ("data", "lying zeros"): lying_zeros,
    ("data", "nulls"): nulls_in("psnr"),
    ("index", "one key"): one_key,
    ("index", "one key in a group"): one_key_in_a_group,
    ("index", "prefixes"): prefixes,
    ("index", "zeros"): zeros,
    ("index", "lying zeros"): lying_zeros,
    ("index", "nulls"): nulls_in("lengths"),
    ("index", "many groups"): many_groups,
}


@pytest.mark.slow
def test_bombs_are_refused_before_they_go_off(tmp_path: Path) -> None:
    folders = {}
    for number, ((part, name), write) in enumerate(BOMBS.items()):
        folder = forge(tmp_path / str(number), part, write)
        assert sum(one.stat().st_size for one in folder.rglob("*")) < 4 << 20
        folders[f"{part}: {name}"] = str(folder)
    make(tmp_path / "honest")
    told = in_child([("warm", str(tmp_path / "honest")), *folders.items()])
    assert not told.pop("warm")[0]
    for name, (error, seconds, peak) in told.items():
        if name.startswith("data"):
            assert error.startswith("StrataError: DamagedDataError"), (name, error)
        else:  # it is read without its index
            assert not error, (name, error)
        assert seconds < MOST_SECONDS, (name, seconds)
        assert peak < MOST_BYTES, (name, peak, error)


def test_what_a_writer_writes_is_read_whole(tmp_path: Path) -> None:
    """Also a row that is larger than a group, and groups that end by their bytes."""
    bulky = [
        *rows(["a"], LAYERS, fields=(("json", bytes(40 << 20)),)),
        *rows([f"b{n}" for n in range(30)], LAYERS, fields=(("n" * 1000, b"x" * (1 << 20)),)),
        *rows([f"c{n}" for n in range(300)], LAYERS, fields=(("e", b""),) * 40),
        *rows(["d"], LAYERS, reason="r" * 100_000, notes="n" * 2_000_000),
    ]
    bulky = [rebuilt(row, number) for number, row in enumerate(bulky)]
    dataset = write_dataset(str(tmp_path / "set"), [bulky], len(LAYERS))
    found = list(dataset.read(columns=["fields", "reason", "notes"]))
    assert len(found) == len(bulky)
    assert found[0].extra["fields"][0]["data"] == bytes(40 << 20)
    assert found[-1].extra["notes"] == "n" * 2_000_000
    assert len(list(dataset.fetch([row.key for row in bulky]))) == len(bulky)


def rebuilt(row: Any, index: int) -> Any:
    return type(row)(**{**vars(row), "index": index})


def test_a_footer_of_many_small_things_is_refused() -> None:
    """Three bytes of a footer can take seven hundred of memory."""
    chunk = b"\x26\x00\x00"
    columns = b"\x19\xfc" + bytes([0xA0, 0x8D, 0x06]) + chunk * 100_000  # a list of as many
    group = columns + b"\x16\x00\x16\x00\x00"
    schema = b"\x29\x1c\x48\x01a\x00"
    groups = 10
    packed = b"\x15\x02" + schema + b"\x16\x00\x19" + bytes([groups << 4 | 12]) + group * groups
    tail = packed + b"\0" + (len(packed) + 1).to_bytes(4, "little") + b"PAR1"
    assert len(tail) < MAX_FOOTER_BYTES
    with pytest.raises(ValueError, match=r"its footer describes 1000012 things in \d+ bytes"):
        read_footer(tail)


def test_a_footer_that_is_too_long_is_not_parsed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than 16777216"):
        read_footer(bytes(MAX_FOOTER_BYTES + 1))
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1" + bytes(90) + (1 << 31).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(ValueError, match="is no Parquet file"):
        ParquetFile(path)


@pytest.mark.parametrize("rows", [257, 12_000])
def test_a_row_group_has_as_many_rows_as_are_written(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"key": ["a"] * rows}), path, use_dictionary=False)
    with pytest.raises(ValueError, match=f"row group 0 has {rows} rows, and at most 256 fit"):
        ParquetFile(path)


def test_readers_of_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    dataset = open_dataset(str(make(tmp_path / "set")))
    path = Path(dataset.url) / dataset.files[0].path
    file, expected = ParquetFile(path), pq.read_table(path)
    with ThreadPoolExecutor(8) as pool:
        for group, table in enumerate(pool.map(file.read_row_group, [0, 1] * 20)):
            assert table.equals(expected.slice(256 * (group % 2), 256))


@pytest.mark.parametrize("part", ["data", "index"])
@pytest.mark.parametrize("kind", [b"\x0e", b"\x7e"])  # of fixed length, and of no type at all
def test_columns_of_two_types_do_not_end_the_process(
    part: str, kind: bytes, tmp_path: Path
) -> None:
    def change(table: pa.Table, path: Path) -> None:
        data = path.read_bytes()
        at = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        # The type of a column's metadata, field 1, before its encodings, field 2.
        columns = data[at:].split(b"\x15\x0c\x19")
        assert len(columns) > 1
        path.write_bytes(data[:at] + (b"\x15" + kind + b"\x19").join(columns))

    url = str(forge(tmp_path / "set", part, change))
    ((error, took, peak),) = in_child([("types", url)]).values()
    assert error == "" if part == "index" else "DamagedDataError" in error
    assert peak < MOST_BYTES
    assert took < MOST_SECONDS
