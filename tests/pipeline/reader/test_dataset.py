"""Reading: the right pictures, and only the bytes of the layers that were asked for."""

import json
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline import DamagedDataError, DatasetError, StrataImages, UnknownKeyError
from pipeline.dataset.layout import PLAN_NAME, manifest_name
from pipeline.dataset.ledger import Ledger
from pipeline.dataset.manifest_writer import publish_manifest
from pipeline.dataset.plan import Plan
from pipeline.dataset.rows import column_bytes, stream_columns
from pipeline.reader.dataset import Dataset
from pipeline.stores.store import Store
from tests.pipeline.conftest import Make
from tests.pipeline.counting import CountingFileSystem
from tests.pipeline.makers import ToyCodec, picture, png, samples, write_tar


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reader")


@pytest.fixture
def dataset(make_dataset: Make, place: Path, tmp_path: Path) -> Dataset:
    """Two shards, 600 and 3 pictures, and one bad sample: made once, and each test has a copy."""
    made = place / "dataset"
    if not made.exists():
        files = [(f"a{n:04d}.png", png(n, 9, 11)) for n in range(600)]
        write_tar(place / "a.tar", [*files[:10], ("broken.png", b"no"), *files[10:]])
        write_tar(place / "b.tar", samples(3))
        make_dataset([str(place / "a.tar"), str(place / "b.tar")], str(place / "making"))
        (place / "making").rename(made)
    return pipeline.open_dataset(str(shutil.copytree(made, tmp_path / "dataset")))


def test_the_face_of_a_dataset(dataset: Dataset) -> None:
    assert len(dataset) == 603
    assert dataset.num_layers == 4
    keys = list(dataset.keys())
    assert keys[:2] == ["a0000", "a0001"]
    assert keys[-1] == "s0002"
    assert len(keys) == 603
    assert [key for _, key, _, _ in dataset.problems()] == ["broken"]
    records = list(dataset.read())
    assert [record.key for record in records] == keys
    assert (records[0].width, records[0].height) == (11, 9)
    assert records[0].encoded.num_layers == 4


def test_pictures_at_any_number_of_layers(dataset: Dataset) -> None:
    original = picture(7, 9, 11)
    for layers in range(5):
        mask = 0xFF00 >> 2 * layers & 0xFF
        image = dataset.image("a0007", layers)
        assert image.dtype == np.uint8
        assert (image == original & mask).all()
    assert (dataset.image("s0001") == picture(1)).all()


def test_reading_some_keys(dataset: Dataset) -> None:
    wanted = {"a0599", "s0000", "a0003", "none"}
    assert [record.key for record in dataset.read(2, wanted)] == ["a0003", "a0599", "s0000"]
    assert list(dataset.read(2, [])) == []
    record = dataset.record("s0001", 1, ["fields", "source_format"])
    assert record.encoded.num_layers == 1
    assert record.extra["source_format"] == "png"
    fields = {field["name"]: field["data"] for field in record.extra["fields"]}
    assert json.loads(fields["json"]) == {"n": 1}


def test_what_is_not_there_is_said(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no picture with the key 'nope'"):
        dataset.image("nope")
    with pytest.raises(DatasetError, match=r"'broken' of .*a\.tar is bad: not an image"):
        dataset.image("broken")
    with pytest.raises(DatasetError, match="stores 4 layers"):
        next(dataset.read(5))
    with pytest.raises(DatasetError, match=r"dataset\.json is missing"):
        pipeline.open_dataset(str(tmp_path))
    for plan in ("[]", '"a plan"', '{"parameters": 3}', "{}"):
        (tmp_path / "dataset.json").write_text(plan)
        with pytest.raises(DatasetError, match=r"dataset\.json is not the plan of an archive"):
            pipeline.open_dataset(str(tmp_path))
    write_tar(tmp_path / "a.tar", samples(1))
    for url in ("nosuch://x", str(tmp_path / "a.tar")):
        with pytest.raises(DatasetError):
            pipeline.open_dataset(url)


def test_nobody_looks_everywhere_for_what_a_wrong_key_was(
    make_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CountingFileSystem.store.clear()
    inputs = []
    for letter in "abc":
        files = [(f"{letter}{n}.png", b"no") for n in range(8)]
        inputs.append(str(write_tar(tmp_path / f"{letter}.tar", [*files, ("x.png", png())])))
    dataset = make_dataset(inputs, output="counting://bucket/set")
    with pytest.raises(UnknownKeyError, match=r"'c7' of .*c\.tar is bad"):
        dataset.record("c7")
    monkeypatch.setattr("pipeline.reader.dataset.SEARCHED_FILES", 1)
    with pytest.raises(UnknownKeyError, match=r"'c1' of .*c\.tar is bad"):
        dataset.record("c1")  # one of the first: the manifest has it
    CountingFileSystem.requests.clear()
    with pytest.raises(UnknownKeyError, match="no picture with the key 'c7'"):
        dataset.record("c7")
    assert {path.rsplit("/", 1)[-1][0] for path, _ in CountingFileSystem.requests} <= {"a"}


def test_models_stay_where_they_are(dataset: Dataset, toy: ToyCodec) -> None:
    """Other processes load it themselves: one is of 200 MB, and may be on a GPU."""
    assert dataset.codec() is toy
    assert len(pickle.dumps(dataset)) < 20_000
    toy.level = threading.Lock()  # type: ignore[assignment]
    assert len(pickle.loads(pickle.dumps(dataset))) == len(dataset)


def test_columns_that_are_not_there_are_said(dataset: Dataset) -> None:
    """Parquet's reader would leave them out."""
    reads: list[Callable[[], object]] = [
        lambda: next(dataset.read(1, columns=["notes", "colour"])),
        lambda: next(dataset.batches(1, columns=["colour"])),
        lambda: dataset.metadata("s0001", ["colour"]),
        lambda: dataset.record("s0001", 1, ["colour"]),
        lambda: next(iter(StrataImages(dataset.url, 1, columns=["colour"]))),
    ]
    for read in reads:
        with pytest.raises(DatasetError, match=r"no column 'colour'; there are fields, original,"):
            read()


def test_an_unfinished_and_a_newer_dataset(dataset: Dataset, tmp_path: Path) -> None:
    root = Path(dataset.url)
    (root / "manifest-000001.json").rename(tmp_path / "hidden")
    with pytest.raises(DatasetError, match="has not finished"):
        pipeline.open_dataset(dataset.url)
    (tmp_path / "hidden").rename(root / "manifest-000001.json")
    plan = json.loads((root / "dataset.json").read_text())
    plan["parameters"]["format"] = 99
    (root / "dataset.json").write_text(json.dumps(plan))
    with pytest.raises(DatasetError, match="format 99"):
        pipeline.open_dataset(dataset.url)


def test_a_file_that_is_gone_cut_or_damaged(dataset: Dataset) -> None:
    path = Path(dataset.url) / dataset.files[1].path
    whole = path.read_bytes()
    layer = next(dataset.read(4, ["s0001"])).encoded.layers[3]
    flipped = bytearray(whole)
    flipped[whole.index(layer) + 20] ^= 4
    path.write_bytes(flipped)
    with pytest.raises(DatasetError, match=r"(?i)data/b-.*(crc|checksum).*'s0001'"):
        dataset.image("s0001")
    assert dataset.image("s0001", 3).shape == (24, 32, 3)  # the damage is not in these layers
    rows = pq.read_metadata(path).row_group(0)
    keys = next(c for c in map(rows.column, range(99)) if c.path_in_schema == "key")
    flipped = bytearray(whole)
    flipped[keys.data_page_offset + keys.total_compressed_size - 5] ^= 4
    path.write_bytes(flipped)
    with pytest.raises(DamagedDataError, match=r"data/b-.*row group 0 is damaged.*--repair"):
        list(dataset.keys())
    path.write_bytes(whole[:-100])
    dataset = pipeline.open_dataset(dataset.url)
    with pytest.raises(DatasetError, match="footer"):
        list(dataset.read(1))
    path.unlink()
    with pytest.raises(DatasetError, match=r"data/b-.*gone: open the archive again.*--repair"):
        dataset.image("s0001")


@pytest.fixture
def counted(make_dataset: Make, place: Path) -> Dataset:
    """On the counting file system, with bulky side fields between the pictures."""
    made = place / "bulky"
    if not made.exists():
        rng = np.random.default_rng(0)
        pictures = []
        for n in range(300):
            pictures += [(f"k{n:03d}.png", png(n, 40, 50)), (f"k{n:03d}.npy", rng.bytes(3000))]
        write_tar(place / "x.tar", pictures)
        make_dataset([str(place / "x.tar")], str(place / "making"))
        (place / "making").rename(made)
    CountingFileSystem.store.clear()
    files = {path.relative_to(made): path for path in made.rglob("*") if path.is_file()}
    store = Store("counting://bucket/set")
    for name, path in files.items():
        store.create(name.as_posix(), path.read_bytes())
    CountingFileSystem.requests.clear()
    return pipeline.open_dataset("counting://bucket/set")


def needed_bytes(dataset: Dataset, layers: int) -> int:
    """The columns of ``layers`` layers and the footers, as Parquet itself counts them."""
    wanted = set(stream_columns(layers))
    total = 0
    for file in dataset.files:
        with dataset.open(file) as opened:
            columns = column_bytes(opened.parquet.metadata)
        total += file.footer_bytes + sum(columns[name] for name in wanted)
    return total


@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4])
def test_only_the_layers_asked_for_are_read(counted: Dataset, layers: int) -> None:
    needed = needed_bytes(counted, layers)
    fresh = pipeline.open_dataset(counted.url)  # which has kept no footer
    CountingFileSystem.requests.clear()
    assert sum(1 for _ in fresh.read(layers)) == 300
    read = CountingFileSystem.bytes_read(".parquet")
    assert needed <= read <= 1.1 * needed
    groups = 2
    assert len(CountingFileSystem.requests) <= 1 + groups  # the footer, and one per row group


def test_the_trap_that_the_reader_avoids(counted: Dataset) -> None:
    """Why there is a reader: the usual one reads far more than one layer."""
    needed = needed_bytes(counted, 1)
    CountingFileSystem.requests.clear()
    path = f"bucket/set/{counted.files[0].path}"
    pq.read_table(path, columns=stream_columns(1), filesystem=CountingFileSystem())
    assert CountingFileSystem.bytes_read() > 3 * needed


def test_one_key_costs_one_row_group(counted: Dataset) -> None:
    needed = needed_bytes(counted, 1)
    CountingFileSystem.requests.clear()
    counted.record("k299", 1)  # in the second group, which holds 44 of 300 rows
    assert CountingFileSystem.bytes_read(".parquet") < needed / 2


def test_what_a_manifest_says_of_its_files(dataset: Dataset) -> None:
    """Enough to read and to account for them; the rest is in their commit records."""
    store, file = dataset.store, dataset.files[0]
    ledger = Ledger(store, dataset.fingerprint)
    (name,) = {file.name} & set(ledger.records())
    assert (file.record["base"], file.record["generation"]) == (name, 0)
    assert "column_bytes" not in file.record
    assert set((ledger.read(name) or {})["column_bytes"]) > set(stream_columns(4))
    manifest = store.read(manifest_name(1))
    assert b"\n" not in manifest.rstrip()


def test_inputs_that_failed_are_told(dataset: Dataset) -> None:
    plan = Plan(PLAN_NAME, dataset.parameters)
    done, _ = Ledger(dataset.store, dataset.fingerprint).completed("data", ".parquet")
    failed = [{"url": "b.tar", "error": "cut"}, {"url": "a.tar", "error": "x" * 9000}]
    assert publish_manifest(dataset.store, plan, done, failed) == 2
    again = pipeline.open_dataset(dataset.url)
    assert [one["url"] for one in again.failed] == ["a.tar", "b.tar"]
    assert again.failed[1]["error"] == "cut"
    assert len(again.failed[0]["error"]) < 1000
    assert dataset.failed == []
    assert len(again) == 603


def test_a_damaged_footer_is_refused_before_it_is_parsed(
    make_dataset: Make, tmp_path: Path
) -> None:
    dataset = make_dataset([str(write_tar(tmp_path / "x.tar", samples(2)))])
    (file,) = dataset.files
    path = tmp_path / "dataset" / file.path
    data = bytearray(path.read_bytes())
    data[-40] ^= 4
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"data/x-.*its footer is damaged"):
        list(dataset.read())


def test_a_damaged_manifest_says_how_to_mend_it(make_dataset: Make, tmp_path: Path) -> None:
    make_dataset([str(write_tar(tmp_path / "x.tar", samples(2)))])
    (manifest,) = (tmp_path / "dataset").glob("manifest-*.json")
    manifest.write_bytes(manifest.read_bytes()[:-30])
    with pytest.raises(DatasetError, match=r"manifest-000001.json is damaged .*--repair"):
        pipeline.open_dataset(str(tmp_path / "dataset"))
