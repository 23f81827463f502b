"""What a plan, a manifest and an index say is looked at before anything is done with it."""

import contextlib
import json
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codec import UnknownModelError
from codec.errors import InvalidModelError, StrataError
from pipeline import open_dataset
from pipeline.dataset.data_file import DatasetError
from pipeline.dataset.index import SCHEMA
from pipeline.dataset.index_writer import index_facts, write_index
from pipeline.dataset.layout import PLAN_NAME
from pipeline.dataset.models import load_model
from pipeline.reader.dataset import Dataset
from tests.pipeline.streams import rows, write_dataset

KEYS = ["a", "b", "c"]
LAYERS = (20, 0, 70)
MANIFEST = "manifest-000001.json"

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(str(tmp_path / "set"), [list(rows(KEYS, LAYERS, 0))], len(LAYERS))
    return tmp_path / "set"


def edit(path: Path, change: Change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refused(folder: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        open_dataset(str(folder))
    return str(caught.value)


@pytest.mark.parametrize("name", [PLAN_NAME, MANIFEST])
def test_newer_formats_are_refused_in_words(folder: Path, name: str) -> None:
    edit(folder / name, lambda it: it.get("parameters", it).update(format=2))
    assert "has format 2, this release reads 1" in refused(folder)


def test_a_newer_schema_is_refused_in_words(folder: Path) -> None:
    edit(folder / PLAN_NAME, lambda plan: plan["parameters"].update(schema=3))
    assert "has schema 3, this release reads 2" in refused(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": -1},
        {"layers": 1 << 40},
        {"layers": "3"},
        {"layers": True},
        {"model_id": "../../../etc/model"},
        {"model_id": 7},
        {"max_pixels": -1},
    ],
)
def test_plans_that_say_what_none_can(folder: Path, change: dict[str, Any]) -> None:
    edit(folder / PLAN_NAME, lambda plan: plan["parameters"].update(change))
    assert PLAN_NAME in refused(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../elsewhere.parquet"},
        {"path": "/etc/passwd"},
        {"name": "../x", "path": "data/../x.parquet"},
        {"name": ".hidden", "path": "data/.hidden.parquet"},
        {"name": 5},
        {"bytes": -1},
        {"bytes": 1 << 80},
        {"bytes": 20.0},
        {"footer_bytes": -20},
        {"footer_bytes": 1 << 40},
        {"footer_bytes": 3},
        {"rows": -3},
        {"ok": 1 << 40},
        {"ok": 4},
        {"footer_crc32": "x"},
    ],
)
def test_manifests_that_say_what_none_can(folder: Path, change: dict[str, Any]) -> None:
    edit(folder / MANIFEST, lambda manifest: manifest["files"][0].update(change))
    assert f"{MANIFEST} is damaged" in refused(folder)


@pytest.mark.parametrize(
    "change",
    [{"path": "../index.parquet"}, {"bytes": -1}, {"footer_bytes": 1 << 40}, {"key_min": 3}],
)
def test_manifests_with_impossible_indexes(folder: Path, change: dict[str, Any]) -> None:
    edit(folder / MANIFEST, lambda manifest: manifest["files"][0]["index"].update(change))
    assert f"{MANIFEST} is damaged" in refused(folder)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "7", "{}", '{"format": 1, "files": 3}'])
def test_manifests_that_are_none(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_text(content)
    assert f"{MANIFEST} is damaged" in refused(folder)


def replace_index(folder: Path, change: Callable[[pa.Table], pa.Table]) -> Dataset:
    """The dataset with another index, which manifest and footer agree upon."""
    entry = json.loads((folder / MANIFEST).read_text())["files"][0]
    path = folder / entry["index"]["path"]
    table = change(pq.read_table(path))
    path.unlink()
    write_index(table, path)
    told = index_facts(entry["index"]["path"], path, table)
    edit(folder / MANIFEST, lambda manifest: manifest["files"][0]["index"].update(told))
    return open_dataset(str(folder))


def with_column(name: str, values: list[Any]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        column = pa.array(values, SCHEMA.field(name).type)
        return table.set_column(table.column_names.index(name), name, column)

    return change


HOSTILE = [
    ("row", [0, -1, 7]),
    ("row_group", [-1, -1, 1 << 20]),
    ("width", [1, 1, 1]),
    ("height", [-5, 0, 1 << 30]),
    ("header", [b"", b"\x10", b"\xff" * 8]),
    ("offsets", [[-1, -1, -1], [1 << 60] * 3, [0] * 99]),
    ("lengths", [[-1, 0, 5], [(1 << 31) - 1] * 3, [1]]),
    ("crc32s", [[], [1], [1] * 64]),
    ("original", [{"offset": o, "length": -1, "crc32": 0} for o in (-1, 1 << 60, 4)]),
]


@pytest.mark.parametrize(("name", "values"), HOSTILE)
def test_a_hostile_index_is_done_without(folder: Path, name: str, values: list[Any]) -> None:
    expected = {one.key: one.encoded for one in open_dataset(str(folder)).fetch(KEYS)}
    dataset = replace_index(folder, with_column(name, values))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert {one.key: one.encoded for one in dataset.fetch(KEYS)} == expected
    assert any("is read without it" in str(one.message) for one in said)


def test_a_newer_index_is_done_without_and_said(folder: Path) -> None:
    newer = {b"strata_index": b"2"}
    dataset = replace_index(folder, lambda table: table.replace_schema_metadata(newer))
    with pytest.warns(RuntimeWarning, match="has format 2, this release reads 1"):
        assert len(list(dataset.fetch(KEYS))) == 3


def test_a_model_is_held_against_its_hash_before_it_is_parsed(folder: Path) -> None:
    model_id = "0" * 64
    with pytest.raises(UnknownModelError):
        load_model(str(folder), model_id, "cpu")
    path = folder / "models" / model_id / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"whatever this is")
    with pytest.raises(InvalidModelError, match="its sha256 is"):
        load_model(str(folder), model_id, "cpu")


def test_a_row_group_that_claims_too_much_is_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.dataset.parquet.MAX_GROUP_BYTES", 100)
    with pytest.raises(StrataError, match="claims to hold 622 bytes, more than 100"):
        list(open_dataset(str(folder)).read())


ROWS = [
    ("width", [-5, 0, 1 << 30]),
    ("header", [b"", b"\x10", b"\xff" * 40]),
    ("layers", [-1, 3000, None]),
    ("cumulative_bytes", [[-5, 1, 2], [1 << 62] * 3, None]),
    ("cumulative_bytes", [[1] * 99, [], [None, None, None]]),
    ("psnr", [[float("nan")], [], None]),
    ("key", ["a", "a", None]),
    ("status", ["?", None, "bad"]),
    ("layer_01", [b"", None, b"x" * 99]),
]


@pytest.mark.parametrize(("name", "values"), ROWS)
def test_hostile_rows_are_read_or_refused_in_words(
    folder: Path, name: str, values: list[Any]
) -> None:
    entry = json.loads((folder / MANIFEST).read_text())["files"][0]
    path = folder / entry["path"]
    table = pq.read_table(path)
    kind = table.schema.field(name).type
    hostile = table.set_column(
        table.column_names.index(name), name, pa.array(values, kind)
    ).replace_schema_metadata(table.schema.metadata)
    path.unlink()
    pq.write_table(hostile, path, compression="NONE", use_dictionary=False)
    data = path.read_bytes()
    footer = pq.read_metadata(path).serialized_size + 8
    crc = zlib.crc32(data[-footer:])
    told = {"bytes": len(data), "footer_bytes": footer, "footer_crc32": crc, "index": None}
    edit(folder / MANIFEST, lambda manifest: manifest["files"][0].update(told))
    dataset = open_dataset(str(folder))
    ways: list[Callable[[], object]] = [
        lambda: list(dataset.read()),
        lambda: list(dataset.fetch(KEYS, missing="skip")),
        lambda: list(dataset.fetch(["a"], 1, columns=["alpha", "original"])),
        lambda: dataset.page(search="a"),
        lambda: dataset.page(search="a", captions=True),
        lambda: dataset.record("b"),
        lambda: list(dataset.problems()),
        lambda: [one.encoded.info for one in dataset.read()],
    ]
    for way in ways:
        with contextlib.suppress(StrataError):
            way()
