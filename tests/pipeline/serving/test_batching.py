"""What is decoded together, and what does not wait for what."""

import asyncio
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

from codec import EncodedImage
from pipeline.retrieval.dataset import Dataset
from pipeline.serving.batching import LONGEST_BATCH, Batcher
from pipeline.serving.limits import Limits
from tests.pipeline.makers import ToyCodec, picture
from tests.pipeline.serving.conftest import Client

SECONDS = LONGEST_BATCH / 2.5  # two of these pictures fit a batch, three do not


def stream(codec: ToyCodec) -> EncodedImage:
    return codec.encode([picture(1)])[0]


def test_batches_are_as_long_as_others_can_wait(toy: ToyCodec) -> None:
    """Slow pictures go in small batches, quick ones all together, the first of a kind alone."""
    sizes: dict[int, list[int]] = {1: [], 2: []}

    def decode(streams: Sequence[EncodedImage], layers: int, _: int | None) -> list[np.ndarray]:
        sizes[layers].append(len(streams))
        time.sleep(len(streams) * SECONDS if layers == 2 else 0)
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
    """A picture at all layers is under way, and a preview is answered meanwhile."""
    under_way, go_on = threading.Event(), threading.Event()
    decode = toy.decode

    def slow(encoded: Sequence[EncodedImage], **options: object) -> list[np.ndarray]:
        if options["layers"] != 1:
            under_way.set()
            assert go_on.wait(30)
        return decode(encoded, **options)

    client = connect(dataset)
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
