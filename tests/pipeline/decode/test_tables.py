"""Decoding to Parquet: other programs can read it, and nothing is lost."""

import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import polars
import pyarrow.parquet as pq
import pytest

from codec.images.files import read_image
from pipeline.decode.job import DecodeOptions, decode
from pipeline.decode.tables import TableTarget
from pipeline.reader.dataset import Dataset
from pipeline.sources import folder as folder_module
from tests.pipeline.conftest import Make
from tests.pipeline.makers import picture, png, samples, write_tar

pytestmark = pytest.mark.usefixtures("without_ray")


@pytest.fixture
def dataset(make_dataset: Make, tmp_path: Path) -> Dataset:
    x = [*samples(5), ("t.png", png(50)), ("t.txt", "größer".encode()), ("t.npy", b"\xff\0")]
    y = [*samples(4, 10), ("u.png", png(51)), ("u.cls", b"007"), ("u.json", b"\xff")]
    return make_dataset([str(write_tar(tmp_path / f"{n}.tar", f)) for n, f in (("x", x), ("y", y))])


def run(dataset: Dataset, output: Path, **options: Any) -> Any:
    return decode(DecodeOptions(dataset.url, str(output), format="parquet", **options))


def rows_of(output: Path) -> dict[str, dict[str, Any]]:
    tables = [pq.read_table(path).to_pylist() for path in sorted(output.glob("*.parquet"))]
    return {row["key"]: row for rows in tables for row in rows}


def test_each_field_is_a_column_and_none_is_lost(dataset: Dataset, tmp_path: Path) -> None:
    assert run(dataset, tmp_path / "out").exit_code == 0
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 11
    for number in range(5):
        row = rows[f"s{number:04d}"]
        np.testing.assert_array_equal(read_image(row["image"]["bytes"]).rgb, picture(number))
        assert row["image"]["path"] == f"s{number:04d}.png"
        assert (json.loads(row["json"]), row["cls"]) == ({"n": number}, number)
        assert (row["txt"], row["npy"], row["other_fields"]) == (None, None, [])
    assert (rows["t"]["txt"], rows["t"]["npy"]) == ("größer", b"\xff\0")
    # What is no number or no text stays what it was.
    assert rows["u"]["other_fields"] == [
        {"name": "cls", "data": b"007"},
        {"name": "json", "data": b"\xff"},
    ]


def test_other_programs_show_it(dataset: Dataset, tmp_path: Path) -> None:
    run(dataset, tmp_path / "out", image_format="webp", image_quality="lossless")
    files = sorted(map(str, (tmp_path / "out").glob("*.parquet")))
    loaded = datasets.load_dataset(
        "parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded.features["cls"] == datasets.Value("int64")
    shown = {row["key"]: row for row in loaded}
    np.testing.assert_array_equal(np.asarray(shown["s0003"]["image"]), picture(3))
    assert shown["s0003"]["image"].format == "WEBP"
    frame = polars.read_parquet(files)
    assert frame.filter(polars.col("cls") == 3)["key"].to_list() == ["s0003", "s0013"]
    found = duckdb.sql(f"select key, octet_length(image.bytes) from read_parquet({files}) limit 20")
    assert all(size > 0 for _, size in found.fetchall())


def test_the_metadata_are_what_hugging_face_writes(tmp_path: Path) -> None:
    told = {"key": ["a"], "image": [{"bytes": png(), "path": "a.png"}], "cls": [1], "txt": ["x"]}
    features = datasets.Features(
        key=datasets.Value("string"),
        image=datasets.Image(),
        cls=datasets.Value("int64"),
        txt=datasets.Value("string"),
        other_fields=[{"name": datasets.Value("string"), "data": datasets.Value("binary")}],
    )
    theirs = datasets.Dataset.from_dict({**told, "other_fields": [[]]}, features=features)
    theirs.to_parquet(str(tmp_path / "theirs.parquet"))
    TableTarget(tmp_path / "ours.parquet", ["cls", "txt"]).close()
    ours, schema = (pq.read_schema(tmp_path / f"{one}.parquet") for one in ("ours", "theirs"))
    assert str(ours.remove_metadata()) == str(schema.remove_metadata())
    assert ours.metadata == schema.metadata


def test_only_what_is_missing_is_written_again(
    dataset: Dataset, make_dataset: Make, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run(dataset, output)
    files = sorted(output.glob("*.parquet"))
    before = [path.read_bytes() for path in files]
    assert run(dataset, output).resumed == 2
    files[0].unlink()
    summary = run(dataset, output)
    assert summary.resumed == 1
    assert any("was lost and is written again" in note for note in summary.notes)
    assert [path.read_bytes() for path in files] == before
    more = write_tar(tmp_path / "z.tar", [("v.png", png(60)), ("v.new", b"n")])
    make_dataset([*(str(tmp_path / f"{n}.tar") for n in "xy"), str(more)])
    assert run(dataset, output).resumed == 2
    assert rows_of(output)["v"]["other_fields"] == [{"name": "new", "data": b"n"}]


def test_row_groups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.decode.tables.BYTES_PER_GROUP", 1000)
    target = TableTarget(tmp_path / "x.parquet", [])
    for number in range(300):
        target.write(f"k{number}", [("png", bytes(400 if number < 4 else 0))], "png")
    target.close()
    groups = pq.ParquetFile(tmp_path / "x.parquet").metadata
    assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [2, 256, 42]


def test_keys_with_dots_stay_apart_in_tars(make_dataset: Make, tmp_path: Path) -> None:
    """WebDataset would take pictures of one day for one sample."""
    photos = tmp_path / "photos"
    (photos / "v1.0").mkdir(parents=True)
    for number in range(3):
        (photos / f"v1.0/2024.01.0{number}.png").write_bytes(png(number))
    assert folder_module.PART_SAMPLES > 3
    dataset = make_dataset([str(photos)])
    decode(DecodeOptions(dataset.url, str(tmp_path / "out")))
    (path,) = (tmp_path / "out").glob("*.tar")
    with tarfile.open(path) as tar:
        assert tar.getnames() == [f"v1.0/2024%2E01%2E0{number}.png" for number in range(3)]
