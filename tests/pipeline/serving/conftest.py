"""One small dataset of every kind of picture, and a client of a server of it; no Ray."""

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.testclient import TestClient

from codec import EncodedImage
from codec.images.files import write_image
from pipeline.reader.dataset import Dataset
from pipeline.serving.access import OPEN_ACCESS, Access
from pipeline.serving.app import create_app
from pipeline.serving.batching import Batcher
from pipeline.serving.limits import Limits
from pipeline.serving.service import PreviewService
from tests.pipeline.conftest import Make, make_dataset, toy
from tests.pipeline.makers import ToyCodec, picture, png, samples, write_tar

__all__ = ["make_dataset", "toy"]

HOSTILE = "<img src=x onerror=alert(1)> \"ü/%2F'"
Client = Callable[..., TestClient]


def alpha_plane(height: int = 40, width: int = 60) -> np.ndarray:
    """Left half transparent, right half opaque."""
    plane = np.zeros((height, width), np.uint8)
    plane[:, width // 2 :] = 255
    return plane


@pytest.fixture
def dataset(make_dataset: Make, tmp_path: Path) -> Dataset:
    """Keys ``s0000`` ... ``s0005`` (32x24), and some with more to them."""
    extra = [
        ("large.png", png(7, 200, 300)),
        ("glass.png", write_image(picture(8, 40, 60), alpha_plane(), "png")),
        ("a/b.png", png(9)),
        ("a/b/info.png", png(10)),
        (f"{HOSTILE}.png", png(11)),
        ("broken.png", b"no picture"),
    ]
    write_tar(tmp_path / "a.tar", samples(6))
    write_tar(tmp_path / "b.tar", extra)
    return make_dataset([str(tmp_path / "a.tar"), str(tmp_path / "b.tar")])


@pytest.fixture
def connect(toy: ToyCodec) -> Iterator[Client]:
    """``connect(dataset, running=1, ...)``: a client of a server with such limits."""
    opened: list[TestClient] = []

    def connect(dataset: Dataset, access: Access = OPEN_ACCESS, **limits: Any) -> TestClient:
        service = PreviewService(dataset, toy, Limits(**limits))
        client = TestClient(
            create_app(service, access=access),
            base_url="http://127.0.0.1",
            raise_server_exceptions=False,
        )
        opened.append(client.__enter__())
        return client

    yield connect
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(connect: Client, dataset: Dataset) -> TestClient:
    return connect(dataset)


def url(key: str, **parameters: Any) -> str:
    """The address of a picture, its key encoded as a browser's encodeURIComponent does."""
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    return f"/v1/images/{quote(key, safe='')}?{query}"


class Slow:
    """A codec that decodes when it is told to.

    ``batches`` are the sizes of those that have begun, ``waiting`` the streams that were given to
    the batchers so far.
    """

    def __init__(self, toy: ToyCodec, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.entered = threading.Event(), threading.Event()
        self.batches: list[int] = []
        self.waiting: list[EncodedImage] = []
        decode, ask = toy.decode, Batcher.decode

        def waits(encoded: Sequence[EncodedImage], **options: Any) -> list[np.ndarray]:
            self.batches.append(len(encoded))
            self.entered.set()
            assert self.go.wait(120)
            return decode(encoded, **options)

        async def asks(batcher: Batcher, stream: EncodedImage, *rest: Any) -> np.ndarray:
            self.waiting.append(stream)
            return await ask(batcher, stream, *rest)

        monkeypatch.setattr(toy, "decode", waits)
        monkeypatch.setattr(Batcher, "decode", asks)


@pytest.fixture
def slow(toy: ToyCodec, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    codec = Slow(toy, monkeypatch)
    yield codec
    codec.go.set()
