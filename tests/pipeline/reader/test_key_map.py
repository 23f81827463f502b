"""The map of keys to data files: few requests for unsorted keys, never a wrong answer."""

import shutil
import struct
import warnings
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipeline import DatasetError, open_dataset
from pipeline.dataset.manifest import DataFiles, Manifest
from pipeline.reader import key_map
from pipeline.reader.dataset import Dataset
from pipeline.reader.key_map import key_map_path, publish_key_map
from pipeline.verify.garbage import find_garbage
from tests.jobs.scripts import load_job
from tests.pipeline.counting import CountingFileSystem
from tests.pipeline.streams import rows, write_dataset

FILES, EACH = 48, 12  # more files than are asked without a map, wherever a key lies
KEYS = [f"{number:05d}" for number in np.random.default_rng(0).permutation(FILES * EACH)]
KEYS[-EACH:] = KEYS[:EACH]  # the last file has the keys of the first
MIDDLE = KEYS.index(f"{FILES * EACH // 2:05d}")


def write(url: str) -> Dataset:
    """Files over all of which the keys are spread."""
    shards = (KEYS[n : n + EACH] for n in range(0, len(KEYS), EACH))
    return write_dataset(url, [rows(keys, (50,), n) for n, keys in enumerate(shards)], 1)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write(str(tmp_path_factory.mktemp("keys") / "set"))


@pytest.fixture
def dataset(written: Dataset, tmp_path: Path) -> Dataset:
    """A copy without a map."""
    return open_dataset(shutil.copytree(written.url, str(tmp_path / "set")))


@pytest.fixture(scope="module")
def mapped() -> Dataset:
    """With a map of a hundred buckets, on the file system that counts."""
    dataset = write("counting://bucket/map")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_map, "_PER_BUCKET", 4)
        publish_key_map(dataset.store, dataset.files, None)
    return dataset


@pytest.fixture
def counted(mapped: Dataset) -> Dataset:
    """Opened anew, nothing read yet."""
    fresh = open_dataset(mapped.url)
    CountingFileSystem.requests.clear()
    return fresh


def requests(part: str) -> int:
    return sum(part in path for path, _ in CountingFileSystem.requests)


def test_a_key_costs_the_index_that_has_it(counted: Dataset) -> None:
    entry = counted.locate(KEYS[MIDDLE])
    assert entry is not None
    assert (entry.file, entry.row) == (counted.files[MIDDLE // EACH], MIDDLE % EACH)
    assert (requests("/keys/"), requests("/index/")) == (3, 1)
    read = CountingFileSystem.bytes_read("bin")
    CountingFileSystem.requests.clear()
    for missing in (f"{KEYS[MIDDLE]}x", "nobody", "\ud800", ""):
        assert counted.locate(missing) is None
    assert requests("/index/") == 0
    assert read < counted.store.info(key_map_path(counted.files))["size"] / 20


def test_keys_cost_the_indexes_that_have_them(counted: Dataset) -> None:
    numbers = range(EACH, len(KEYS) - EACH, 50)
    some = [KEYS[n] for n in numbers]
    assert [record.key for record in counted.fetch(some)] == some
    assert requests("/index/") == len({n // EACH for n in numbers})


@pytest.mark.parametrize("per_bucket", [1, 16, 10**6])
def test_every_key_is_found(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, per_bucket: int
) -> None:
    """By maps of few and of many buckets; of a key that two files have, the first counts."""
    monkeypatch.setattr(key_map, "_PER_BUCKET", per_bucket)
    monkeypatch.setattr(key_map, "_TOGETHER", 100)
    publish_key_map(dataset.store, dataset.files, str(tmp_path / "scratch"))
    keys = sorted(set(KEYS))
    files = dataset.lookup._mapped(keys)
    assert files is not None
    assert sum(map(len, files.values())) == len(KEYS)
    found = dataset.lookup.find([*keys, "nobody"])
    assert {key: entry.file.name for key, entry in found.items()} == {
        key: dataset.files[n // EACH].name for n, key in enumerate(KEYS[:-EACH])
    }
    assert not list((tmp_path / "scratch").iterdir())


def test_a_map_of_other_files_is_not_looked_at(counted: Dataset) -> None:
    fewer = Dataset(
        counted.store,
        {"parameters": counted.parameters, "fingerprint": counted.fingerprint},
        Manifest(0, DataFiles.of(counted.files[:-1]), {}, []),
    )
    assert fewer.locate(f"{KEYS[MIDDLE]}x") is None
    assert requests("/index/") > 32
    assert requests("/keys/") == 0


@pytest.mark.parametrize("harm", ["head", "starts", "bucket", "cut"])
def test_a_damaged_map_is_done_without(dataset: Dataset, harm: str) -> None:
    publish_key_map(dataset.store, dataset.files, None)
    path = Path(dataset.url) / key_map_path(dataset.files)
    data = path.read_bytes()
    whole = bytearray(data)
    whole[{"head": 9, "starts": 24 + 8, "bucket": -70, "cut": 0}[harm]] ^= 1
    path.write_bytes(data[:-1] if harm == "cut" else whole)
    with pytest.warns(RuntimeWarning, match=r"keys/.*strata index writes it again") as heard:
        assert dataset.lookup.find(KEYS).keys() == set(KEYS)
    assert len(heard) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        assert dataset.locate("nobody") is None
    publish_key_map(dataset.store, dataset.files, None)
    assert path.read_bytes() == data


def test_a_map_that_names_a_file_too_many_is_done_without(dataset: Dataset) -> None:
    publish_key_map(dataset.store, dataset.files, None)
    path = Path(dataset.url) / key_map_path(dataset.files)
    data = bytearray(path.read_bytes())
    (buckets,) = struct.unpack_from("<I", data, 8)
    places = struct.unpack_from(f"<{buckets + 1}Q", data, 24)
    for number, (start, stop) in enumerate(pairwise(places)):
        for at in range(start + 8, stop - 4, 12):
            data[at : at + 4] = struct.pack("<I", 1 << 31)
        covered = struct.pack("<I", number) + data[start : stop - 4]
        data[stop - 4 : stop] = struct.pack("<I", zlib.crc32(covered))
    path.write_bytes(data)
    with pytest.warns(RuntimeWarning, match="names an unknown data file"):
        assert dataset.lookup.find(KEYS).keys() == set(KEYS)


def test_the_job(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = load_job("index_keys")
    for told in (f"{len(KEYS)} keys", "exists already"):
        assert job.main(["--input", dataset.url]) == 0
        assert told in capsys.readouterr().out
    assert job.main(["--input", str(tmp_path)]) == 2
    assert "there is no archive here" in capsys.readouterr().err
    bare = write_dataset(str(tmp_path / "bare"), [rows(KEYS[:5], (50,))], 1, indexed=False)
    with pytest.raises(DatasetError, match=r"has no index: strata verify --repair"):
        publish_key_map(bare.store, bare.files, None)


def test_maps_of_other_files_are_garbage(dataset: Dataset) -> None:
    store = dataset.store
    publish_key_map(store, dataset.files, None)
    publish_key_map(store, DataFiles.of(dataset.files[1:]), None)
    store.create("keys/mine.txt", b"")
    assert [item.path for item in find_garbage(store, 0.0)] == [
        key_map_path(DataFiles.of(dataset.files[1:]))
    ]
    assert find_garbage(store, 3600.0) == []
