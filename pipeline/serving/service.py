"""Previews of one dataset, without HTTP: find, read, decode in batches, write, cache.

    key ──► find (index) ──► read (its layers) ──► decode (a batch) ──► write (webp, ...) ──► cache
            threads          threads               the device's thread   threads

No step runs in the event loop: each has its own threads and limits (``Limits``). Equal requests at
the same time are processed once. Quick pictures never wait for slow ones, because people scroll
through them.
"""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from codec import Codec, CorruptStreamError, EncodedImage
from codec.errors import BrokenImageError, UnsupportedImageError

from ..reader.dataset import Dataset, open_dataset
from ..reader.originals import read_original
from ..reader.pages import PageQuery
from ..running.options import check_codec_options
from ..stores.cache import ByteCache
from .access import OPEN_ACCESS, Access
from .answers import Answer
from .batching import Batcher
from .limits import DEFAULT_LIMITS, SLOWER, Gate, Limits, MemoryBudget
from .metrics import Metrics
from .preview_reader import LocatedPicture, PictureData, PreviewReader, PreviewRequest, nothing_left
from .rendering import MEDIA_TYPES, alpha_like, render
from .sharing import Sharing

__all__ = ["PreviewRequest", "PreviewService", "Settings"]

T = TypeVar("T")

STREAM_TYPE = "application/octet-stream"

_TRIAL_SIDE = 192  # pixels on a side of the picture with which the codec's speed is measured
_READERS = 32  # threads, which mostly wait for the store
SLOW = 1.0  # seconds per megapixel: a codec is slow if more layers take longer than this
_OVERHEAD = 1000  # bytes that a cached answer takes in addition to its body


@dataclass(frozen=True)
class Settings:
    """Settings of a server process. ``options`` are fsspec's, and may hold secrets."""

    dataset: str
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    device: str = "cpu"
    decoder: str | None = None
    limits: Limits = DEFAULT_LIMITS
    access: Access = OPEN_ACCESS


class PreviewService:
    """Answers all requests about one dataset. Its coroutines belong to one event loop.

    They raise NotFound for unknown keys, CannotShow for a format or size that is not possible, Busy
    if too many requests are waiting, and TimeoutError after ``limits.timeout`` or ``SLOWER`` times
    that.
    """

    def __init__(
        self,
        dataset: Dataset,
        codec: Codec,
        limits: Limits = DEFAULT_LIMITS,
        quick_layers: int | None = None,
        decoder: str | None = None,
    ) -> None:
        self.dataset, self.codec, self.limits = dataset, codec, limits
        self._quick_layers = dataset.num_layers if quick_layers is None else quick_layers
        self.metrics = Metrics()
        self._decoding = {} if decoder is None else {"decoder": decoder}
        shown = f"{decoder} {codec.head_id(self._decoding)}"
        self._reader = PreviewReader(dataset, codec, limits.max_pixels, shown)
        self._finding, self._telling = (_Pool(self.metrics, 16) for _ in range(2))
        self._listing = _Pool(self.metrics, 4)  # a search takes seconds
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        decode = self.metrics.working("decode", self._decode)
        self._quick, self._slow = (
            _Lane(limits, Batcher(decode, limits, self.metrics.batches.observe), seconds)
            for seconds in (limits.timeout, SLOWER * limits.timeout)
        )
        self._originals = Gate(limits.running, limits.waiting)
        self._originals_memory = MemoryBudget(limits.memory)
        self._sharing: Sharing[Answer] = Sharing()
        self._cache = ByteCache(limits.cache_bytes)
        gates = (self._quick.gate, self._slow.gate)
        self.metrics.inside.set_function(lambda: sum(gate.inside for gate in gates))
        self.metrics.cache_bytes.set_function(lambda: self._cache.bytes)

    @classmethod
    def open(cls, settings: Settings) -> "PreviewService":
        """Open the dataset, load its model onto the device and measure its speed.

        Raises OptionError for a decoder that the model does not have.
        """
        dataset = open_dataset(settings.dataset, settings.options)
        codec = dataset.codec(settings.device)
        if settings.decoder is not None:
            own = {"decoder": settings.decoder}
            check_codec_options(codec, "decode", own, settings.dataset)
        seconds = _seconds_of_more_layers(codec, dataset.num_layers)
        slow = settings.device == "cpu" and seconds > SLOW
        return cls(dataset, codec, settings.limits, 1 if slow else None, settings.decoder)

    @property
    def version(self) -> str:
        """Identifies the dataset's content. It changes whenever a picture may change."""
        return self._reader.version

    def close(self) -> None:
        """End the threads after their current tasks."""
        for lane in (self._quick, self._slow):
            lane.close()
        for pool in (self._finding, self._telling, self._listing):
            pool.close()
        self._readers.shutdown(wait=True, cancel_futures=True)

    # -- requests ---------------------------------------------------------------------------------

    async def image(
        self, request: PreviewRequest, known: Callable[[str], bool] = lambda _: False
    ) -> Answer:
        """The picture as a file. The body is empty if the client has it (``known(etag)``)."""
        count = self.metrics.cache.labels
        async with asyncio.timeout(self.limits.timeout) as patience:
            found = await self._finding.do("find", self._reader.find, request)
            if known(found.etag):
                count("not_modified").inc()
                return Answer(b"", MEDIA_TYPES[request.format], found.etag)
            cached: Answer | None = self._cache.get(found.etag)
            if cached is not None:
                count("hit").inc()
                return cached
            lane = self._quick if found.quick else self._slow
            patience.reschedule(asyncio.get_running_loop().time() + lane.timeout)
            with lane.gate.admitted():
                count("shared" if found.etag in self._sharing else "miss").inc()
                return await self._sharing.do(found.etag, partial(self._make, found, lane))

    async def info(self, key: str) -> dict[str, Any]:
        """The metadata of one picture."""
        async with asyncio.timeout(self.limits.timeout):
            return await self._telling.do("info", self._reader.info, key)

    async def original(self, key: str, known: Callable[[str], bool] = lambda _: False) -> Answer:
        """The kept original; ``known`` as in ``image``. Raises NotFound if none is kept."""
        async with asyncio.timeout(self.limits.timeout):
            found = await self._finding.do("find", self._reader.find_original, key)
            if known(found.etag):
                return Answer(b"", "", found.etag)
            async with self._originals.enter(), self._originals_memory.take(found.nbytes):
                body, media_type = await self._read(self._reader.original, found.entry)
        self.metrics.stream_bytes.inc(len(body))
        return Answer(body, media_type, found.etag, found.entry.num_layers, len(body), True)

    async def stream(
        self, key: str, layers: int | None, known: Callable[[str], bool] = lambda _: False
    ) -> Answer:
        """The first layers as they are stored, as bytes of ``EncodedImage.to_bytes``."""
        async with asyncio.timeout(self.limits.timeout):
            found = await self._finding.do("find", self._reader.find_stream, key, layers)
            if known(found.etag):
                return Answer(b"", "", found.etag)
            async with self._originals.enter(), self._originals_memory.take(2 * found.nbytes):
                data = await self._read(self._reader.stream, found)
                body = data.stream.to_bytes()
        self.metrics.stream_bytes.inc(data.stream.nbytes)
        if data.damaged is not None:
            self.metrics.damaged.inc()
        tag = found.etag if data.damaged is None else ""
        count, nbytes = data.stream.num_layers, data.stream.nbytes
        return Answer(body, STREAM_TYPE, tag, count, nbytes, damaged=data.damaged)

    async def page(self, query: PageQuery, next_to: str | None = None) -> dict[str, Any]:
        """Some pictures in the dataset's order, and the cursor of the next page.

        Raises CursorError for a cursor of another dataset.
        """
        async with asyncio.timeout(self.limits.timeout):
            return await self._listing.do("page", self._reader.page, query, next_to)

    def facts(self) -> dict[str, Any]:
        """Facts about the dataset."""
        return {**self._reader.facts(), "quick_layers": self._quick_layers}

    # -- the steps --------------------------------------------------------------------------------

    async def _make(self, found: LocatedPicture, lane: "_Lane", keep: Callable[[], None]) -> Answer:
        """Make an answer and cache it. Calls ``keep()`` when decoding starts."""
        request, metrics = found.request, self.metrics
        media_type = MEDIA_TYPES[request.format]
        async with lane.gate.slot(), lane.memory.take(found.memory):
            if found.original:
                original, kind = await self._read(self._reader.original, found.entry)
                metrics.stream_bytes.inc(len(original))
                body = original
                if kind != media_type or found.shrinks:
                    body = await lane.write(metrics, self._write_original, original, request)
                layers, nbytes = found.entry.num_layers, len(original)
                return self._cached(Answer(body, media_type, found.etag, layers, nbytes, True))
            data = await self._read(self._reader.read, found)
            metrics.stream_bytes.inc(data.stream.nbytes)
            with metrics.stage("decode"):
                rgb, data = await self._decode_sound_layers(data, request, lane.batcher, keep)
            body = await lane.write(metrics, self._write, rgb, data, request)
        layers, nbytes = data.stream.num_layers, data.stream.nbytes
        if data.damaged is not None:
            metrics.damaged.inc()
            return Answer(body, media_type, "", layers, nbytes, damaged=data.damaged)
        return self._cached(Answer(body, media_type, found.etag, layers, nbytes))

    def _cached(self, answer: Answer) -> Answer:
        cost = len(answer.body) + _OVERHEAD
        if 4 * cost <= self.limits.cache_bytes:  # one picture must not replace all others
            self._cache.put(answer.etag, answer, cost)
        return answer

    async def _read(self, function: Callable[..., T], *arguments: Any) -> T:
        """Read in a thread, for at most ``limits.timeout`` even if decoding may take longer."""
        async with asyncio.timeout(self.limits.timeout):
            return await self.metrics.run(self._readers, "read", function, *arguments)

    async def _decode_sound_layers(
        self,
        data: PictureData,
        request: PreviewRequest,
        batcher: Batcher,
        begun: Callable[[], None],
    ) -> tuple[np.ndarray, PictureData]:
        """The picture, decoded from the layers before the first damaged one, and those layers."""
        while True:
            stream = data.stream
            try:
                rgb = await batcher.decode(stream, stream.num_layers, request.max_side, begun)
                return rgb, data
            except CorruptStreamError as error:
                if not error.layer:
                    raise nothing_left(request.key, error) from error
                data = replace(data, stream=stream.truncate(error.layer), damaged=error.layer)

    def _decode(
        self, streams: Sequence[EncodedImage], layers: int, max_side: int | None
    ) -> list[np.ndarray]:
        if max_side is None:
            return self.codec.decode(streams, layers=layers, **self._decoding)
        return self.codec.decode_small(streams, max_side=max_side, layers=layers, **self._decoding)

    def _write(self, rgb: np.ndarray, data: PictureData, request: PreviewRequest) -> bytes:
        if data.alpha is None:
            return render(rgb, None, request.format)
        try:
            alpha = alpha_like(data.alpha, rgb, self.limits.max_pixels)
        except CorruptStreamError as error:
            raise nothing_left(request.key, error) from error
        return render(rgb, alpha, request.format)

    def _write_original(self, original: bytes, request: PreviewRequest) -> bytes:
        try:
            picture = read_original(original, self.limits.max_pixels, request.max_side)
        except (BrokenImageError, UnsupportedImageError) as error:
            raise nothing_left(request.key, error) from error
        return render(picture.rgb, picture.alpha, request.format)


def _seconds_of_more_layers(codec: Codec, layers: int) -> float:
    """How many more CPU seconds per megapixel three layers take than one.

    Also warms up the codec, whose first use is slow.
    """
    picture = np.empty((_TRIAL_SIDE, _TRIAL_SIDE, 3), np.uint8)
    picture[:] = np.linspace(0, 255, _TRIAL_SIDE)[:, None]
    picture[..., 0] = picture[..., 1].T
    (stream,) = codec.encode([picture], layers=min(3, layers))

    def seconds(stream: EncodedImage) -> float:
        started = time.thread_time()
        codec.decode_small([stream], max_side=_TRIAL_SIDE // 2)
        return time.thread_time() - started

    first = stream.truncate(1)
    seconds(first)
    return (seconds(stream) - seconds(first)) / (_TRIAL_SIDE**2 / 1e6)


class _Pool:
    """Threads for requests of one kind, with a gate before them."""

    def __init__(self, metrics: Metrics, threads: int) -> None:
        self._metrics = metrics
        self._gate = Gate(threads, 15 * threads)
        self._threads = ThreadPoolExecutor(threads)

    async def do(self, stage: str, function: Callable[..., T], *arguments: Any) -> T:
        async with self._gate.enter():
            return await self._metrics.run(self._threads, stage, function, *arguments)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


class _Lane:
    """The resources of quick pictures, or of slow ones: the two share none."""

    def __init__(self, limits: Limits, batcher: Batcher, timeout: float) -> None:
        self.gate = Gate(limits.running, limits.waiting)
        self.memory = MemoryBudget(limits.memory)
        self.batcher, self.timeout = batcher, timeout
        self._writers = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="write")

    async def write(
        self, metrics: Metrics, function: Callable[..., bytes], *arguments: Any
    ) -> bytes:
        return await metrics.run(self._writers, "write", function, *arguments)

    def close(self) -> None:
        self.batcher.close()
        self._writers.shutdown(wait=True, cancel_futures=True)
