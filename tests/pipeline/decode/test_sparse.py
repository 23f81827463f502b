"""Few pictures of a large row group: only their own bytes are read, with the same result."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec.images.files import write_image
from pipeline.decode import sparse
from pipeline.decode.job import DecodeOptions, decode
from pipeline.reader.dataset import Dataset, open_dataset
from pipeline.stores import ranges
from tests.pipeline.conftest import Make
from tests.pipeline.counting import CountingFileSystem
from tests.pipeline.makers import png, write_tar

pytestmark = pytest.mark.usefixtures("without_ray")
KEYS = ["k003", "k050", "k099", "k100", "bad"]


@pytest.fixture
def dataset(make_dataset: Make, tmp_path: Path) -> Dataset:
    """One row group of 102 pictures, two of them with an alpha channel, and a bad sample."""
    CountingFileSystem.store.clear()
    alpha = np.arange(40 * 50, dtype=np.uint8).reshape(40, 50)
    rgb = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    files = [(f"k{n:03d}.png", png(n, 40, 50)) for n in range(100)]
    files += [(f"k{n}.webp", write_image(rgb, alpha, "webp")) for n in (100, 101)]
    source = write_tar(tmp_path / "x.tar", [*files, ("bad.png", b"not a picture")])
    return make_dataset([str(source)], "counting://bucket/set", keep_original="always")


@pytest.fixture
def keys(tmp_path: Path) -> str:
    path = tmp_path / "keys"
    path.write_text("\n".join(KEYS))
    return str(path)


def copied(dataset: Dataset, output: Path, **options: Any) -> list[dict[str, Any]]:
    decode(DecodeOptions(dataset.url, str(output), format="strata", **options))
    (file,) = (copy := open_dataset(str(output))).files
    with copy.open(file) as opened:
        return list(opened.parquet.read().to_pylist())


@pytest.mark.parametrize(
    "options",
    [{"layers": 2}, {"max_bytes": 2500}, {"layers": 4, "keep_original": True}],
    ids=["layers", "bytes", "originals"],
)
def test_few_rows_are_the_same_rows(
    options: dict[str, Any],
    dataset: Dataset,
    keys: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sparse, "LARGE", 0)
    found: list[Any] = []
    with_streams = sparse.with_streams
    monkeypatch.setattr(
        sparse, "with_streams", lambda *to: found.append(with_streams(*to)) or found[-1]
    )
    few = copied(dataset, tmp_path / "few", keys_file=keys, **options)
    # but for originals of samples that are no pictures: no index has these
    assert (found[0] is None) == ("keep_original" in options)
    monkeypatch.setattr(sparse, "are_few", lambda *_: False)
    assert few == copied(dataset, tmp_path / "all", keys_file=keys, **options)
    assert sorted(row["key"] for row in few) == sorted(KEYS)
    if "max_bytes" in options:
        assert len({row["layers"] for row in few if row["header"]}) > 1


def test_their_originals_too(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "LARGE", 0)
    given: dict[str, Any] = {"filter": 'key in ["k003", "k100"]', "keep_original": True}
    few = copied(dataset, tmp_path / "few", **given)
    assert [row["original"] for row in few] == [dataset.original(key) for key in ("k003", "k100")]
    assert few[1]["alpha"] is not None
    monkeypatch.setattr(sparse, "are_few", lambda *_: False)
    assert few == copied(dataset, tmp_path / "all", **given)


def test_only_their_bytes_are_read(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "MERGE_GAP", 0)  # the gaps between them are small here
    (file,) = dataset.files
    assert file.index is not None
    with dataset.open(file) as opened:
        group = opened.metadata.row_group(0)
        columns = [group.column(number) for number in range(group.num_columns)]
    sizes = {column.path_in_schema: column.total_compressed_size for column in columns}
    small = sum(n for name, n in sizes.items() if not name.startswith(("layer_", "orig", "alpha")))
    layers = sum(sizes[f"layer_{number:02d}"] for number in range(3))
    CountingFileSystem.requests.clear()
    rows = copied(dataset, tmp_path / "few", filter='key in ["k003", "k050", "k099"]', layers=3)
    fetched = CountingFileSystem.bytes_read(".parquet")
    needed = sum(row["cumulative_bytes"][-1] for row in rows)
    overhead = file.footer_bytes + file.index["bytes"] + small + sizes["key"]
    assert needed < fetched < 1.1 * overhead + needed
    assert fetched < layers / 2


def test_a_damaged_index_is_done_without(
    dataset: Dataset, keys: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "LARGE", 0)
    (file,) = dataset.files
    assert file.index is not None
    dataset.store.remove(file.index["path"])
    with pytest.warns(RuntimeWarning, match="read without it"):
        rows = copied(dataset, tmp_path / "few", keys_file=keys, layers=1)
    assert sorted(row["key"] for row in rows) == sorted(KEYS)


def test_pictures_are_decoded_from_them(
    dataset: Dataset, keys: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    monkeypatch.setattr(sparse, "LARGE", 0)
    for name in ("few", "all"):
        summary = decode(
            DecodeOptions(
                dataset.url, str(tmp_path / name), keys_file=keys, layers=3, format="files"
            )
        )
        assert (summary.ok, summary.bad) == (4, 1)
        found = sorted((tmp_path / name).rglob("*.png"))
        results.append({path.name: path.read_bytes() for path in found})
        monkeypatch.setattr(sparse, "are_few", lambda *_: False)
    assert results[0] == results[1]
    assert len(results[0]) == 4
