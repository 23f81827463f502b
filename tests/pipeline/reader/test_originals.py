"""Originals that are stored packed: every way of reading returns them unpacked."""

import io
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from codec.errors import MissingPackageError
from codec.images.files import read_image
from pipeline.dataset.data_file import DamagedDataError, UnknownKeyError
from pipeline.dataset.rows import iter_rows, schema
from pipeline.loading.images import StrataImages
from pipeline.loading.ray_data import StrataDatasource
from pipeline.reader.dataset import Dataset, open_dataset
from pipeline.reader.rows import EVERY_ROW
from tests.pipeline.conftest import Make
from tests.pipeline.makers import picture, png, write_tar


def jpeg(seed: int, mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    smooth = np.asarray(Image.fromarray(picture(seed)).resize((160, 120), Image.Resampling.BICUBIC))
    Image.fromarray(smooth).convert(mode).save(out, "JPEG", quality=85, **options)
    return out.getvalue()


CUT = jpeg(3)[:-400]
FILES = {
    "a.jpg": jpeg(0),
    "b.jpeg": jpeg(1, progressive=True),
    "c.jpg": jpeg(2, "CMYK"),
    "d.png": png(5),
    "e.jpg": CUT,
    "f.jpg": jpeg(4),
}
PACKED = {"a", "b", "e", "f"}


@pytest.fixture
def dataset(make_dataset: Make, tmp_path: Path) -> Dataset:
    """Pictures, a broken one among them, and two with one key; all files are kept."""
    files = [*FILES.items(), ("twice.jpg", jpeg(6)), ("x.txt", b"x"), ("twice.jpg", jpeg(7))]
    tar = write_tar(tmp_path / "a.tar", files)
    return make_dataset([str(tar)], keep_original="always", layers=2)


def by_key() -> dict[str, bytes]:
    return {name.split(".")[0]: data for name, data in FILES.items()}


def test_what_is_stored(dataset: Dataset) -> None:
    (file,) = dataset.files
    rows = list(iter_rows(dataset.open(file).parquet, schema(2).names))
    assert {row["key"] for row in rows if row["original_packing"] == "lepton"} == PACKED
    stored = {row["key"]: len(row["original"]) for row in rows if row["original"] is not None}
    for key, data in by_key().items():
        assert stored[key] < len(data) if key in PACKED else stored[key] == len(data)
        assert next(row for row in rows if row["key"] == key)["source_bytes"] == len(data)
    good = [row for row in rows if row["status"] == "ok"]
    kept = sum(len(row["original"]) for row in good)
    streams = sum(row["cumulative_bytes"][-1] for row in good)
    assert file.record["stream_bytes"] == kept + streams  # what is stored counts
    assert file.record["picture_bytes"] == sum(row["source_bytes"] for row in good)


@pytest.mark.parametrize("index", [True, False])
def test_every_reader_gives_the_file(dataset: Dataset, index: bool) -> None:
    expected = {key: data for key, data in by_key().items() if key != "e"}
    if not index:
        shutil.rmtree(Path(dataset.url) / "index")
        dataset = open_dataset(dataset.url)
    with nullcontext() if index else pytest.warns(RuntimeWarning, match="without it"):
        found = {key: dataset.original(key) for key in expected}
    assert found == expected
    columns = ["original"]
    fetched = dataset.fetch(expected, 1, columns=columns)
    assert {one.key: one.extra for one in fetched} == {k: {"original": v} for k, v in found.items()}
    assert {one.key: one.extra["original"] for one in dataset.read(1, columns=columns)} == expected
    (batch,) = dataset.batches(1, columns=["original_packing", "original"])
    assert batch.schema.names[:2] == ["original_packing", "original"]
    assert dict(zip(batch["key"].to_pylist(), batch["original"].to_pylist(), strict=True)) == found
    assert batch["original_packing"].to_pylist() == [
        "lepton" if key in PACKED else None for key in expected
    ]
    assert dataset.metadata("a", ["original"]) == {
        "key": "a",
        "width": 160,
        "height": 120,
        "original": expected["a"],
    }
    assert dataset.record("b", 1, ["original"]).extra == {"original": expected["b"]}


def test_samples_that_are_no_pictures_have_files_too(dataset: Dataset) -> None:
    assert dataset.original("e") == CUT
    assert dataset.original("twice") == jpeg(6)  # it was not taken apart: the first of both
    assert dataset.original("x") is None
    with pytest.raises(UnknownKeyError, match="'nobody'"):
        dataset.original("nobody")


def test_pictures_are_made_of_packed_originals(make_dataset: Make, tmp_path: Path) -> None:
    """Streams that would be larger are cut short, and the original stands in for the rest."""
    tar = write_tar(tmp_path / "a.tar", [("a.jpg", jpeg(0)), ("b.jpg", jpeg(1))])
    dataset = make_dataset([str(tar)], keep_original="larger")
    shown = {key: read_image(jpeg(n)).rgb for n, key in enumerate("ab")}
    for key, expected in shown.items():
        assert dataset.record(key).encoded.num_layers < 4, "the test needs a stream that is short"
        assert (dataset.image(key) == expected).all()
    for sample in StrataImages(dataset.url):
        assert (sample["image"].numpy() == shown[sample["key"]]).all()
    source = StrataDatasource(dataset, 4, (), EVERY_ROW)
    (table,) = [table for task in source.get_read_tasks(1) for table in task()]
    assert pa.table(table)["original"].to_pylist() == [jpeg(0), jpeg(1)]
    assert "original_packing" not in table.column_names


def test_without_the_package(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lepton_jpeg_python", None)
    assert dataset.original("c") == FILES["c.jpg"]
    assert dataset.original("d") == FILES["d.png"]
    assert dataset.image("a", 1).shape == (120, 160, 3)
    for read in (
        lambda: dataset.original("a"),
        lambda: dataset.original("e"),
        lambda: list(dataset.read(1, columns=["original"])),
        lambda: list(dataset.fetch(["a"], 1, columns=["original"])),
    ):
        with pytest.raises(MissingPackageError, match="lepton_jpeg_python is not installed"):
            read()


def test_a_packed_file_that_cannot_be_unpacked_is_named(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lepton_jpeg_python

    def refuse(_: bytes) -> bytes:
        raise RuntimeError("Decompression failed: StreamInconsistent\n at line 1")

    monkeypatch.setattr(lepton_jpeg_python, "decompress_bytes", refuse)
    with pytest.raises(DamagedDataError, match=r"'a': the packed .* StreamInconsistent$") as found:
        dataset.original("a")
    assert found.value.key == "a"
