"""Damaged, slow or overloaded: fewer layers, 404 or 503 with a message, and never a 500."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from fastapi.testclient import TestClient
from ray.exceptions import RayActorError

from codec import CorruptStreamError, EncodedImage
from pipeline.reader.dataset import Dataset, open_dataset
from pipeline.serving import replicas
from pipeline.serving.metrics import Metrics
from pipeline.stores.filesystems import StorageError
from tests.pipeline.makers import ToyCodec
from tests.pipeline.serving.conftest import Client, Slow, url
from tests.pipeline.serving.test_pictures import shown


def damage(dataset: Dataset, key: str, layer: int) -> Dataset:
    """The dataset with one bit of a stored layer changed."""
    stored = dataset.record(key).encoded.layers[layer]
    for path in (Path(dataset.url) / "data").glob("*.parquet"):
        data = bytearray(path.read_bytes())
        at = data.find(stored)
        if at >= 0:
            data[at + len(stored) // 2] ^= 1
            path.write_bytes(data)
            return open_dataset(dataset.url)
    raise AssertionError("the layer is not stored verbatim")


def test_of_a_damaged_picture_the_layers_before(
    dataset: Dataset, connect: Client, toy: ToyCodec
) -> None:
    two = dataset.record("s0002", 2).encoded
    client = connect(damage(dataset, "s0002", 2))
    answer = client.get(url("s0002", format="png"))
    assert answer.status_code == 200
    np.testing.assert_array_equal(shown(answer.content), toy.decode([two])[0])
    assert answer.headers["x-strata-damaged"] == "2"
    assert answer.headers["x-strata-layers"] == "2"
    # Nobody may keep it in place of the picture.
    assert answer.headers["cache-control"] == "no-store"
    assert "etag" not in answer.headers
    sound = client.get(url("s0002", layers=2, format="png"))
    assert "x-strata-damaged" not in sound.headers
    assert sound.content == answer.content
    assert "strata_preview_damaged_total 1.0" in client.get("/metrics").text


def test_of_a_picture_without_a_sound_layer_nothing(dataset: Dataset, connect: Client) -> None:
    client = connect(damage(dataset, "s0002", 0))
    answer = client.get(url("s0002"))
    assert answer.status_code == 404
    assert "damaged" in answer.json()["detail"]
    assert dataset.url not in answer.text
    assert client.get(url("large")).status_code == 200


def test_what_only_the_codec_can_see(
    client: TestClient, toy: ToyCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others in its batch come out as they should."""
    decode = toy.decode

    def pedantic(
        encoded: Sequence[EncodedImage], *, layers: int | None = None, **options: Any
    ) -> list[np.ndarray]:
        if (layers or 4) > 1 and any((one.width, one.height) == (300, 200) for one in encoded):
            raise CorruptStreamError("layer 1 decodes to other symbols", 1)
        return decode(encoded, layers=layers, **options)

    monkeypatch.setattr(toy, "decode", pedantic)
    with ThreadPoolExecutor(4) as pool:
        keys = ["s0000", "large", "s0001", "glass"]
        answers = list(pool.map(lambda key: client.get(url(key, layers=3)), keys))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert [answer.headers["x-strata-layers"] for answer in answers] == ["3", "1", "3", "3"]
    assert answers[1].headers["x-strata-damaged"] == "1"


@pytest.mark.parametrize(("passing", "seconds"), [(True, "5"), (False, "60")])
def test_a_store_that_does_not_answer(
    client: TestClient,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    passing: bool,
    seconds: str,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise StorageError("s3://secret-bucket: SlowDown", passing=passing)

    monkeypatch.setattr(dataset, "fetch", fails)
    answer = client.get(url("s0000"))
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == seconds
    assert "secret-bucket" not in answer.text


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (ConnectionResetError("secret-bucket: the connection broke"), "5"),
        (PermissionError("secret-bucket: access denied"), "60"),
    ],
)
@pytest.mark.parametrize("path", ["s0000", "s0000/info", "s0000?layers=1&max_side=16", ""])
def test_a_store_whose_errors_are_its_own(
    client: TestClient,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    error: Exception,
    seconds: str,
) -> None:
    """Not every error of a store has been given a name of ours on its way here."""

    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(dataset.store.fs, "cat_file", fails)
    answer = client.get(f"/v1/images/{path}".rstrip("/"))
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == seconds
    assert "secret-bucket" not in answer.text


def test_of_a_file_that_is_gone_there_is_nothing_to_wait_for(
    client: TestClient, dataset: Dataset
) -> None:
    """503 would make the page wait with all its requests, and for ever."""
    first, second = (dataset.locate(key).file.path for key in ("s0000", "large"))
    assert first != second
    (Path(dataset.url) / first).unlink()
    for address in (url("s0000"), "/v1/images/s0000/info"):
        answer = client.get(address)
        assert answer.status_code == 404
        assert "missing" in answer.json()["detail"]
        assert first not in answer.text
    assert client.get(url("large")).status_code == 200


def test_an_error_that_nobody_expected(
    client: TestClient, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "locate", lambda _: {}["of the programmer"])
    answer = client.get(url("s0000"))
    assert answer.status_code == 500
    assert list(answer.json()) == ["detail"]
    assert "programmer" not in answer.text


def test_a_picture_may_take_longer_than_a_preview(
    connect: Client, dataset: Dataset, slow: Slow
) -> None:
    """A preview is given up after the timeout, a picture that is slow to decode later."""
    client = connect(dataset, timeout=2.0)
    with ThreadPoolExecutor() as pool:
        picture = pool.submit(client.get, url("s0000", layers=2))
        try:
            preview = client.get(url("s0000", layers=1))
            assert preview.status_code == 503
            assert "retry-after" in preview.headers
        finally:
            slow.go.set()
        assert picture.result().status_code == 200
    while client.get(url("s0000", layers=1)).status_code == 503:
        pass  # a slow machine needs its two seconds for other things


def test_too_many_are_told_when_to_come_back(connect: Client, dataset: Dataset, slow: Slow) -> None:
    client = connect(dataset, running=2, waiting=1)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client.get, url(f"s000{n}", layers=1)) for n in range(6)]
        while sum(one.done() for one in asked) < 3:
            time.sleep(0.01)
        refused = [one.result() for one in asked if one.done()]
        # What needs no decoding is answered all the same.
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/images/s0000/info").status_code == 200
        slow.go.set()
        answers = [one.result() for one in asked]
    assert [answer.status_code for answer in refused] == [503] * 3
    for answer in refused:
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert "detail" in answer.json()
        assert answer.headers["cache-control"] == "no-store"
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [503] * 3
    assert client.get(url("s0000", layers=1)).status_code == 200, "the server has room again"


def test_pictures_that_are_too_large(connect: Client, dataset: Dataset) -> None:
    client = connect(dataset, max_pixels=10_000)
    answer = client.get(url("large", max_side=16))
    assert answer.status_code == 422
    assert "at most 10000 (--max-pixels)" in answer.json()["detail"]
    assert client.get(url("glass")).status_code == 200


def test_figures_of_a_replica_whose_cluster_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of the others are missing then; its own are there, and are shared again later."""
    context = SimpleNamespace(app_name="previews", replica_id=SimpleNamespace(unique_id="abc"))
    monkeypatch.setattr(replicas.serve, "get_replica_context", lambda: context)
    shared = replicas.SharedMetrics(Metrics())
    for error in (ValueError("no such actor"), RayActorError(), RuntimeError("not connected")):
        monkeypatch.setattr(shared, "_find_board", Mock(side_effect=error))
        assert b'strata_preview_cache_bytes{replica="abc"} 0.0' in asyncio.run(shared.text())
