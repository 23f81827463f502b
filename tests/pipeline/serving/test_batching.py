"""Which requests are decoded together or only once, and which do not wait for others."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import generate_latest

from codec import EncodedImage
from pipeline.reader.dataset import Dataset
from pipeline.reader.pages import PageQuery
from pipeline.serving import batching, preview_reader
from pipeline.serving.answers import Answer
from pipeline.serving.batching import LONGEST_BATCH, Batcher
from pipeline.serving.limits import Limits
from pipeline.serving.service import PreviewRequest, PreviewService
from tests.pipeline.makers import ToyCodec, picture
from tests.pipeline.serving.conftest import Client, Slow
from tests.pipeline.serving.test_pictures import shown

SECONDS = LONGEST_BATCH / 2.5  # two of these pictures fit a batch, three do not


def stream(codec: ToyCodec) -> EncodedImage:
    return codec.encode([picture(1)])[0]


def test_batches_are_as_long_as_others_can_wait(
    toy: ToyCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow pictures go in small batches, quick ones all together, the first of a kind alone."""
    sizes: dict[int, list[int]] = {1: [], 2: []}
    now = [0.0]  # a clock that only decoding moves
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def decode(streams: Sequence[EncodedImage], layers: int, _: int | None) -> list[np.ndarray]:
        sizes[layers].append(len(streams))
        now[0] += len(streams) * SECONDS if layers == 2 else 1e-6
        return [np.zeros((1, 1, 3), np.uint8) for _ in streams]

    async def ask() -> None:
        batcher = Batcher(decode, Limits(batch=8))
        one = stream(toy)
        for layers in (1, 2):
            await asyncio.gather(*(batcher.decode(one, layers, None) for _ in range(7)))
        batcher.close()

    asyncio.run(ask())
    assert sizes[1] == [1, 6]
    assert sizes[2][0] == 1
    assert max(sizes[2]) == 2
    assert sum(sizes[2]) == 7


def test_first_layers_do_not_wait_for_slow_pictures(
    connect: Client, dataset: Dataset, toy: ToyCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that may be in work is a picture at all layers; a preview is answered meanwhile."""
    under_way, go_on = threading.Event(), threading.Event()
    decode = toy.decode

    def slow(encoded: Sequence[EncodedImage], **options: object) -> list[np.ndarray]:
        if options["layers"] != 1:
            under_way.set()
            assert go_on.wait(30)
        return decode(encoded, **options)

    client = connect(dataset, running=1)
    monkeypatch.setattr(toy, "decode", slow)
    whole: list[int] = []
    asking = threading.Thread(
        target=lambda: whole.append(client.get("/v1/images/s0000").status_code)
    )
    asking.start()
    try:
        assert under_way.wait(30)
        assert client.get("/v1/images/s0001?layers=1").status_code == 200
        assert not whole
    finally:
        go_on.set()
        asking.join(30)
    assert whole == [200]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def started(
    service: PreviewService, slow: Slow, wish: PreviewRequest
) -> "asyncio.Task[Answer]":
    """A request whose stream has come as far as the batcher."""
    before = len(slow.waiting)
    task = asyncio.create_task(service.image(wish))
    await until(lambda: len(slow.waiting) > before)
    return task


def test_what_waits_at_the_same_time_is_decoded_together(
    dataset: Dataset, toy: ToyCodec, slow: Slow
) -> None:
    async def ask() -> list[Answer]:
        service = PreviewService(dataset, toy, Limits(batch=3))
        first = await started(service, slow, PreviewRequest("large", 2))
        await until(slow.entered.is_set)
        others = [await started(service, slow, PreviewRequest(f"s000{n}", 3)) for n in range(5)]
        other_kind = await started(service, slow, PreviewRequest("s0005", 4))
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
        first = await started(service, slow, PreviewRequest("large", 2))
        await until(slow.entered.is_set)
        for number in range(5):
            (await started(service, slow, PreviewRequest(f"s000{number}", 3))).cancel()
        last = await started(service, slow, PreviewRequest("s0005", 4, format="png"))
        slow.go.set()
        await first
        answer = await last
        service.close()
        return answer.body

    np.testing.assert_array_equal(shown(asyncio.run(ask())), picture(5))
    assert slow.batches == [1, 1]


def test_equal_requests_are_decoded_once(dataset: Dataset, toy: ToyCodec, slow: Slow) -> None:
    """One of them goes away, which is no matter for the others."""
    wish = PreviewRequest("s0000", 3)

    async def ask() -> list[Answer]:
        service = PreviewService(dataset, toy)
        first = await started(service, slow, wish)
        others = [asyncio.create_task(service.image(wish)) for _ in range(3)]
        await until(lambda: "strata_preview_inside 4.0" in told(service))
        first.cancel()
        slow.go.set()
        answers = await asyncio.gather(*others)
        assert 'strata_preview_cache_total{result="shared"} 3.0' in told(service)
        service.close()
        return answers

    assert len({answer.body for answer in asyncio.run(ask())}) == 1
    assert slow.batches == [1]
    assert len(slow.waiting) == 1


def told(service: PreviewService) -> str:
    return generate_latest(service.metrics.registry).decode()


def test_what_was_begun_is_there_for_whoever_comes_back(
    dataset: Dataset, toy: ToyCodec, slow: Slow
) -> None:
    """Otherwise a picture that takes too long is decoded again and again, each time in vain."""
    wish = PreviewRequest("s0000", 3)

    async def ask() -> Answer:
        service = PreviewService(dataset, toy)
        first = await started(service, slow, wish)
        await until(slow.entered.is_set)
        first.cancel()
        await asyncio.wait([first])
        slow.go.set()
        answer = await service.image(wish)
        service.close()
        return answer

    assert asyncio.run(ask()).layers == 3
    assert slow.batches == [1]


class Blocked:
    """A function of a module or an object waits from now on until it may ``go_on``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: object, name: str) -> None:
        self.go_on, self.entered = threading.Event(), 0
        function = getattr(place, name)

        def waits(*arguments: object, **options: object) -> object:
            self.entered += 1
            assert self.go_on.wait(120)
            return function(*arguments, **options)

        monkeypatch.setattr(place, name, waits)


def test_pictures_do_not_wait_for_searches(
    dataset: Dataset, toy: ToyCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = Blocked(monkeypatch, preview_reader, "page")

    async def ask() -> None:
        service = PreviewService(dataset, toy)
        try:
            searches = [
                asyncio.create_task(service.page(PageQuery(None, 10, f"{n}"))) for n in range(50)
            ]
            await until(lambda: pages.entered > 3)
            assert (await service.image(PreviewRequest("s0000", 1))).body
            assert (await service.info("s0000"))["width"] == 32
        finally:
            pages.go_on.set()
        await asyncio.gather(*searches)
        service.close()

    asyncio.run(ask())


def test_what_is_known_does_not_wait_for_a_slow_store(
    dataset: Dataset, toy: ToyCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many pictures as may be in work are being read; one that was shown before is there."""
    wish = PreviewRequest("s0005", 1)

    async def ask() -> None:
        service = PreviewService(dataset, toy)
        etag = (await service.image(wish)).etag
        store = Blocked(monkeypatch, dataset, "fetch")
        try:
            others = [
                asyncio.create_task(service.image(PreviewRequest("s0000", 1, 16 + side)))
                for side in range(service.limits.running)
            ]
            await until(lambda: store.entered == service.limits.running)
            assert (await service.image(wish)).body
            assert not (await service.image(wish, lambda known: known == etag)).body
        finally:
            store.go_on.set()
        await asyncio.gather(*others)
        service.close()

    asyncio.run(ask())


def test_large_pictures_are_in_work_one_after_the_other(
    dataset: Dataset, toy: ToyCodec, slow: Slow
) -> None:
    """What they take is bounded, not only how many they are; small ones go on beside them."""
    size = 300 * 200 * 8

    async def ask() -> None:
        service = PreviewService(dataset, toy, Limits(memory=2 * size))
        first = await started(service, slow, PreviewRequest("large", 2))
        second = asyncio.create_task(service.image(PreviewRequest("large", 3)))
        await until(lambda: "strata_preview_inside 2.0" in told(service))
        third = await started(service, slow, PreviewRequest("s0000", 1))
        slow.go.set()
        await asyncio.gather(first, second, third)
        service.close()

    asyncio.run(ask())
    assert [stream.num_layers for stream in slow.waiting] == [2, 1, 3]
