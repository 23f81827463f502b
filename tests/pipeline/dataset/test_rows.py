"""The Parquet files: every row comes back, layers lie verbatim, damage does not pass."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from codec import EncodedImage
from codec.stream.bitstream import StreamHeader, pack_header
from pipeline.dataset import rows as dataset_rows
from pipeline.dataset.facts import inspect_file, reason_kind
from pipeline.dataset.rows import Row, RowWriter, iter_rows

HEADER = pack_header(StreamHeader("uqdm", 8, 8, "00112233"))


def row(index: int, layer_bytes: int = 40, layers: int = 3) -> Row:
    stored = tuple(bytes([index % 251, number]) * (layer_bytes // 2) for number in range(layers))
    return Row(
        f"k{index:05d}",
        index,
        fields=(("json", b"{}"), ("png", None)),
        source_field="png",
        source_format="png",
        source_bytes=100,
        source_sha256=bytes(32),
        encoded=EncodedImage(HEADER, stored),
    )


def write(path: Path, rows: list[Row], layers: int = 3) -> pq.ParquetFile:
    writer = RowWriter(path, layers, {"about": "a test"})
    for one in rows:
        writer.append(one)
    writer.close()
    return pq.ParquetFile(path)


def test_rows_come_back(tmp_path: Path) -> None:
    bad = Row("k00001", 1, status="bad", reason="broken: really", original=b"xx")
    rows = [row(0), bad, row(2, layers=1)]
    file = write(tmp_path / "x.parquet", rows)
    back = list(iter_rows(file, dataset_rows.schema(3).names))
    assert [one["status"] for one in back] == ["ok", "bad", "ok"]
    assert back[1]["original"] == b"xx"
    assert back[1]["header"] is None
    assert back[0]["fields"] == [{"name": "json", "data": b"{}"}, {"name": "png", "data": None}]
    assert [dataset_rows.encoded_image(back[i], 3, "x") for i in (0, 2)] == [
        rows[0].encoded,
        rows[2].encoded,
    ]
    assert dataset_rows.encoded_image(back[0], 2, "x") == rows[0].encoded.truncate(2)  # type: ignore[union-attr]
    assert back[0]["cumulative_bytes"] == [len(HEADER) + 40 * n for n in (1, 2, 3)]
    facts = inspect_file(tmp_path / "x.parquet", 3)
    assert (facts.rows, facts.ok, facts.bad, facts.filtered) == (3, 2, 1, 0)
    assert facts.reasons == {"broken": 1}
    assert facts.problems == [("k00001", "bad", "broken: really")]


def test_reasons_end_at_a_word() -> None:
    assert reason_kind("a picture is broken: really") == "a picture is broken"
    assert reason_kind(f"{'x' * 70} five word: more") == f"{'x' * 70} five word"
    assert reason_kind(f"{'x' * 70} word longer words") == f"{'x' * 70} word..."
    assert reason_kind("x" * 90) == f"{'x' * 77}..."


def test_row_groups_are_bounded_in_rows_and_bytes(tmp_path: Path) -> None:
    many = write(tmp_path / "many.parquet", [row(index) for index in range(600)])
    assert [many.metadata.row_group(i).num_rows for i in range(3)] == [256, 256, 88]
    large = write(tmp_path / "large.parquet", [row(index, 3 << 20) for index in range(5)])
    for group in range(large.num_row_groups):
        assert large.metadata.row_group(group).total_byte_size <= 16 << 20
    assert large.num_row_groups == 5


def test_layers_lie_verbatim_behind_everything_else(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    rows = [row(index) for index in range(50)]
    file = write(path, rows)
    group = file.metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    names = list(columns)
    assert names[-7:] == ["key", "width", "height", "header", "layer_00", "layer_01", "layer_02"]
    data = path.read_bytes()
    for number in range(3):
        column = columns[f"layer_{number:02d}"]
        assert column.compression == "UNCOMPRESSED"
        assert not column.has_dictionary_page
        assert column.statistics is None
        stored = data[column.data_page_offset :][: column.total_compressed_size]
        assert all(one.encoded.layers[number] in stored for one in rows)  # type: ignore[union-attr]
    assert columns["key"].statistics.min == "k00000"


def test_a_flipped_bit_does_not_pass(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write(path, [row(index) for index in range(20)])
    data = bytearray(path.read_bytes())
    at = data.index(bytes([7, 1]) * 20)
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match=r"(?i)crc|checksum"):
        inspect_file(path, 3)


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(dataset_rows.RecordError, match="not written by Strata"):
        inspect_file(tmp_path / "x.parquet", 3)


def test_a_row_that_contradicts_itself_is_found(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", [row(0), row(5)])
    with pytest.raises(dataset_rows.RecordError, match="k00005"):
        inspect_file(tmp_path / "x.parquet", 3)


def test_keys_that_are_no_utf8_come_back(tmp_path: Path) -> None:
    key = b"caf\xe9".decode("utf-8", "surrogateescape")
    file = write(tmp_path / "x.parquet", [Row(key, 0), Row("\u00fc\n'\"", 1)])
    back = list(iter_rows(file, ["key", "key_bytes"]))
    assert [dataset_rows.original_key(one) for one in back] == [key, "\u00fc\n'\""]
    assert back[0]["key"] == "caf\\xe9"
