"""Garbage is what nothing needs any more; other files stay, whatever their names."""

import os
import time
from pathlib import Path

import pytest

from pipeline import DatasetError, open_dataset
from pipeline.dataset.layout import PLAN_NAME
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.manifest_writer import publish_manifest
from pipeline.dataset.plan import Plan
from pipeline.reader.dataset import Dataset
from pipeline.stores.store import Store
from pipeline.verify.garbage import Garbage, find_garbage, remove_garbage
from tests.pipeline.conftest import Make
from tests.pipeline.makers import samples, write_tar

HOUR = 3600.0
ORPHAN = "data/lost-0123456789ab.parquet"
LOST_INDEX = "index/lost-0123456789ab.parquet"


@pytest.fixture
def dataset(make_dataset: Make, tmp_path: Path) -> Dataset:
    write_tar(tmp_path / "a.tar", samples(2))
    write_tar(tmp_path / "b.tar", samples(2, 10))
    return make_dataset([str(tmp_path / "a.tar"), str(tmp_path / "b.tar")])


def everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def age(root: Path, seconds: float) -> None:
    for path in root.rglob("*"):
        os.utime(path, times=(time.time() - seconds,) * 2)


def replace_first(dataset: Dataset) -> str:
    """Publish and record the next generation of the first file. Returns its name."""
    file = dataset.files[0]
    base, generation = file.record["base"], file.record["generation"] + 1
    name = f"{base}.{generation}"
    index = file.record["index"]
    dataset.store.create(f"data/{name}.parquet", dataset.store.read(file.path))
    dataset.store.create(f"index/{name}.parquet", dataset.store.read(index["path"]))
    record = {**file.record, "index": {**index, "path": f"index/{name}.parquet"}}
    Ledger(dataset.store, dataset.fingerprint).commit(name, record)
    return name


def publish(dataset: Dataset) -> Dataset:
    done, _ = Ledger(dataset.store, dataset.fingerprint).completed("data", ".parquet")
    publish_manifest(dataset.store, Plan(PLAN_NAME, dataset.parameters), done)
    return open_dataset(dataset.url)


def test_what_killed_jobs_leave(dataset: Dataset) -> None:
    root = Path(dataset.url)
    before = everything(root)
    (root / ORPHAN).write_bytes(b"12345")
    (root / LOST_INDEX).write_bytes(b"123")
    part = f".{'0' * 32}.part"
    parts = {
        part,
        f"data/{part}",
        f"index/{part}",
        f"commits/{part}",
        f"models/{dataset.model_id}/{part}",
    }
    for name in parts:
        (root / name).write_bytes(b"123")
    foreign = {
        "data/notes.txt",
        "index/notes.txt",
        "data/mine.parquet",
        "other/x-0123456789ab.parquet",
        "x.part",
    }
    for name in foreign:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    age(root, 2 * HOUR)
    assert find_garbage(dataset.store, 3 * HOUR) == []
    found = find_garbage(dataset.store, HOUR)
    assert {item.path for item in found} == {ORPHAN, LOST_INDEX, *parts}
    (orphan,) = (item for item in found if item.path == ORPHAN)
    assert (orphan.bytes, orphan.reason) == (5, "no commit record")
    assert orphan.modified == pytest.approx(time.time() - 2 * HOUR, abs=60)
    remove_garbage(dataset.store, found)
    assert everything(root) == before | foreign
    assert find_garbage(dataset.store, HOUR) == []


def test_what_has_been_replaced(dataset: Dataset) -> None:
    root, store = Path(dataset.url), dataset.store
    old = dataset.files[0].name
    new = replace_first(dataset)
    age(root, 2 * HOUR)
    assert find_garbage(store, HOUR) == []  # the manifest does not list the new one yet
    dataset = publish(dataset)
    assert dataset.files[0].name == new
    assert find_garbage(store, HOUR) == []  # readers may have the manifest before this one open
    age(root, 2 * HOUR)
    found = find_garbage(store, HOUR)
    assert [item.path for item in found] == [
        f"commits/{old}.json",
        f"index/{old}.parquet",
        f"data/{old}.parquet",
    ]
    remove_garbage(store, found)
    again = publish(dataset)
    assert [file.name for file in again.files] == [file.name for file in dataset.files]
    assert len(list(again.read(1))) == 4
    assert everything(root).isdisjoint(item.path for item in found)
    newest = replace_first(again)
    age(root, 2 * HOUR)
    assert find_garbage(store, HOUR) == []
    assert publish(again).files[0].name == newest


def test_what_a_manifest_lists_is_never_garbage(dataset: Dataset) -> None:
    """Even without its record: the next job will write that again, or replace the file."""
    for file in dataset.files:
        dataset.store.remove(f"commits/{file.name}.json")
    age(Path(dataset.url), 2 * HOUR)
    assert find_garbage(dataset.store, HOUR) == []


def test_a_file_that_was_adopted_in_the_meantime(dataset: Dataset) -> None:
    (Path(dataset.url) / ORPHAN).write_bytes(b"12345")
    (Path(dataset.url) / LOST_INDEX).write_bytes(b"12345")
    age(Path(dataset.url), 2 * HOUR)
    found = find_garbage(dataset.store, HOUR)
    record = {**dataset.files[0].record, "bytes": 5}
    Ledger(dataset.store, dataset.fingerprint).commit("lost-0123456789ab", record)
    remove_garbage(dataset.store, found)
    assert dataset.store.exists(ORPHAN)
    assert dataset.store.exists(LOST_INDEX)


def test_nothing_is_removed_where_no_dataset_is(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / ORPHAN).touch()
    with pytest.raises(DatasetError, match=r"dataset\.json is missing"):
        find_garbage(Store(str(tmp_path)), 0)


def test_removing_twice(dataset: Dataset) -> None:
    gone = Garbage(ORPHAN, 5, "no commit record", 0.0)
    remove_garbage(dataset.store, [gone, gone])
