"""The index of a data file says where each layer lies, and readers find keys by it."""

import pickle
import re
import warnings
import zlib
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codec import EncodedImage
from pipeline import UnknownKeyError, open_dataset
from pipeline.dataset.index import IndexEntry
from pipeline.dataset.index_writer import index_table, publish_index
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.manifest import DataFiles, Manifest
from pipeline.dataset.rows import RecordError, Row, RowWriter
from pipeline.reader.dataset import Dataset
from pipeline.stores.cache import ByteCache
from pipeline.stores.store import StorageError, Store
from tests.pipeline.conftest import Make
from tests.pipeline.counting import CountingFileSystem
from tests.pipeline.makers import samples, write_tar
from tests.pipeline.streams import rows, write_dataset

LAYERS = (20, 0, 700)


def shuffled(count: int, seed: int) -> list[str]:
    """Keys that are in no order, and go over the same range in every shard."""
    numbers = np.random.default_rng(seed).permutation(count)
    return [f"{'k' if number % 2 else 'é'}{number:05d}-{seed}" for number in numbers]


def bad(key: str, index: int) -> Row:
    return Row(key, index, "bad", "broken")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Three shards of 700 pictures; the second begins with samples that are none."""
    shards = [list(rows(shuffled(700, seed), LAYERS, seed)) for seed in range(3)]
    second = [bad("bad-1", 0), bad("k00007-0", 1), *shards[1]]
    shards[1] = [Row(**{**vars(row), "index": index}) for index, row in enumerate(second)]
    return write_dataset(str(tmp_path_factory.mktemp("index") / "set"), shards, len(LAYERS))


def value(dataset: Dataset, entry: IndexEntry, layer: int) -> bytes:
    data = (Path(dataset.url) / entry.file.path).read_bytes()
    return data[entry.offsets[layer] :][: entry.lengths[layer]]


def test_places_are_those_of_the_bytes(dataset: Dataset) -> None:
    for record in islice(dataset.read(), 690, 740):
        entry = dataset.locate(record.key)
        assert entry is not None
        assert entry.header == record.encoded.header
        assert (entry.width, entry.height, entry.num_layers) == (record.width, record.height, 3)
        found = tuple(value(dataset, entry, layer) for layer in range(3))
        assert found == record.encoded.layers
        assert entry.crc32s == tuple(map(zlib.crc32, found))
        with dataset.open(entry.file) as opened:
            keys = opened.parquet.read_row_group(entry.row_group, columns=["key"]).column("key")
            assert keys[entry.row - opened.first_row(entry.row_group)].as_py() == record.key


def test_every_picture_is_found_and_nothing_else(dataset: Dataset) -> None:
    keys = [key for seed in range(3) for key in shuffled(700, seed)]
    found = dataset.lookup.find(keys)
    assert found.keys() == set(keys)
    assert all(entry.indexed for entry in found.values())
    first = found["k00007-0"]
    assert first.file is dataset.files[0]  # in the second file it is bad
    for missing in ("", "bad-1", "k00007", "zzz", "é", "\ud800", "k00007-0\x00", "x" * 10_000):
        assert dataset.locate(missing) is None


def test_of_equal_keys_the_first_counts(tmp_path: Path) -> None:
    shards = [list(rows(["a", "b"], LAYERS, 1)), list(rows(["b", "c"], LAYERS, 2))]
    dataset = write_dataset(str(tmp_path / "set"), shards, len(LAYERS))
    entry = dataset.locate("b")
    assert entry is not None
    assert entry.file == dataset.files[0]
    (record,) = dataset.fetch(["b"])
    assert record.encoded == dataset.record("b").encoded == next(dataset.read(keys=["b"])).encoded


def test_long_keys_have_short_bounds_in_the_manifest(tmp_path: Path) -> None:
    keys = [f"{'x' * 200}{number}" for number in range(5)] + ["\U0010ffff" * 80, "x" * 64]
    dataset = write_dataset(str(tmp_path / "set"), [rows(keys, LAYERS)], len(LAYERS))
    (file,) = dataset.files
    assert len(str(file.key_bounds)) < 2000
    assert dataset.lookup.find(keys).keys() == set(keys)
    assert dataset.locate("x" * 200) is None


def test_values_that_repeat_are_told_apart(tmp_path: Path) -> None:
    """Equal and empty values, nulls between them, and one larger than a page."""
    (model,) = rows(["x"], LAYERS)
    assert model.encoded is not None
    header = model.encoded.header
    stored: list[tuple[bytes, ...]] = [
        (b"", b"aa", b"a"), (b"a",), (b"a", b""), (b"", b"aa", b""), (bytes(3 << 20),),
        (b"\x00\x00\x00\x00", b"\x01\x00\x00\x00a"), (bytes(100), b"aa"), (b"a", b"aa", b"aa"),
    ]  # fmt: skip
    made = [
        Row(f"k{n}", n, encoded=EncodedImage(header, layers), source_bytes=1)
        for n, layers in enumerate(stored)
    ]
    dataset = write_dataset(str(tmp_path / "set"), [made], 3)
    for number, record in enumerate(dataset.fetch([f"k{n}" for n in range(len(made))])):
        assert record.encoded.layers == stored[number]


def test_a_value_that_is_not_verbatim_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    writer = RowWriter(path, 1, {})
    for row in rows(["one", "two"], [500]):
        writer.append(row)
    writer.close()
    table = pq.read_table(path)
    zeros = pa.array([bytes(500)] * 2, pa.binary())
    table = table.set_column(table.column_names.index("layer_00"), "layer_00", zeros)
    pq.write_table(table, path, compression="ZSTD", use_dictionary=False)
    with pytest.raises(RecordError, match=r"x\.parquet: layer_00 of 'one' is not in the file"):
        index_table(path, 1)


def test_the_job_writes_indexes(make_dataset: Make, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [*samples(5), ("bad.png", b"no")])
    dataset = make_dataset([str(tmp_path / "a.tar")])
    (file,) = dataset.files
    assert file.index is not None
    assert file.key_bounds == ("s0000", "s0004")
    path = Path(dataset.url) / file.index["path"]
    assert path.stat().st_size == file.index["bytes"]
    table = pq.read_table(path)
    assert table.column("key").to_pylist() == [f"s{n:04d}" for n in range(5)]
    whole = Ledger(dataset.store, dataset.fingerprint).read(file.name) or {}
    assert whole["index"]["rows"] == 5
    assert "sha256" not in file.index  # the manifest is to stay small


def test_a_standing_index_stays_if_it_says_the_same(dataset: Dataset, tmp_path: Path) -> None:
    store, file = Store(str(tmp_path / "out")), dataset.files[0]
    table = index_table(Path(dataset.url) / file.path, 3)
    facts = publish_index(store, "x", table, tmp_path)
    path = tmp_path / "out" / "index" / "x.parquet"
    # as another version of the library may pack it
    pq.write_table(table, path, compression="GZIP", use_dictionary=False, row_group_size=200)
    standing = path.read_bytes()
    assert publish_index(store, "x", table, tmp_path)["bytes"] == len(standing) != facts["bytes"]
    assert path.read_bytes() == standing
    path.write_bytes(b"of a file that was removed")
    assert publish_index(store, "x", table, tmp_path) == facts
    assert pq.read_table(path).equals(table)


@pytest.fixture
def counted() -> Dataset:
    """Four files of 1000 pictures on the counting file system."""
    CountingFileSystem.store.clear()
    shards = [rows(shuffled(1000, seed), (300, 5000), seed) for seed in range(4)]
    return write_dataset("counting://bucket/index", shards, 2)


def test_a_preview_costs_its_own_bytes(counted: Dataset) -> None:
    """After the index is loaded: the first layer, and not a kilobyte more."""
    entry = counted.locate("k00501-2")
    assert entry is not None
    CountingFileSystem.requests.clear()
    (record,) = counted.fetch(["k00501-2"], 1)
    assert len(CountingFileSystem.requests) == 1
    assert CountingFileSystem.bytes_read() <= len(record.encoded.layers[0]) + 1024
    assert CountingFileSystem.bytes_read() == entry.lengths[0]
    CountingFileSystem.requests.clear()
    counted.record("k00501-2", 1)
    assert CountingFileSystem.bytes_read() == entry.lengths[0]


def test_a_key_costs_no_more_than_the_indexes_that_may_have_it(counted: Dataset) -> None:
    CountingFileSystem.requests.clear()
    counted.locate("k00501-2")
    indexes = sum(file.index["bytes"] for file in counted.files if file.index)
    assert indexes < 100 * len(counted)
    assert CountingFileSystem.bytes_read() == indexes
    CountingFileSystem.requests.clear()
    counted.locate("k00503-2")
    counted.locate("none")
    assert CountingFileSystem.bytes_read() == 0  # they are kept


def test_large_indexes_are_read_by_row_groups(
    counted: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.reader.blocks.WHOLE_BYTES", 1000)
    fresh = open_dataset(counted.url)
    CountingFileSystem.requests.clear()
    entry = fresh.locate("k00501-2")
    assert entry is not None
    assert entry.num_layers == 2
    assert len(CountingFileSystem.requests) == 2 * 4  # of each file: the footer, one row group
    total = sum(file.index["bytes"] for file in fresh.files if file.index)
    assert CountingFileSystem.bytes_read() < total / 1.5
    keys = [key for seed in range(4) for key in shuffled(1000, seed)]
    assert fresh.lookup.find(keys).keys() == set(keys)


def test_files_whose_keys_lie_elsewhere_are_not_asked(tmp_path: Path) -> None:
    CountingFileSystem.store.clear()
    shards = [rows([f"{shard}/{n}" for n in range(10)], (50,), shard) for shard in range(9)]
    dataset = write_dataset("counting://bucket/ranges", shards, 1)
    CountingFileSystem.requests.clear()
    assert dataset.locate("4/7") is not None
    ((path, _),) = CountingFileSystem.requests
    assert "/index/004-" in path
    assert dataset.locate("99") is None
    assert len(CountingFileSystem.requests) == 1


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x20
    path.write_bytes(data)


@pytest.mark.parametrize("harm", ["gone", "cut", "footer", "page", "stale", "other", "larger"])
def test_a_damaged_index_is_done_without(tmp_path: Path, harm: str) -> None:
    """And nothing that it says is believed: neither places nor whose they are."""
    keys = shuffled(300, 0)
    dataset = write_dataset(str(tmp_path / "set"), [rows(keys, LAYERS)], len(LAYERS))
    (file,) = dataset.files
    assert file.index is not None
    path, entry = tmp_path / "set" / file.index["path"], file.record
    expected = [record.encoded for record in dataset.fetch(keys)]
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif harm == "footer":
        flip(path, -100)
    elif harm == "page":
        flip(path, pq.read_metadata(path).row_group(1).column(8).data_page_offset + 60)
    elif harm in ("other", "larger"):  # sound, and what the manifest names, but of another file
        others = [*reversed(keys), *([] if harm == "other" else ["further"])]
        other = write_dataset(str(tmp_path / "other"), [rows(others, LAYERS, 1)], len(LAYERS))
        told = entry["index"] = other.files[0].record["index"]
        path.write_bytes((tmp_path / "other" / told["path"]).read_bytes())
    else:  # sound, but of another file, with the same footer's checksum in the manifest
        table = pq.read_table(path)
        moved = [[place + 1 for place in places] for places in table.column("offsets").to_pylist()]
        table = table.set_column(6, "offsets", pa.array(moved, pa.list_(pa.int64())))
        path.unlink()
        entry["index"] = publish_index(dataset.store, file.name, table, tmp_path)
    fresh = listing(dataset, entry)
    with pytest.warns(RuntimeWarning, match=r"strata verify --repair") as heard:
        found = [record.encoded for record in fresh.fetch(keys)]
    assert found == expected
    assert len(heard) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        assert fresh.record(keys[0]).encoded == expected[0]


def listing(dataset: Dataset, entry: dict[str, Any]) -> Dataset:
    """The same dataset, with this entry alone in its manifest."""
    plan = {"parameters": dataset.parameters, "fingerprint": dataset.fingerprint}
    return Dataset(dataset.store, plan, Manifest(0, DataFiles.of([entry]), {}, []))


def test_metadata_is_that_of_the_key(tmp_path: Path) -> None:
    """Though a sound index, which the manifest names, says where it is in another file."""
    keys = shuffled(300, 0)
    dataset = write_dataset(str(tmp_path / "set"), [rows(keys, LAYERS)], len(LAYERS))
    shards = [rows(keys[:5], LAYERS, 1), rows([*keys[280:], *keys[:280]], LAYERS, 1)]
    other = write_dataset(str(tmp_path / "other"), shards, len(LAYERS))
    (file,), told = dataset.files, other.files[1].record["index"]
    own = file.record["index"]["path"]
    (tmp_path / "set" / own).write_bytes(Path(other.url, told["path"]).read_bytes())
    dataset = listing(dataset, {**file.record, "index": {**told, "path": own}})
    with pytest.warns(RuntimeWarning, match="has wrong places"):
        assert dataset.metadata(keys[7], ["index"])["index"] == 7
    shards = [rows(["k00100-z", *keys[1:]], LAYERS)]
    third = write_dataset(str(tmp_path / "third"), shards, len(LAYERS))
    (tmp_path / "third" / own).write_bytes(Path(other.url, told["path"]).read_bytes())
    third = listing(third, {**third.files[0].record, "index": {**told, "path": own}})
    with pytest.warns(RuntimeWarning), pytest.raises(UnknownKeyError, match=re.escape(keys[0])):
        list(third.fetch([keys[0]]))
    assert third.record("k00100-z").key == "k00100-z"


def test_a_store_that_does_not_answer_is_no_damage(
    counted: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> bytes:
        raise TimeoutError("nobody answers")

    with monkeypatch.context() as patch, warnings.catch_warnings():
        patch.setattr(CountingFileSystem, "cat_file", fails)
        warnings.simplefilter("error")
        with pytest.raises(StorageError, match=r"index/000-.*nobody answers") as caught:
            counted.locate("k00501-2")
        assert caught.value.passing
    assert counted.locate("k00501-2") is not None


def test_what_is_kept_is_bounded() -> None:
    cache = ByteCache(100)
    for number in range(10):
        cache.put(number, str(number), 30)
    assert cache.bytes <= 100
    assert [cache.get(number) for number in range(10)] == [None] * 7 + ["7", "8", "9"]
    cache.get(7)
    cache.put("new", "x", 30)
    assert (cache.get(7), cache.get(8)) == ("7", None)
    cache.put("large", "x", 101)
    assert cache.bytes <= 100
    assert pickle.loads(pickle.dumps(cache)).bytes == 0


def test_readers_go_to_other_processes(dataset: Dataset) -> None:
    key = shuffled(700, 1)[5]
    dataset.locate(key)
    there = pickle.loads(pickle.dumps(dataset))
    assert there.record(key).encoded == dataset.record(key).encoded
