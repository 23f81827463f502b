"""Reading by key and by filter: the right pictures in the right order, and few bytes."""

import errno
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from botocore.exceptions import ClientError

from pipeline import DamagedDataError, DatasetError, UnknownKeyError, open_dataset
from pipeline.dataset.rows import Row, layer_column
from pipeline.reader import fetch
from pipeline.reader.dataset import Dataset
from pipeline.stores import ranges
from pipeline.stores.store import StorageError, Store
from tests.pipeline.conftest import Make
from tests.pipeline.counting import CountingFileSystem
from tests.pipeline.dataset.test_index import shuffled
from tests.pipeline.makers import png, write_tar
from tests.pipeline.streams import rows, write_dataset

LAYERS = (100, 1000, 3000)


def shard(seed: int) -> Iterator[Row]:
    """600 pictures; every seventh keeps its original and every tenth has an alpha channel."""
    for row in rows(shuffled(600, seed), LAYERS, seed):
        more = {"source_format": "jpeg" if row.index % 3 else "png"}
        side = {}
        if row.index % 7 == 0:
            side["original"] = b"original of " + row.key.encode()
        if row.index % 10 == 0:
            side["alpha"] = b"alpha of " + row.key.encode()
        yield Row(**{**vars(row), **more, **side})


@pytest.fixture(scope="module", params=["indexed", "bare"])
def dataset(request: pytest.FixtureRequest) -> Dataset:
    """Two files of 600 pictures on the counting file system, with and without an index."""
    url = f"counting://bucket/{request.param}"
    shards = [shard(0), shard(1)]
    return write_dataset(url, shards, len(LAYERS), indexed=request.param == "indexed")


KEYS = [key for pair in zip(shuffled(600, 1), shuffled(600, 0), strict=True) for key in pair]


def test_pictures_come_in_the_order_of_their_keys(dataset: Dataset) -> None:
    keys = KEYS[::5]
    expected = {record.key: record for record in dataset.read(2)}
    found = list(dataset.fetch([*keys, keys[0]], 2))
    assert [record.key for record in found] == [*keys, keys[0]]
    assert all(record == expected[record.key] for record in found)
    assert {record.encoded.num_layers for record in found} == {2}
    assert next(dataset.fetch(keys)).encoded.num_layers == 3


def test_keys_may_be_many_and_come_one_by_one(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are taken in portions: what is in memory does not depend on their number."""
    monkeypatch.setattr(fetch, "FETCHED_KEYS", 50)
    monkeypatch.setattr(fetch, "FETCHED_BYTES", 20_000)
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            yield KEYS[taken % len(KEYS)]
            taken += 1

    for number, record in enumerate(dataset.fetch(endless(), 3)):
        assert record.key == KEYS[number % len(KEYS)]
        assert taken <= number + 51
        if number == 300:
            break


def test_originals_count_as_what_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {"original": bytes(10_000)}
    shards = [rows([f"k{n:02d}" for n in range(40)], LAYERS, **large)]
    dataset = write_dataset(str(tmp_path / "set"), shards, len(LAYERS))
    monkeypatch.setattr(fetch, "FETCHED_BYTES", 50_000)
    held: list[int] = []
    read = fetch.read_ranges

    def watched(store: Store, wanted: Sequence[ranges.Range]) -> Any:
        held.append(sum(one.length for one in wanted))
        return read(store, wanted)

    monkeypatch.setattr(fetch, "read_ranges", watched)
    found = list(dataset.fetch(dataset.keys(), 0, columns=["original"]))
    assert len(found) == 40
    assert all(record.extra == large for record in found)
    assert max(held) <= 50_000
    assert len(held) == 8


def test_keys_that_are_not_there(dataset: Dataset) -> None:
    keys = [KEYS[3], "nobody", KEYS[2]]
    assert [r.key for r in dataset.fetch(keys, missing="skip")] == [KEYS[3], KEYS[2]]
    with pytest.raises(UnknownKeyError, match="'nobody'"):
        list(dataset.fetch(keys))
    for ask in (dataset.metadata, dataset.original):
        with pytest.raises(UnknownKeyError, match="'nobody'"):
            ask("nobody")
    with pytest.raises(DatasetError, match="stores 3 layers"):
        next(dataset.fetch(keys, 4))
    assert list(dataset.fetch([])) == []


def test_what_lies_beside_the_stream(dataset: Dataset) -> None:
    by_index = shuffled(600, 0)
    assert dataset.original(by_index[14]) == b"original of " + by_index[14].encode()
    assert dataset.original(by_index[13]) is None
    (record,) = dataset.fetch([by_index[70]], 1, columns=["alpha", "original"])
    assert record.extra == {
        "alpha": b"alpha of " + by_index[70].encode(),
        "original": b"original of " + by_index[70].encode(),
    }
    (record,) = dataset.fetch([by_index[71]], 1, columns=["alpha"])
    assert record.extra == {"alpha": None}
    with pytest.raises(ValueError, match="alpha"):
        next(dataset.fetch(by_index, columns=["fields"]))


def test_what_is_known_of_a_picture(dataset: Dataset) -> None:
    key = shuffled(600, 1)[599]
    told = dataset.metadata(key)
    assert (told["key"], told["status"], told["index"]) == (key, "ok", 599)
    assert (told["layers"], told["source_format"]) == (3, "jpeg")
    (record,) = dataset.fetch([key])
    assert told["cumulative_bytes"][-1] == record.encoded.nbytes
    assert list(dataset.metadata(key, ["notes"])) == ["key", "width", "height", "notes"]


def test_a_thousand_keys_take_few_requests_in_few_bytes() -> None:
    dataset = write_dataset("counting://bucket/many", [shard(n) for n in range(4)], len(LAYERS))
    keys = [key for seed in range(4) for key in shuffled(600, seed)[::3]]
    entries = dataset.lookup.find(keys)
    CountingFileSystem.requests.clear()
    assert sum(1 for _ in dataset.fetch(keys, 1)) == 800
    groups = 4 * 3
    assert len(CountingFileSystem.requests) <= groups  # neighbours come together
    CountingFileSystem.requests.clear()
    chosen = keys[:2]
    assert sum(1 for _ in dataset.fetch(chosen, 3)) == 2
    own = sum(sum(entries[key].lengths) for key in chosen)
    assert CountingFileSystem.bytes_read() < own + 6 * ranges.MERGE_GAP


def test_ranges_are_merged_where_they_are_near(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 4096)
    store = Store(str(tmp_path))
    spans = [(900_000, 10), (5, 10), (70_000, 7), (0, 3), (10, 20), (65_600, 0), (0, 900_000)]
    wanted = [ranges.Range("a", *span) for span in spans]
    whole = (tmp_path / "a").read_bytes()
    found = ranges.read_ranges(store, wanted)
    assert found == [whole[offset:][:length] for offset, length in spans]
    merged = [one for one, _ in ranges._merged(wanted[:5])]
    assert [(one.offset, one.length) for one in merged] == [(0, 30), (70_000, 7), (900_000, 10)]
    for before, after in pairwise(merged):
        assert after.offset - before.offset - before.length > ranges.MERGE_GAP
    (short,) = ranges.read_ranges(store, [ranges.Range("a", len(whole) - 5, 10)])
    assert isinstance(short, ranges.ShortReadError)
    (gone,) = ranges.read_ranges(store, [ranges.Range("b", 0, 10)])
    assert isinstance(gone, FileNotFoundError)


class CutFileSystem:
    """As s3fs answers where files end before the ranges that are asked for."""

    async_impl = True

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        if start < 100:
            return bytes(min(end, 100) - start)
        error = OSError(errno.EINVAL, "The requested range is not satisfiable")
        error.__cause__ = ClientError({"Error": {"Code": "InvalidRange"}}, "GetObject")
        raise error

    def cat_ranges(self, paths: list[str], starts: list[int], ends: list[int], **_: Any) -> Any:
        found: list[bytes | Exception] = []
        for path, start, end in zip(paths, starts, ends, strict=True):
            try:
                found.append(self.cat_file(path, start, end))
            except OSError as error:
                found.append(error)
        return found


def test_a_file_that_was_cut_is_not_the_stores_fault(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.fs = CutFileSystem()
    for offset in (95, 100, 10**6):  # one range alone, and several requests
        for more in ([], [ranges.Range("b", 10, 5)]):
            wanted = [ranges.Range("a", offset, 10), *more]
            found = ranges.read_ranges(store, wanted)
            assert isinstance(found[0], ranges.ShortReadError)
            assert found[1:] == [bytes(5)] * len(more)


def test_damage_names_its_place(tmp_path: Path) -> None:
    dataset = write_dataset(str(tmp_path / "set"), [shard(0)], len(LAYERS))
    first, second = KEYS[1], KEYS[3]
    entry = dataset.locate(first)
    assert entry is not None
    path = tmp_path / "set" / entry.file.path
    data = bytearray(path.read_bytes())
    data[entry.offsets[1] + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedDataError, match=rf"set/data/000-.*layer 2 of '{first}'") as caught:
        list(dataset.fetch([second, first]))
    assert (caught.value.key, caught.value.layer) == (first, 1)
    assert next(dataset.fetch([first], 1)).encoded.num_layers == 1  # what it needs is sound
    assert next(dataset.fetch([second], 3)).encoded.num_layers == 3  # though in the same page
    with pytest.raises(DamagedDataError, match="row group"):
        list(dataset.read(2))
    path.unlink()
    with pytest.raises(DatasetError, match=r"data/000-.* gone"):
        list(dataset.fetch([first]))


class Refused(OSError):
    """What requests and others raise of a refusal: an OSError without a number."""


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (TimeoutError("nobody answers"), True),
        (PermissionError("nobody answers"), False),
        (Refused("403 nobody answers for https://x/y?X-Amz-Signature=5ecre7"), False),
    ],
)
def test_a_store_that_fails_is_no_damage(
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    passing: bool,
    warm: bool,
) -> None:
    """And the message says which file it is, without its secrets."""
    fresh = open_dataset(dataset.url)
    if warm:
        fresh.lookup.find(KEYS[:1])
        for file in fresh.files:
            assert fresh.open(file).metadata

    def fails(*_: object, **__: object) -> bytes:
        raise error

    monkeypatch.setattr(CountingFileSystem, "cat_file", fails)
    reads: list[Callable[[], object]] = [
        lambda: list(fresh.fetch(KEYS[:1])),
        lambda: fresh.metadata(KEYS[0]),
        lambda: next(fresh.read(1)),
        lambda: next(fresh.keys()),
        fresh.page,
    ]
    for read in reads:
        with pytest.raises(StorageError, match=r"bucket/.*/0.*: .*nobody answers") as caught:
            read()
        assert caught.value.passing is passing
        assert "5ecre7" not in str(caught.value)


# -- batches and filters --------------------------------------------------------------------------


def test_batches_are_bounded_and_have_the_columns_asked_for(dataset: Dataset) -> None:
    batches = list(dataset.batches(1, columns=["source_format"]))
    assert [batch.num_rows for batch in batches] == [256, 256, 88] * 2
    assert batches[0].schema.names == [
        *("source_format", "key", "width", "height", "header", "layer_00")
    ]
    keys = pa.Table.from_batches(batches).column("key").to_pylist()
    assert keys == list(dataset.keys()) == [*shuffled(600, 0), *shuffled(600, 1)]


def test_a_filter_says_what_comes(dataset: Dataset) -> None:
    wide = pc.field("width") >= 1000
    everything = list(dataset.read(0, columns=["source_format"]))
    expected = [record.key for record in everything if record.width >= 1000]
    assert 300 < len(expected) < 900
    assert [record.key for record in dataset.read(1, filter=wide)] == expected
    both = wide & (pc.field("source_format") == "png") & pc.field("key").isin(KEYS[:500])
    chosen = {
        r.key for r in everything if r.width >= 1000 and r.extra["source_format"] == "png"
    } & set(KEYS[:500])
    assert {record.key for record in dataset.read(1, filter=both)} == chosen
    some = [*KEYS[::7], "nobody"]
    assert {r.key for r in dataset.read(1, some, filter=wide)} == set(some) & set(expected)
    assert list(dataset.read(1, filter=pc.field("width") < 0)) == []
    assert list(dataset.read(1, filter=pc.scalar(False))) == []
    assert len(list(dataset.read(1, filter=pc.scalar(True)))) == len(dataset)


def test_a_filter_that_cannot_be(dataset: Dataset) -> None:
    for wrong in (
        pc.field("layer_00") == b"",
        pc.field("nothing") == 1,
        pc.field("width") == "wide",
        pc.field("header") == b"x",
    ):
        with pytest.raises(DatasetError, match=r"filter cannot be applied .*source_format"):
            next(dataset.read(1, filter=wrong))


def test_layers_are_read_only_where_something_matches(dataset: Dataset) -> None:
    last = shuffled(600, 1)[-1]
    CountingFileSystem.requests.clear()
    (batch,) = dataset.batches(3, filter=pc.field("index") == 599, keys=[last])
    assert batch.column("key").to_pylist() == [last]
    layers = 88 * 1.3 * sum(LAYERS)  # of the only row group with a match
    assert CountingFileSystem.bytes_read() < layers + 60_000
    CountingFileSystem.requests.clear()
    assert list(dataset.batches(3, filter=pc.field("reason") == "x")) == []
    assert CountingFileSystem.bytes_read() < 60_000


def test_the_first_layer_of_everything_costs_little_more_than_itself() -> None:
    """At sizes of real first layers: within a tenth of that column."""
    shards = [rows(shuffled(512, n), (2000, 9000), n) for n in range(2)]
    dataset = write_dataset("counting://bucket/first", shards, 2)
    column = sum(
        opened.metadata.row_group(group).column(number).total_compressed_size
        for file in dataset.files
        for opened in [dataset.open(file)]
        for group in range(2)
        for number in range(opened.metadata.num_columns)
        if opened.metadata.row_group(group).column(number).path_in_schema == layer_column(0)
    )
    fresh = open_dataset(dataset.url)
    CountingFileSystem.requests.clear()
    assert sum(len(record.encoded.layers[0]) for record in fresh.read(1)) > 0.9 * column
    assert CountingFileSystem.bytes_read() < 1.1 * column


def test_a_first_layer_beside_a_kept_original(make_dataset: Make, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [(f"k{n}.png", png(n)) for n in range(4)])
    dataset = make_dataset([str(tmp_path / "a.tar")], keep_original="always")
    assert dataset.original("k2") == png(2)
    entry = dataset.locate("k2")
    assert entry is not None
    assert entry.original is not None
    assert entry.original.length == len(png(2))
