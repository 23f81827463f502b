"""What is damaged, slow or too much: fewer layers, 404 or 503 in words, and never a 500."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from codec import CorruptStreamError, EncodedImage
from pipeline.filesystems import StorageError
from pipeline.retrieval.dataset import Dataset, open_dataset
from pipeline.serving.answers import Answer
from pipeline.serving.limits import Limits
from pipeline.serving.service import PreviewService, Wish
from tests.pipeline.makers import ToyCodec, picture
from tests.pipeline.serving.conftest import Client, url
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


def test_an_error_that_nobody_expected(
    client: TestClient, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "locate", lambda _: {}["of the programmer"])
    answer = client.get(url("s0000"))
    assert answer.status_code == 500
    assert list(answer.json()) == ["detail"]
    assert "programmer" not in answer.text


class Slow:
    """A codec that decodes when it is told to."""

    def __init__(self, toy: ToyCodec, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.entered = threading.Event(), threading.Event()
        self.batches: list[int] = []
        decode = toy.decode

        def waiting(encoded: Sequence[EncodedImage], **options: Any) -> list[np.ndarray]:
            self.batches.append(len(encoded))
            self.entered.set()
            assert self.go.wait(60)
            return decode(encoded, **options)

        monkeypatch.setattr(toy, "decode", waiting)


@pytest.fixture
def slow(toy: ToyCodec, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    codec = Slow(toy, monkeypatch)
    yield codec
    codec.go.set()


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


def test_a_request_that_takes_too_long_is_given_up(
    connect: Client, dataset: Dataset, slow: Slow
) -> None:
    client = connect(dataset, deadline=0.3)
    answer = client.get(url("s0000"))
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    slow.go.set()
    assert client.get(url("s0000")).status_code == 200


def test_pictures_that_are_too_large(connect: Client, dataset: Dataset) -> None:
    client = connect(dataset, max_pixels=10_000)
    answer = client.get(url("large", max_side=16))
    assert answer.status_code == 422
    assert "pixels" in answer.json()["detail"]
    assert client.get(url("glass")).status_code == 200


async def _started(service: PreviewService, wish: Wish) -> "asyncio.Task[Answer]":
    task = asyncio.create_task(service.image(wish))
    await asyncio.sleep(0.05)
    return task


def test_what_waits_at_the_same_time_is_decoded_together(
    dataset: Dataset, toy: ToyCodec, slow: Slow
) -> None:
    async def ask() -> list[Answer]:
        service = PreviewService(dataset, toy, Limits(batch=3))
        first = await _started(service, Wish("large", 2))
        others = [await _started(service, Wish(f"s000{n}", 3)) for n in range(5)]
        other_kind = await _started(service, Wish("s0005", 4))
        slow.go.set()
        answers = await asyncio.gather(first, *others, other_kind)
        service.close()
        return answers

    answers = asyncio.run(ask())
    assert slow.batches == [1, 1, 3, 1, 1]  # the first of a kind shows how long it takes
    assert [answer.layers for answer in answers] == [2, 3, 3, 3, 3, 3, 4]


def test_what_nobody_waits_for_any_more_is_not_decoded(
    dataset: Dataset, toy: ToyCodec, slow: Slow
) -> None:
    async def ask() -> bytes:
        service = PreviewService(dataset, toy)
        first = await _started(service, Wish("large", 2))
        for number in range(5):
            (await _started(service, Wish(f"s000{number}", 3))).cancel()
        last = await _started(service, Wish("s0005", 4, format="png"))
        slow.go.set()
        await first
        answer = await last
        service.close()
        return answer.body

    np.testing.assert_array_equal(shown(asyncio.run(ask())), picture(5))
    assert slow.batches == [1, 1]
