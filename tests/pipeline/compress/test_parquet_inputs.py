"""Parquet files with pictures, and what img2dataset writes, through whole jobs."""

import hashlib
import json
import sys
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline import (
    CompressOptions,
    DecodeOptions,
    Summary,
    VerifyOptions,
    compress_dataset,
    decode_dataset,
    open_dataset,
    verify_dataset,
)
from pipeline.dataset.plan import PlanMismatchError
from pipeline.sources import parquet_limits
from pipeline.sources.tar_members import ShardError
from pipeline.stores.filesystems import StorageError
from pipeline.verify.job import Subset
from tests.pipeline.makers import ToyCodec, picture, png, samples, write_tar


@pytest.fixture(autouse=True)
def here(toy: ToyCodec, without_ray: None) -> None:
    """In this process, with the toy codec."""


def compress(tmp_path: Path, *inputs: Any, **options: Any) -> Summary:
    output = str(tmp_path / "archive")
    chosen = {"lossless": True, **options}
    return compress_dataset(CompressOptions(tuple(map(str, inputs)), output, "toy", **chosen))


def fields_of(tmp_path: Path) -> dict[str, dict[str, bytes]]:
    """The fields of every picture but its own."""
    archive = open_dataset(str(tmp_path / "archive"))
    return {
        record.key: {f["name"]: f["data"] for f in record.extra["fields"] if f["data"] is not None}
        for record in archive.read(columns=["fields"])
    }


def write(path: Path, table: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(table), path, **options)
    return path


def structs(count: int, name: str = "p{}.png") -> list[dict[str, Any]]:
    return [{"bytes": png(n), "path": name.format(n)} for n in range(count)]


def test_a_hugging_face_data_set_comes_back(tmp_path: Path) -> None:
    """As ``datasets`` itself writes it, in several row groups."""
    (tmp_path / "hub/data").mkdir(parents=True)
    told = {"image": structs(20), "label": [n % 3 for n in range(20)], "caption": ["ü"] * 20}
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["a", "b", "c"]),
        caption=datasets.Value("string"),
    )
    source = tmp_path / "hub/data/train-00000-of-00001.parquet"
    datasets.Dataset.from_dict(told, features=features).to_parquet(str(source), batch_size=7)
    (tmp_path / "hub/README.md").write_text("# card")
    summary = compress(tmp_path, tmp_path / "hub", keep_original="always")
    assert (summary.ok, summary.bad, summary.shards, summary.exit_code) == (20, 0, 1, 0)
    archive = open_dataset(str(tmp_path / "archive"))
    fields = fields_of(tmp_path)
    for number in range(20):
        np.testing.assert_array_equal(archive.image(f"p{number}"), picture(number))
        assert fields[f"p{number}"]["txt"] == "ü".encode()
        assert fields[f"p{number}"]["cls"] == str(number % 3).encode()
        assert json.loads(fields[f"p{number}"]["json"]) == {"label": number % 3, "caption": "ü"}
    assert compress(tmp_path, tmp_path / "hub", keep_original="always").resumed == 1
    options = DecodeOptions(str(tmp_path / "archive"), str(tmp_path / "out"), format="originals")
    assert decode_dataset(options).exit_code == 0
    with tarfile.open(tmp_path / "out/train-00000-of-00001.tar") as tar:
        assert tar.extractfile("p7.png").read() == png(7)  # type: ignore[union-attr]


def test_what_decoding_wrote_comes_in_as_it_was(tmp_path: Path) -> None:
    """With fields of every kind, and without a JSON around the JSON."""
    fields = [
        {"json": b'{"a": 1}', "txt": "\u00fc".encode(), "cls": b"7", "depth.bin": b"\xff\0"},
        {"json": b"no json", "txt": b"\xff", "cls": b"07"},
        {},
    ]
    tar = [(f"k{n}.png", png(n)) for n in range(3)]
    tar += [(f"k{n}.{name}", data) for n, one in enumerate(fields) for name, data in one.items()]
    archive = compress(tmp_path, write_tar(tmp_path / "x.tar", sorted(tar)))
    assert archive.exit_code == 0
    wanted = fields_of(tmp_path)
    assert wanted == {f"k{n}": one for n, one in enumerate(fields)}
    tables, again = tmp_path / "tables", tmp_path / "again"
    decode_dataset(DecodeOptions(str(tmp_path / "archive"), str(tables), format="parquet"))
    again.mkdir()
    assert compress(again, tables).ok == 3
    assert fields_of(again) == wanted


def test_plain_bytes_columns_and_keys_can_be_named(tmp_path: Path) -> None:
    table = {
        "first": [png(n) for n in range(3)],
        "second": [png(n + 10) for n in range(3)],
        "name": ["x", "y", "z"],
        "when": pa.array([1, 2, None], pa.timestamp("s")),
    }
    source = write(tmp_path / "in" / "t.parquet", table)
    with pytest.raises(
        StorageError, match=r"no column holds pictures.*name it with --image-column"
    ):
        compress(tmp_path / "a", source.parent)
    with pytest.raises(ShardError, match=r"t\.parquet: no column holds pictures"):
        compress(tmp_path / "a", source)
    options = {"image_column": "second", "key_column": "name"}
    compress(tmp_path / "b", source, **options)
    archive = open_dataset(str(tmp_path / "b/archive"))
    np.testing.assert_array_equal(archive.image("y"), picture(11))
    fields = fields_of(tmp_path / "b")
    assert fields["x"]["first.png"] == png(0)
    assert json.loads(fields["x"]["json"]) == {"name": "x", "when": "1970-01-01 00:00:01"}
    assert archive.parameters["columns"] == {"image": "second", "key": "name"}
    with pytest.raises(Exception, match="--image-column is second there"):
        compress(tmp_path / "b", source)
    with pytest.raises(ShardError, match=r"none: no such column; it has first .binary"):
        compress(tmp_path / "c", source, image_column="none")


def test_keys_are_rows_where_names_repeat(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"image": structs(3, "image.png")})
    write(tmp_path / "b.parquet", {"image": [png(n) for n in range(3)]})
    compress(tmp_path, tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert sorted(fields_of(tmp_path)) == [f"{x}/00000{n}" for x in "ab" for n in range(3)]


def test_rows_without_a_picture_are_told(tmp_path: Path) -> None:
    rows = [
        *structs(2),
        None,
        {"bytes": None, "path": "/data/far.jpg"},
        {"bytes": b"", "path": "e"},
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    source = write(tmp_path / "a.parquet", {"image": pa.array(rows, kind)})
    summary = compress(tmp_path, source)
    assert (summary.ok, summary.bad, summary.filtered) == (2, 2, 1)
    reasons = " ".join(problem.reason for problem in summary.problems)
    assert "which only names a file: '/data/far.jpg'" in reasons
    assert summary.reasons["its picture is null in the table"] == 1


def test_a_damaged_file_is_repaired_from_its_table(tmp_path: Path) -> None:
    source = write(tmp_path / "a.parquet", {"pixels": structs(9), "n": list(range(9))})
    compress(tmp_path, source, image_column="pixels")
    (path,) = (tmp_path / "archive/data").iterdir()
    path.write_bytes(path.read_bytes()[:-400])
    options = VerifyOptions(str(tmp_path / "archive"), read=Subset(), repair=True)
    assert verify_dataset(options).exit_code == 0
    assert len(fields_of(tmp_path)) == 9


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:4] + bytes([data[4] ^ 255]) + data[5:]


@pytest.mark.parametrize("harm", [cut, flipped, lambda data: data[:-9] + b"\xff" * 9])
def test_a_damaged_table_is_a_failed_shard(tmp_path: Path, harm: Any) -> None:
    bad = write(tmp_path / "bad.parquet", {"image": structs(3)}, use_dictionary=False)
    compress(tmp_path / "good", bad)
    bad.write_bytes(harm(bad.read_bytes()))
    with pytest.raises(ShardError, match=r"bad\.parquet: damaged, or no Parquet file"):
        compress(tmp_path, bad)


def test_tables_that_unpack_to_too_much_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = {"image": [bytes(9 << 20)] * 9}
    plain = {"compression": "NONE", "use_dictionary": False}
    compress(tmp_path, write(tmp_path / "z.parquet", zeros, **plain))
    for dictionary in (True, False):
        packed = write(
            tmp_path / f"{dictionary}.parquet", zeros, compression="zstd", use_dictionary=dictionary
        )
        with pytest.raises(ShardError, match="unpacks to more than"):
            compress(tmp_path, packed)
    one = write(tmp_path / "b.parquet", {"image": [png()] * 9})
    monkeypatch.setattr(parquet_limits, "MAX_SHARED_BYTES", 1000)
    with pytest.raises(ShardError, match="at most 1000 are read"):
        compress(tmp_path, one)
    monkeypatch.setattr(parquet_limits, "MAX_ROWS", 5)
    with pytest.raises(ShardError, match="9 rows, more than 5"):
        compress(tmp_path, one)


# -- img2dataset -----------------------------------------------------------------------------

META = {"url": "http://x/1.jpg", "width": 32, "status": "success", "exif": "{}"}


def img2dataset(folder: Path, output: str) -> Path:
    """Two shards of three pictures, as img2dataset's writers lay them out."""
    folder.mkdir()
    for shard in range(2):
        rows = []
        for n in range(3):
            key = f"{shard:05d}{n:04d}"
            rows.append({"key": key, "caption": f"picture {n}", **META})
        stem = folder / f"{shard:05d}"
        pictures = [png(10 * shard + n) for n in range(3)]
        files = []
        for row, data in zip(rows, pictures, strict=True):
            files.append((f"{row['key']}.png", data))
            files.append((f"{row['key']}.txt", str(row["caption"]).encode()))
            files.append((f"{row['key']}.json", json.dumps(row).encode()))
        if output == "webdataset":
            write_tar(stem.with_suffix(".tar"), files)
        elif output == "files":
            stem.mkdir()
            for name, data in files:
                (stem / name).write_bytes(data)
        table = pa.Table.from_pylist(rows)
        if output == "parquet":
            failed = [{"key": f"{shard:05d}0009", "status": "failed_to_download"}]
            table = pa.Table.from_pylist([*rows, *failed], table.schema)
            table = table.append_column("png", [[*pictures, None]])
            table = table.append_column("txt", table.column("caption"))
        pq.write_table(table, stem.with_suffix(".parquet"))
        Path(f"{stem}_stats.json").write_text(json.dumps({"count": 3}))
    return folder


@pytest.mark.parametrize("output", ["webdataset", "files", "parquet"])
def test_what_img2dataset_writes_comes_in_as_it_is(tmp_path: Path, output: str) -> None:
    summary = compress(tmp_path, img2dataset(tmp_path / "in", output))
    filtered = 2 if output == "parquet" else 0  # pictures that could not be downloaded
    assert (summary.ok, summary.bad, summary.filtered, summary.exit_code) == (6, 0, filtered, 0)
    fields = fields_of(tmp_path)
    folder = "00001/" if output == "files" else ""
    found = fields[f"{folder}000010002"]
    assert found["txt"] == b"picture 2"
    assert json.loads(found["json"])["url"] == META["url"]
    archive = open_dataset(str(tmp_path / "archive"))
    np.testing.assert_array_equal(archive.image(f"{folder}000010002"), picture(12))
    (note,) = [note for note in summary.notes if "only describe them" in note]
    assert "00000_stats.json" in note
    assert ("00000.parquet" in note) == (output != "parquet")


def test_tars_beside_tables_of_pictures_must_be_told_apart(tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    write_tar(inputs / "x.tar", samples(2))
    write(inputs / "y.parquet", {"image": structs(3)})
    with pytest.raises(StorageError, match="1 tars and 1 Parquet files: choose with"):
        compress(tmp_path / "out", inputs)
    assert compress(tmp_path / "a", inputs, input_format="parquet").ok == 3
    assert compress(tmp_path / "b", inputs, input_format="tars").ok == 2


class Hub(MemoryFileSystem):
    """``hub://``: as Hugging Face's file system, whose versions are Git's ids of files."""

    protocol = "hub"
    store: ClassVar[dict[str, Any]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("hub://", "memory://")))

    def _with_id(self, entry: dict[str, Any]) -> dict[str, Any]:
        if entry["type"] == "file":
            data = self.store[entry["name"]].getvalue()
            entry = {"name": entry["name"], "type": "file", "size": len(data)}
            entry["blob_id"] = hashlib.sha1(data).hexdigest()
        return entry

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        return self._with_id(super().info(path, **options))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        found = [self._with_id(one) for one in super().ls(path, detail=True, **options)]
        return found if detail else [one["name"] for one in found]


def test_a_data_set_of_a_hub_is_read_there(tmp_path: Path) -> None:
    fsspec.register_implementation("hub", Hub, clobber=True)
    fs = Hub()
    table = write(tmp_path / "t.parquet", {"image": structs(3)}).read_bytes()
    fs.pipe_file("/datasets/org/name/data/train-0.parquet", table)
    fs.pipe_file("/datasets/org/name/README.md", b"# card")
    fs.pipe_file("/datasets/org/name/.gitattributes", b"")
    assert compress(tmp_path, "hub://datasets/org/name").ok == 3
    (file,) = open_dataset(str(tmp_path / "archive")).files
    assert file.record["source"]["etag"] == hashlib.sha1(table).hexdigest()
    assert compress(tmp_path, "hub://datasets/org/name").resumed == 1
    fs.pipe_file("/datasets/org/name/data/train-0.parquet", table + b" ")
    with pytest.raises(PlanMismatchError, match="have changed"):
        compress(tmp_path, "hub://datasets/org/name")


def test_what_a_hub_needs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    known = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(known, "hf", raising=False)
    with pytest.raises(StorageError, match="pip install huggingface_hub"):
        compress(tmp_path, "hf://datasets/org/name")
