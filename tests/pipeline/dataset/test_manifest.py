"""Manifests of many data files: parts that are shared, read when needed, and trusted."""

import gzip
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import DatasetError, open_dataset
from pipeline.dataset import manifest_writer
from pipeline.dataset.layout import MANIFESTS, manifest_name, manifest_number, paths_in
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.manifest import DataFiles, Manifest, latest_manifest, open_manifest
from pipeline.dataset.manifest_writer import publish_manifest
from pipeline.dataset.plan import Plan
from pipeline.dataset.records import Records
from pipeline.manage.info import info_dataset
from pipeline.reader.dataset import Dataset
from pipeline.reader.key_map import publish_key_map
from pipeline.stores.store import Store
from pipeline.verify.checks import read_manifest
from pipeline.verify.garbage import find_garbage, remove_garbage
from tests.pipeline.conftest import Make
from tests.pipeline.counting import CountingFileSystem
from tests.pipeline.makers import samples, write_tar
from tests.pipeline.streams import rows, write_dataset

FILES = 40


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_writer, "PART_FILES", 4)
    monkeypatch.setattr(manifest_writer, "LONGEST_PART", 8)
    monkeypatch.setattr(manifest_writer, "INLINE_FILES", 4)


def entry(number: int, **changes: Any) -> dict[str, Any]:
    """The record of a data file whose keys are its own."""
    counts = {"rows": 3, "ok": 3, "bad": 0, "filtered": 0, "bytes": 1000, "footer_bytes": 100}
    name = f"shard-{number:012x}"
    index = {"bytes": 500, "footer_bytes": 50, "footer_crc32": 7, "path": f"index/{name}.parquet"}
    index |= {"key_min": f"{number:04d}-a", "key_max": f"{number:04d}-z"}
    source = {"url": f"s3://in/{number:04d}.tar", "size": 9, "etag": "e"}
    return {**counts, "name": name, "source": source, "index": index, **changes}


def publish(store: Store, *numbers: int, **changes: Any) -> Manifest:
    records = {f"{n}": entry(n, **changes) for n in numbers}
    return open_manifest(store, publish_manifest(store, Plan("dataset.json", {"a": 1}), records))


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}")


def parts(store: Store) -> list[str]:
    return [part["path"] for part in json.loads(store.read(manifest_name(1)))["parts"]]


def test_all_files_in_order(store: Store) -> None:
    files = publish(store, *range(FILES)).files
    assert len(files.parts) > 5
    assert (len(files), files.ok) == (FILES, 3 * FILES)
    expected = [f"shard-{n:012x}" for n in range(FILES)]
    assert [file.name for file in files] == expected
    assert [files[n].name for n in range(-FILES, FILES)] == 2 * expected
    assert [file.number for file in files[7:31:3]] == [*range(7, 31, 3)]
    assert [files.index(file) for file in files] == [*range(FILES)]
    with pytest.raises(IndexError):
        files[FILES]
    assert files[5].record["source"]["url"] == "s3://in/0005.tar"
    assert files[5].record == {**entry(5), "path": files[5].path}
    again = DataFiles.of(files)
    assert [*again] == [*files]
    assert len(again.parts) == 1


def test_small_ones_have_no_parts(store: Store) -> None:
    manifest = publish(store, *range(4))
    assert [file.number for file in manifest.files] == [0, 1, 2, 3]
    assert not store.sizes(MANIFESTS)
    assert len(json.loads(store.read(manifest_name(1)))["files"]) == 4


def test_only_parts_that_may_have_a_key_are_read(tmp_path: Path) -> None:
    files = publish(Store(f"counting://{tmp_path.name}"), *range(FILES)).files
    CountingFileSystem.requests.clear()
    assert [file.number for file in files.having(["0011-b"])] == [11]
    assert len(CountingFileSystem.requests) == 1
    assert [file.number for file in files.having(["0011-zz"])] == []
    assert [file.number for file in files.having(["0003-c", "0029-c"])] == [3, 29]
    assert len(CountingFileSystem.requests) <= 3
    assert [file.number for file in files.having(["0011-b"])] == [11]  # kept


def test_files_without_an_index_may_have_any_key(store: Store) -> None:
    files = publish(store, *range(FILES), index=None).files
    assert [file.number for file in files.having(["x"])] == [*range(FILES)]


def test_one_file_more_changes_one_part(store: Store) -> None:
    before = publish(store, *range(0, FILES, 2))
    stored = set(store.sizes(MANIFESTS))
    after = publish(store, *range(0, FILES, 2), 15)
    assert after.number == 2
    assert len(set(store.sizes(MANIFESTS)) - stored) <= 2
    assert publish(store, *range(0, FILES, 2), 15).number == 2
    assert [file.number for file in before.files] == [*range(FILES // 2)]  # as it was
    assert open_manifest(store, 1).files.digest == before.files.digest != after.files.digest


def test_every_part_ends_somewhere(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no name says so."""
    monkeypatch.setattr(manifest_writer, "_ends_part", lambda name: False)
    manifest = publish(store, *range(FILES))
    assert [part.files for part in manifest.files.parts] == [8] * 5


def test_parts_of_large_entries_are_shorter(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers refuse parts above a size."""
    monkeypatch.setattr(manifest_writer, "_ends_part", lambda name: False)
    monkeypatch.setattr(manifest_writer, "PART_BYTES", 5000)
    large = {"problems": [["k" * 2000, "e"]]}
    manifest = publish(store, *range(FILES), **large)
    assert [part.files for part in manifest.files.parts] == [3] * 13 + [1]
    assert len([*manifest.files]) == FILES


def test_a_part_that_is_gone_is_written_by_the_next_job(store: Store) -> None:
    part = publish(store, *range(FILES)).files.parts[1]
    store.remove(part.path)
    manifest = publish(store, *range(FILES))
    assert (manifest.number, len([*manifest.files])) == (1, FILES)
    store.remove(part.path)
    manifest = publish(store, *range(FILES - 1))
    assert (manifest.number, len([*manifest.files])) == (2, FILES - 1)


def test_parts_that_were_removed_as_garbage_too_early(store: Store) -> None:
    """By a deletion that looked for garbage before the manifest that names them was there."""
    create = store.create

    def late(name: str, data: bytes) -> bool:
        if manifest_number(name):
            for path in paths_in(store, MANIFESTS):
                store.remove(path)
        return create(name, data)

    store.create = late  # type: ignore[method-assign]
    manifest = publish(store, *range(FILES))
    assert len([*manifest.files]) == FILES


def test_what_is_wrong_with_a_part_is_said(store: Store) -> None:
    files = publish(store, *range(FILES)).files
    path = files.parts[1].path
    sound = store.read(path)
    lines = gzip.decompress(sound)
    bomb = gzip.compress(bytes(1 << 27))
    other = gzip.compress(lines.replace(b'"bytes":1000', b'"bytes":1001', 1))  # sound, but changed
    for harm in (b"", sound[:-3], b"x" + sound, gzip.compress(lines[:-9]), bomb, other):
        store.remove(path)
        store.create(path, harm)
        with pytest.raises(DatasetError, match=rf"{path}: is damaged .*strata verify --repair"):
            list(open_manifest(store).files)
    store.remove(path)
    with pytest.raises(DatasetError, match=rf"{path}: .* gone: .*strata verify --repair"):
        list(open_manifest(store).files)
    assert next(iter(open_manifest(store).files[:1])).number == 0


@pytest.mark.parametrize("change", [{"key_min": "zz", "key_max": "zzz"}, {"ok": 0}])
def test_what_a_manifest_tells_of_its_parts_is_checked(
    store: Store, change: dict[str, Any]
) -> None:
    """Whoever trusts it would not find the pictures of that part."""
    manifest = publish(store, *range(FILES))
    told = json.loads(store.read(manifest_name(1)))
    told["parts"][1] |= change
    store.create(manifest_name(2), json.dumps(told).encode())
    found, problems = read_manifest(store, {"fingerprint": manifest.fingerprint}, 2)
    assert found is None
    assert "the manifest tells other pictures or keys of it" in problems[0]


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../../x"},
        {"path": 5},
        {"files": -1},
        {"ok": "3"},
        {"key_min": 3},
        {"files": 10**18},  # eight of them are more than a sequence can have
    ],
)
def test_hostile_parts(store: Store, change: dict[str, Any]) -> None:
    publish(store, *range(FILES))
    told = json.loads(store.read(manifest_name(1)))
    told["parts"][1] |= change
    store.create(manifest_name(2), json.dumps(told).encode())
    with pytest.raises(DatasetError, match=r"manifest-000002\.json is damaged"):
        open_manifest(store)


def test_records_pack_and_unpack() -> None:
    records = Records("f", {"x": {"name": "x", "ok": 1, "column_bytes": {"a": 1}}})
    assert records["x"] == {"name": "x", "ok": 1, "fingerprint": "f"}
    records["x"]["ok"] = 2  # of a copy
    records["y"] = {"name": "y", "ok": 0}
    assert [*records.where(lambda one: bool(one["ok"]))] == ["x"]
    assert records.named([("z", "y")])["z"]["name"] == "y"
    del records["x"]
    assert (len(records), "x" in records, "y" in records) == (1, False, True)
    records.clear()
    assert {**records} == {}


# -- a dataset ------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    shards = [
        rows([f"{n}/{key}" for n in (shard, 999)], (50,), shard)
        for shard, key in enumerate("abcdefghijkl")
    ]
    return write_dataset(str(tmp_path / "set"), shards, 1)


def read_records(store: Store) -> tuple[Records, list[str]]:
    """The records, and the names of those that were read one by one."""
    read: list[str] = []
    many = store.read_many

    def watched(names: Any, most: int) -> Any:
        read.extend(names := list(names))
        return many(names, most)

    store.read_many = watched  # type: ignore[method-assign]
    fingerprint = json.loads(store.read("dataset.json"))["fingerprint"]
    try:
        return Ledger(store, fingerprint).records(), read
    finally:
        del store.read_many


def age(dataset: Dataset, seconds: float) -> None:
    """Let all records be older."""
    for path in Path(dataset.url, "commits").iterdir():
        when = path.stat().st_mtime - seconds
        os.utime(path, (when, when))


def test_what_a_manifest_has_is_not_read_again(dataset: Dataset) -> None:
    store = dataset.store
    plan = Plan("dataset.json", dataset.parameters)
    every, read = read_records(store)
    assert len(read) == len(every) == 12  # younger than a minute before the last one
    age(dataset, 1000)
    late = Path(dataset.url, "commits", "000-000000000000.json")
    os.utime(late)
    number = publish_manifest(store, plan, Ledger(store, dataset.fingerprint).records())
    assert number == 1  # nothing new
    store.remove(manifest_name(1))
    assert publish_manifest(store, plan, Ledger(store, dataset.fingerprint).records()) == 1
    again, read = read_records(store)
    assert read == ["commits/000-000000000000.json"]
    assert {**again} == {**every}
    # one that was written again since is read, and one that is gone is not there
    changed = Path(dataset.url, "commits", "003-000000000003.json")
    record = json.loads(changed.read_text())
    changed.unlink()
    changed.write_text(json.dumps({**record, "ok": 1, "bad": 1}))
    Path(dataset.url, "commits", "005-000000000005.json").unlink()
    again, read = read_records(store)
    assert sorted(read) == [f"commits/{late.name}", f"commits/{changed.name}"]
    assert again[changed.stem]["bad"] == 1
    assert again.keys() == every.keys() - {"005-000000000005"}
    store.remove(open_manifest(store).files.parts[0].path)  # then all of them are read
    again, read = read_records(store)
    assert (len(read), again[changed.stem]["bad"]) == (11, 1)


def test_a_clock_ahead_does_not_hide_later_records(dataset: Dataset) -> None:
    age(dataset, 1000)
    os.utime(Path(dataset.url, "commits", "000-000000000000.json"), (2**32, 2**32))
    recorded = Ledger(dataset.store, dataset.fingerprint).records().recorded
    assert recorded is not None
    assert recorded < time.time()


def test_keys_are_found_through_parts(dataset: Dataset, tmp_path: Path) -> None:
    keys = [f"{shard}/{key}" for shard, key in enumerate("abcdefghijkl")]
    assert len(dataset.files.parts) > 2
    assert sorted(dataset.keys()) == sorted([*keys, *(f"999/{key}" for key in "abcdefghijkl")])
    for key in keys:
        assert dataset.record(key).key == key
    publish_key_map(dataset.store, dataset.files, None)
    mapped = open_dataset(dataset.url)
    asked = mapped.lookup._mapped(sorted(keys))
    assert asked is not None
    assert {mapped.files[n].number: names for n, names in asked.items()} == {
        n: [key] for n, key in enumerate(keys)
    }
    cursor, seen = None, []
    while True:
        items, cursor = mapped.page(cursor, 5)
        seen += [item["key"] for item in items]
        if cursor is None:
            break
    assert seen == [*mapped.keys()]


def test_parts_that_no_manifest_names_are_garbage(dataset: Dataset) -> None:
    store = dataset.store
    assert find_garbage(store, -1) == []
    store.create(f"{MANIFESTS}/{'0' * 32}.jsonl.gz", b"x")
    store.create(f"{MANIFESTS}/notes.txt", b"x")
    (item,) = find_garbage(store, -1)
    assert (item.path, item.reason) == (f"{MANIFESTS}/{'0' * 32}.jsonl.gz", "no manifest names it")
    named = dataset.files.parts[0].path
    remove_garbage(store, [item, replace(item, path=named)])  # named since it was found
    assert store.exists(named)
    assert not store.exists(item.path)
    store.create(manifest_name(latest_manifest(store) + 1), b"{}")
    with pytest.raises(DatasetError):
        find_garbage(store, -1)


def test_the_same_dataset_as_in_one_piece(
    make_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tars = [str(write_tar(tmp_path / f"{n}.tar", samples(2, 10 * n))) for n in range(6)]
    monkeypatch.setattr(manifest_writer, "LONGEST_PART", 2)  # names decide where others end
    in_parts = make_dataset(tars, str(tmp_path / "parts"))
    monkeypatch.setattr(manifest_writer, "INLINE_FILES", 100)
    whole = make_dataset(tars, str(tmp_path / "whole"))
    assert (len(in_parts.files.parts) > 1, len(whole.files.parts)) == (True, 1)
    assert [*in_parts.keys()] == [*whole.keys()]
    told = [info_dataset(one.url).to_json() for one in (in_parts, whole)]
    for one in told:
        del one["url"], one["requests"]
    assert told[0] == told[1]
