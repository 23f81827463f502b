"""A dataset as a source of Ray Data: pictures at a layer, and only the bytes that this takes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

import pipeline
from codec import load_codec
from pipeline import DatasetError, RayDecoder, ray_dataset
from pipeline.dataset import rows as dataset_rows
from pipeline.dataset.rows import column_bytes, stream_columns
from pipeline.loading.ray_data import StrataDatasource
from tests.integration.faults import FaultProxy
from tests.integration.servers import BUCKET, S3Server
from tests.pipeline.makers import png, tar_bytes
from tests.recipes.writing import write_dataset

pytestmark = [pytest.mark.integration]
COUNT = 12
URL = f"s3://{BUCKET}/ray-data/set"


@pytest.fixture(scope="module")
def dataset(moto_server: S3Server, ray_session: None, small_model: str) -> pipeline.Dataset:
    """Two shards, one with pictures of two sizes and a bad sample."""
    fs = moto_server.filesystem()
    for shard in range(2):
        files: list[tuple[str, bytes]] = [("broken.png", b"no")] if shard else []
        for n in range(shard * 6, shard * 6 + 6):
            side = 48 if n == 7 else 64
            files += [(f"p{n:02d}.png", png(n, side, side)), (f"p{n:02d}.cls", b"%d" % n)]
        fs.pipe_file(f"{BUCKET}/ray-data/in/{shard}.tar", tar_bytes(files))
    codec = load_codec(small_model)
    return write_dataset(
        [f"s3://{BUCKET}/ray-data/in"],
        URL,
        codec,
        codec.num_layers,
        moto_server.options(),
        keep_original="larger",
    )


@pytest.fixture
def proxy(moto_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(moto_server.endpoint) as proxy:
        yield proxy


def downloaded(proxy: FaultProxy) -> int:
    return proxy.bytes("GET", r"/data/.*\.parquet")[1]


def needed(dataset: pipeline.Dataset, columns: list[str]) -> int:
    total = 0
    for file in dataset.files:
        with dataset.open(file) as opened:
            sizes = column_bytes(opened.metadata)
        total += file.footer_bytes + sum(sizes[name] for name in columns)
    return total


def test_pictures_of_all_files(dataset: pipeline.Dataset, moto_server: S3Server) -> None:
    options = moto_server.options()
    encoded = ray_dataset(URL, 2, columns=["fields"], options=options)
    pictures = encoded.map_batches(
        RayDecoder,
        fn_constructor_kwargs={"url": URL, "options": options},
        batch_size=5,
        compute=one(),
    )
    rows = {row["key"]: row for row in pictures.take_all()}
    assert sorted(rows) == sorted(dataset.keys())
    for key, row in rows.items():
        assert set(row) == {"fields", "key", "width", "height", "image"}
        assert np.array_equal(row["image"], dataset.image(key, 2))
        fields = {field["name"]: field["data"] for field in row["fields"]}
        assert fields["cls"] == b"%d" % int(key[1:])


def one() -> Any:
    import ray.data

    return ray.data.ActorPoolStrategy(size=1)


def test_layers_that_are_not_wanted_stay_where_they_are(
    dataset: pipeline.Dataset, moto_server: S3Server, proxy: FaultProxy
) -> None:
    options = moto_server.options(proxy.endpoint)
    sampled = sum(file.footer_bytes for file in dataset.files)  # by the driver, for its estimates
    for layers in (0, 1):
        before = downloaded(proxy)
        assert len(ray_dataset(URL, layers, options=options).take_all()) == COUNT
        expected = needed(dataset, stream_columns(layers)) + sampled
        assert expected <= downloaded(proxy) - before <= 1.1 * expected
    before = downloaded(proxy)
    widths = ray_dataset(URL, 7, options=options).select_columns(["key", "width"]).take_all()
    assert [set(row) for row in widths] == [{"key", "width"}] * COUNT
    expected = needed(dataset, ["key", "width", "height", "header"]) + sampled
    assert downloaded(proxy) - before <= 1.1 * expected


def test_how_many_there_are_is_known_without_reading(
    dataset: pipeline.Dataset, moto_server: S3Server, proxy: FaultProxy
) -> None:
    encoded = ray_dataset(URL, 1, options=moto_server.options(proxy.endpoint))
    before = downloaded(proxy)
    assert encoded.count() == COUNT
    assert downloaded(proxy) == before


def test_tasks_for_files_and_for_parts_of_them(
    dataset: pipeline.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = StrataDatasource(dataset, 1)
    assert len(source.get_read_tasks(8)) == 2  # each file has one row group
    monkeypatch.setattr(dataset_rows, "ROWS_PER_GROUP", 2)
    few, many = source.get_read_tasks(1), source.get_read_tasks(5)
    assert (len(few), len(many)) == (2, 6)
    for tasks in (few, many):
        tables = [table for task in tasks for table in task()]
        assert sum(table.num_rows for table in tables) == COUNT
        assert all(table.schema.equals(tasks[0].schema) for table in tables)
    assert [task.metadata.num_rows for task in few] == [6, 6]
    actual = sum(table.nbytes for task in few for table in task())
    assert 0.3 * actual < source.estimate_inmemory_data_size() < 3 * actual


def test_filters_and_kept_originals(dataset: pipeline.Dataset, moto_server: S3Server) -> None:
    options = moto_server.options()
    small = ray_dataset(URL, 1, filter=pc.field("width") < 60, options=options)
    assert [row["key"] for row in small.take_all()] == ["p07"]
    decoded = ray_dataset(URL, options=options).map_batches(
        RayDecoder, fn_constructor_kwargs={"url": URL, "options": options}, compute=one()
    )
    for row in decoded.take_all():
        assert np.array_equal(row["image"], dataset.image(row["key"]))


def test_what_is_not_there_is_said_before_anything_runs(
    dataset: pipeline.Dataset, moto_server: S3Server
) -> None:
    options = moto_server.options()
    with pytest.raises(DatasetError, match="layers=9"):
        ray_dataset(URL, 9, options=options)
    with pytest.raises(DatasetError, match="filter"):
        ray_dataset(URL, 1, filter=pc.field("nothing") == 1, options=options)
    with pytest.raises(DatasetError, match="no archive"):
        ray_dataset(f"{URL}-not", options=options)
