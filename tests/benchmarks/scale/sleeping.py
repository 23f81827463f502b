"""A codec that sleeps: what the pipeline does when it is not the processor that limits.

Everything but the codec is real: tars, PNG decoding, Parquet, checks, publishing, commit records.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import pipeline.compress.job
from codec import Codec, EncodedImage
from codec.stream.bitstream import Layer, StreamHeader, pack_header, pack_layer
from pipeline.compress.encoder import SampleEncoder
from pipeline.compress.worker import ShardCompressor

MODEL = "uqdm"  # whose name the streams carry
VARIABLE = "STRATA_BENCHMARK_SLEEP"  # seconds; how the driver tells its workers


class SleepingCodec(Codec):
    """Sleeps for each picture, and gives it a valid stream of one layer and few bytes."""

    name, codec, num_layers, archive_layers, lossless = "sleeping", "uqdm", 1, 1, False
    model_path = Path()

    def __init__(self, model_id: str) -> None:
        self.model_id = model_id

    def encode(
        self, images: Sequence[np.ndarray], *, layers: int | None = None, **options: Any
    ) -> list[EncodedImage]:
        time.sleep(float(os.environ[VARIABLE]) * len(images))
        return [self._stream(*image.shape[:2]) for image in images]

    def _stream(self, height: int, width: int) -> EncodedImage:
        header = pack_header(StreamHeader("uqdm", width, height, self.model_id[:8]))
        layer = pack_layer(self.model_id, header, 0, Layer(b"asleep"))
        return EncodedImage(header, (layer,))

    def decode(
        self, encoded: Sequence[EncodedImage], *, layers: int | None = None, **options: Any
    ) -> list[np.ndarray]:
        return [np.zeros((one.height, one.width, 3), np.uint8) for one in encoded]


class SleepingCompressor(ShardCompressor):
    """The real worker around that codec."""

    @cached_property
    def encoder(self) -> SampleEncoder:
        return SampleEncoder(SleepingCodec(self.settings.model_id), self.settings)


@contextmanager
def sleeping_workers(seconds: float) -> Iterator[None]:
    """Let jobs of this process have workers that sleep ``seconds`` for each picture.

    Ray must be started inside: its processes inherit the seconds, and import the worker from here.
    """
    os.environ[VARIABLE] = str(seconds)
    real = pipeline.compress.job.ShardCompressor
    pipeline.compress.job.ShardCompressor = SleepingCompressor  # type: ignore[misc]
    try:
        yield
    finally:
        pipeline.compress.job.ShardCompressor = real  # type: ignore[misc]
