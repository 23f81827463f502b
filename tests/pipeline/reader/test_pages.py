"""Pages of pictures: each once, in order, at a cost that does not grow with the archive."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from pipeline import CursorError
from pipeline.dataset.rows import Row
from pipeline.reader import pages as pages_module
from pipeline.reader.dataset import Dataset, open_dataset
from tests.pipeline.counting import CountingFileSystem
from tests.pipeline.streams import rows, write_dataset

LAYERS = (100, 1000)
NAMES = ["cat", "Dog", "ÉLAN", "50%_off", "a/b", "<img>"]


def shard(number: int, count: int = 600) -> Iterator[Row]:
    """Pictures, every ninth of which keeps its original, and every fifth sample is bad."""
    keys = [f"{number}/{NAMES[n % 6]}-{n:04d}" for n in range(count)]
    for row in rows(keys, LAYERS, number):
        if row.index % 5 == 3:
            yield Row(row.key, row.index, "bad", "broken")
        else:
            original = b"the file" if row.index % 9 == 0 else None
            psnr = (30.0, 40.0) if row.index % 2 else None
            yield Row(**{**vars(row), "original": original, "psnr": psnr})


@pytest.fixture(scope="module", params=["indexed", "bare"])
def dataset(request: pytest.FixtureRequest) -> Dataset:
    """Three files of 480 pictures each."""
    shards = [shard(number) for number in range(3)]
    url = f"counting://bucket/pages-{request.param}"
    return write_dataset(url, shards, 2, indexed=request.param == "indexed")


def all_keys(dataset: Dataset) -> list[str]:
    return list(dataset.keys())


def pages(dataset: Dataset, limit: int, **more: Any) -> Iterator[list[dict[str, Any]]]:
    cursor = None
    for _ in range(1000):
        items, cursor = dataset.page(cursor, limit, **more)
        assert len(items) <= limit
        yield items
        if cursor is None:
            return
        assert re.fullmatch(r"[A-Za-z0-9_-]+", cursor)
    raise AssertionError("the pages do not end")


@pytest.mark.parametrize("limit", [1000, 480, 7])
def test_pages_hold_every_picture_once_in_order(dataset: Dataset, limit: int) -> None:
    got = [item for items in pages(dataset, limit) for item in items]
    assert [item["key"] for item in got] == all_keys(dataset)
    assert len(got) == len(dataset) == 1440


def test_what_a_page_tells_of_a_picture(dataset: Dataset) -> None:
    items, _ = dataset.page(None, 50)
    for item in items:
        entry = dataset.locate(item["key"])
        assert entry is not None
        assert set(item) == {
            *("key", "width", "height", "layers", "cumulative_bytes", "psnr", "has_original")
        }
        assert (item["width"], item["height"], item["layers"]) == (entry.width, entry.height, 2)
        assert item["cumulative_bytes"][-1] == len(entry.header) + sum(entry.lengths)
        assert item["psnr"] == ([30.0, 40.0] if entry.row % 2 else None)
        assert item["has_original"] == (dataset.original(item["key"]) is not None)
    assert any(item["has_original"] for item in items)


@pytest.mark.parametrize("text", ["cat", "DOG", "élan", "%_", "<IMG", "/b-059", "2/", "nothing"])
def test_a_search_is_for_a_part_of_the_key(dataset: Dataset, text: str) -> None:
    got = [item["key"] for items in pages(dataset, 30, search=text) for item in items]
    assert got == [key for key in all_keys(dataset) if text.lower() in key.lower()]
    assert (got == []) == (text == "nothing")


def test_a_filter_and_a_search_together(dataset: Dataset) -> None:
    found = [
        item
        for items in pages(dataset, 9, search="cat", filter=pc.field("width") > 1500)
        for item in items
    ]
    wide = {record.key for record in dataset.read(0, filter=pc.field("width") > 1500)}
    assert {item["key"] for item in found} == {key for key in wide if "cat" in key}
    assert found


def test_a_page_costs_the_same_wherever_it_is(dataset: Dataset) -> None:
    """The small columns of a row group; nothing of what comes before."""
    cursor: str | None = None
    for _ in range(13):
        _, cursor = dataset.page(cursor, 100)
    CountingFileSystem.requests.clear()
    items, _ = dataset.page(cursor, 100)
    assert items[0]["key"].startswith("2/")
    assert len(CountingFileSystem.requests) <= 4
    assert CountingFileSystem.bytes_read() < 60_000


def test_a_search_gives_up_after_a_while(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """It then says where to go on, and every page gets further."""
    monkeypatch.setattr(pages_module, "PAGE_SECONDS", -1.0)
    monkeypatch.setattr(pages_module, "_AHEAD", 1)
    got, count = [], 0
    for items in pages(dataset, 1000, search="2/cat"):
        got += [item["key"] for item in items]
        count += 1
    assert got == [key for key in all_keys(dataset) if key.startswith("2/cat")]
    assert 3 <= count <= 12


@pytest.mark.parametrize(
    "cursor", ["", "x", "!", "WzAsMF0=x", "W10", "WzksMF0", "WzAsLTFd", "é", "bnVsbA"]
)
def test_invalid_cursors(dataset: Dataset, cursor: str) -> None:
    with pytest.raises(CursorError, match="not a cursor"):
        dataset.page(cursor, 10)


def test_limits_of_a_page(dataset: Dataset, tmp_path: Path) -> None:
    for limit in (0, -1, 1001):
        with pytest.raises(ValueError, match="1 to 1000"):
            dataset.page(None, limit)
    empty = write_dataset(str(tmp_path / "set"), [[Row("x", 0, "bad", "broken")]], 2)
    assert empty.page() == ([], None)
    assert empty.page(search="x") == ([], None)


# -- captions and labels, and the other direction -------------------------------------------------

CAPTIONED = "captioned"


def captioned(number: int, count: int = 600, noise: int = 0) -> Iterator[Row]:
    """Every third picture has a caption, every fourth a label; ``noise`` bytes beside each."""
    for row in shard(number, count):
        fields: list[tuple[str, bytes | None]] = [("jpg", None), ("bin", b"\xff" * noise)]
        if row.index % 3 == 0:
            fields.append(("txt", f"No. {row.index} of the Harbour".encode()))
        if row.index % 4 == 0:
            fields.append(("cls", f"class-{row.index % 10}".encode()))
        yield Row(**{**vars(row), "fields": tuple(fields)})


@pytest.fixture(scope="module", params=["indexed", "bare"])
def with_captions(request: pytest.FixtureRequest) -> Dataset:
    """Three files; the second has no captions."""
    shards = [captioned(0), shard(1), captioned(2)]
    url = f"counting://bucket/captions-{request.param}"
    return write_dataset(url, shards, 2, indexed=request.param == "indexed")


def caption(key: str) -> str | None:
    number, index = int(key[0]), int(key[-4:])
    return f"No. {index} of the Harbour" if number != 1 and index % 3 == 0 else None


def label(key: str) -> str | None:
    number, index = int(key[0]), int(key[-4:])
    return f"class-{index % 10}" if number != 1 and index % 4 == 0 else None


def test_pictures_come_with_captions_and_labels(with_captions: Dataset) -> None:
    got = [item for items in pages(with_captions, 100, captions=True) for item in items]
    assert [item["key"] for item in got] == all_keys(with_captions)
    for item in got:
        assert (item["caption"], item["label"]) == (caption(item["key"]), label(item["key"]))
    assert [file.record["captions"] for file in with_captions.files] == [240, 0, 240]


@pytest.mark.parametrize("text", ["harbour", "NO. 12 ", "class-4", "cat", "/b-0", "nothing"])
def test_a_search_finds_captions_labels_and_keys(with_captions: Dataset, text: str) -> None:
    got = [
        item["key"]
        for items in pages(with_captions, 30, search=text, captions=True)
        for item in items
    ]
    expected = []
    for key in all_keys(with_captions):
        texts = [key, caption(key) or "", label(key) or ""]
        if any(text.lower() in one.lower() for one in texts):
            expected.append(key)
    assert got == expected
    assert (got == []) == (text == "nothing")
    by_key = [key for items in pages(with_captions, 30, search=text) for key in items]
    assert len(by_key) == sum(text.lower() in key.lower() for key in all_keys(with_captions))


def test_a_search_for_captions_reads_only_files_that_have_some(with_captions: Dataset) -> None:
    dataset = open_dataset(with_captions.url)  # nothing is in its cache

    def read() -> list[bool]:
        """Of which data files anything was read."""
        CountingFileSystem.requests.clear()
        for _ in pages(dataset, 1000, search="harbour", captions=True):
            pass
        paths = {path for path, _ in CountingFileSystem.requests}
        return [any(path.endswith(file.path) for path in paths) for file in dataset.files]

    indexed = dataset.lookup.has_index(dataset.files[1])
    assert read() == [True, not indexed, True]
    if indexed:
        assert read() == [False] * 3  # whoever types on makes nobody read again


def test_a_search_for_captions_gives_up_after_a_while(
    with_captions: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages_module, "PAGE_SECONDS", -1.0)
    got, count = [], 0
    for items in pages(with_captions, 1000, search="No. 5", captions=True):
        got += [item["key"] for item in items]
        count += 1
    assert got == [key for key in all_keys(with_captions) if "No. 5" in (caption(key) or "")]
    assert count >= 6  # a row group each


def test_side_fields_that_are_too_large_are_not_read(tmp_path: Path) -> None:
    """And it is told of how many pictures they are."""
    dataset = write_dataset(str(tmp_path / "set"), [captioned(0, 250, noise=50_000)], 2)
    query = pages_module.PageQuery(limit=500, search="harbour", captions=True)
    found = pages_module.page(dataset.lookup, query)
    assert (found.items, found.next) == ([], None)
    assert found.unread == 200
    items, _ = dataset.page(limit=500, captions=True)
    assert len(items) == 200
    assert {item["caption"] for item in items} == {None}


@pytest.mark.parametrize("query", [{}, {"search": "cat"}, {"search": "harbour", "captions": True}])
@pytest.mark.parametrize("limit", [1000, 37])
def test_backwards_is_the_same_the_other_way_round(
    with_captions: Dataset, query: dict[str, Any], limit: int
) -> None:
    def keys(backwards: bool) -> list[str]:
        got: list[str] = []
        after = None
        for _ in range(1000):
            asked = pages_module.PageQuery(after, limit, backwards=backwards, **query)
            found = pages_module.page(with_captions.lookup, asked)
            got += [item["key"] for item in found.items]
            after = found.next
            if after is None:
                return got
        raise AssertionError("the pages do not end")

    forwards = keys(False)
    assert forwards
    assert keys(True) == forwards[::-1]


def test_what_lies_beside_a_picture(with_captions: Dataset) -> None:
    """Also over the ends of row groups and files."""
    keys = all_keys(with_captions)
    for place in (0, 1, 203, 204, 205, 479, 480, 959, 1438, 1439):
        entry = with_captions.locate(keys[place])
        assert entry is not None
        for backwards, other in ((True, place - 1), (False, place + 1)):
            after = pages_module.beside(with_captions.lookup, entry, backwards)
            found = []
            if after is not None:
                query = pages_module.PageQuery(after, 1, backwards=backwards)
                found = pages_module.page(with_captions.lookup, query).items
            expected = [keys[other]] if 0 <= other < len(keys) else []
            assert [item["key"] for item in found] == expected
