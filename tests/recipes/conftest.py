"""A dataset on an S3 server whose traffic is counted, large enough that footers are small in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from s3fs import S3FileSystem

from codec.base import EncodedImage
from codec.images.files import write_image
from pipeline.dataset import models
from pipeline.dataset.rows import column_bytes
from pipeline.reader.dataset import Dataset
from tests.integration.faults import FaultProxy
from tests.integration.servers import BUCKET, moto
from tests.pipeline.makers import ToyCodec, write_tar
from tests.recipes.writing import write_dataset

SHARDS, SAMPLES, PICTURES, SIDE = 2, 600, 8, 128
URL = f"s3://{BUCKET}/set"


class RepeatingCodec(ToyCodec):
    """The pictures repeat, and each is encoded once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.level = 1
        self.known: dict[bytes, EncodedImage] = {}

    def _encode(self, image: np.ndarray, layers: int) -> EncodedImage:
        name = image[:2].tobytes()
        if name not in self.known:
            self.known[name] = super()._encode(image, self.num_layers)
        return self.known[name].truncate(layers)


def picture_of(number: int) -> np.ndarray:
    """Noise, so that a layer is a quarter of the stream: 16 KB."""
    rng = np.random.default_rng(number % PICTURES)
    return rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Counted:
    """The dataset locally, and the proxy through which its copy on S3 is read."""

    local: Dataset
    proxy: FaultProxy

    def column_bytes(self, columns: list[str]) -> int:
        """What Parquet says that these columns and the footers take."""
        total = 0
        for file in self.local.files:
            with self.local.open(file) as opened:
                sizes = column_bytes(opened.metadata)
            total += file.footer_bytes + sum(sizes[name] for name in columns)
        return total

    @property
    def downloaded(self) -> int:
        """Bytes of data files that have left the server so far."""
        return self.proxy.bytes("GET", r"/data/.*\.parquet")[1]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counted]:
    """1,200 pictures in two files; every ``load_codec`` gives the codec they were written with."""
    folder = tmp_path_factory.mktemp("recipes")
    environment = {"AWS_ALLOW_HTTP": "true", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        local = _write(folder, patch)
        with moto() as server, FaultProxy(server.endpoint) as proxy:
            server.filesystem().put(local.url, f"{BUCKET}/set", recursive=True)
            patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            S3FileSystem.clear_instance_cache()  # clients remember the server that was there before
            yield Counted(local, proxy)
            S3FileSystem.clear_instance_cache()


def _write(folder: Path, patch: pytest.MonkeyPatch) -> Dataset:
    model = folder / "model"
    model.write_bytes(b"a model that repeats itself")
    codec = RepeatingCodec(model)
    patch.setattr(models, "load_codec", lambda *_, **__: codec)
    pictures = [write_image(picture_of(number), None, "png") for number in range(PICTURES)]
    for shard in range(SHARDS):
        files = []
        for number in range(SAMPLES):
            name = f"{shard}{number:04d}"
            files += [(f"{name}.png", pictures[number % PICTURES]), (f"{name}.cls", b"%d" % shard)]
        files.append((f"{shard}broken.png", b"this is no picture"))
        write_tar(folder / f"x-{shard}.tar", files)
    return write_dataset([str(folder / "x-*.tar")], str(folder / "set"), codec, 4)
