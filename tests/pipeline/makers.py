"""Small tars and a small exact codec, so that the pipeline's tests need neither model nor data."""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codec.base import Codec, EncodedImage
from codec.errors import CorruptStreamError
from codec.images.files import write_image
from codec.stream.bitstream import Layer, StreamHeader, pack_header, pack_layer, unpack_layer


def picture(seed: int = 0, height: int = 24, width: int = 32) -> np.ndarray:
    """A smooth picture with some noise, ``(height, width, 3) uint8``."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, width)[None, :, None] + rng.integers(0, 9, (height, width, 3))
    return ramp.astype(np.uint8)


def png(seed: int = 0, height: int = 24, width: int = 32) -> bytes:
    return write_image(picture(seed, height, width), None, "png")


def samples(count: int, start: int = 0) -> list[tuple[str, bytes]]:
    """``count`` clean samples of a png, a json and a cls."""
    files = []
    for number in range(start, start + count):
        files.append((f"s{number:04d}.png", png(number)))
        files.append((f"s{number:04d}.json", json.dumps({"n": number}).encode()))
        files.append((f"s{number:04d}.cls", str(number % 10).encode()))
    return files


def tar_bytes(
    files: Iterable[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT, mode: str = "w"
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=format) as tar:  # type: ignore[call-overload]
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def write_tar(path: Path, files: Iterable[tuple[str, bytes]], **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(tar_bytes(files, **options))
    return path


class ToyCodec(Codec):
    """Two bits of every pixel per layer, deflated; the fourth layer makes the picture exact.

    Pictures that are 13 pixels wide fail, alone as in a batch.
    """

    name, codec, num_layers, archive_layers, lossless = "toy", "uqdm", 4, 3, True

    def __init__(self, path: Path) -> None:
        self.model_path = path
        self.model_id = hashlib.sha256(path.read_bytes()).hexdigest()
        self.batches: list[int] = []
        self.level = 6

    def encode(
        self, images: Sequence[np.ndarray], *, layers: int | None = None, **options: Any
    ) -> list[EncodedImage]:
        self.batches.append(len(images))
        if any(image.shape[1] == 13 for image in images):
            raise FloatingPointError("thirteen is unlucky")
        return [self._encode(image, layers or self.num_layers) for image in images]

    def _encode(self, image: np.ndarray, layers: int) -> EncodedImage:
        height, width = image.shape[:2]
        header = pack_header(StreamHeader("uqdm", width, height, self.model_id[:8]))
        planes = [image >> (6 - 2 * number) & 3 for number in range(layers)]
        packed = [
            pack_layer(
                self.model_id, header, number, Layer(zlib.compress(plane.tobytes(), self.level))
            )
            for number, plane in enumerate(planes)
        ]
        return EncodedImage(header, tuple(packed))

    def decode(
        self, encoded: Sequence[EncodedImage], *, layers: int | None = None, **options: Any
    ) -> list[np.ndarray]:
        return [self._decode(one, layers) for one in encoded]

    def _decode(self, one: EncodedImage, layers: int | None) -> np.ndarray:
        if one.height * one.width > self.max_pixels:
            raise CorruptStreamError(f"{one.width}x{one.height} pixels are above max_pixels")
        image = np.zeros((one.height, one.width, 3), np.uint8)
        for number, data in enumerate(one.layers[:layers]):
            layer = unpack_layer(self.model_id, one.header, number, data)
            try:
                plane = np.frombuffer(zlib.decompress(layer.payload), np.uint8)
            except zlib.error as error:
                raise CorruptStreamError(str(error), number) from error
            image |= plane.reshape(image.shape) << (6 - 2 * number)
        return image
