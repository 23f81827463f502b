"""Previews of one dataset, without HTTP: find, read, decode in batches, write, remember.

    key ──► find (index) ──► read (its layers) ──► decode (a batch) ──► write (webp, ...) ──► cache
            threads          threads               the device's thread   threads

Nothing of this runs in the event loop, each step has threads of its own, and each is bounded
(``Limits``). What several ask for at the same time is made once. First layers are cheap, and what
people scroll through: from the first step to the last they wait for nothing that is slow.
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
from ..stores.cache import ByteCache
from .answers import Answer
from .batching import Batcher
from .figures import Figures
from .library import Found, Library, Source, Wish, nothing_left
from .limits import DEFAULT_LIMITS, SLOWER, Gate, Limits, Room
from .rendering import MEDIA_TYPES, alpha_like, from_original, render
from .sharing import Sharing

__all__ = ["PreviewService", "Settings", "Wish"]

T = TypeVar("T")

_TRIED = 192  # pixels on a side of the picture that a codec is tried with
_READERS = 32  # they wait for a store more than they work
SLOW = (
    1.0  # seconds a megapixel that layers may add to the first one: more is no pleasure to wait for
)
_OVERHEAD = 1000  # bytes that a kept answer takes besides its body


@dataclass(frozen=True)
class Settings:
    """Settings of a server process. ``options`` are fsspec's, and may hold secrets."""

    dataset: str
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    device: str = "cpu"
    limits: Limits = DEFAULT_LIMITS


class PreviewService:
    """Everything a server needs of one dataset. Its coroutines belong to one event loop.

    They raise NotThere for unknown keys, CannotShow for what should be asked for in another way,
    Busy where too many wait, and TimeoutError after ``limits.deadline`` or ``SLOWER`` times that.
    """

    def __init__(
        self,
        dataset: Dataset,
        codec: Codec,
        limits: Limits = DEFAULT_LIMITS,
        quick_layers: int | None = None,
    ) -> None:
        self.dataset, self.codec, self.limits = dataset, codec, limits
        self._quick_layers = dataset.num_layers if quick_layers is None else quick_layers
        self.figures = Figures()
        self._library = Library(dataset, codec, limits.max_pixels)
        self._finding, self._telling = (_Desk(self.figures, 16) for _ in range(2))
        self._listing = _Desk(self.figures, 4)  # a search works for seconds
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        decode = self.figures.working("decode", self._decode)
        self._quick, self._slow = (
            _Lane(limits, Batcher(decode, limits, self.figures.batches.observe), seconds)
            for seconds in (limits.deadline, SLOWER * limits.deadline)
        )
        self._originals = Gate(limits.running, limits.waiting)
        self._originals_room = Room(limits.memory)
        self._sharing: Sharing[Answer] = Sharing()
        self._cache = ByteCache(limits.cache_bytes)
        gates = (self._quick.gate, self._slow.gate)
        self.figures.inside.set_function(lambda: sum(gate.inside for gate in gates))
        self.figures.cache_bytes.set_function(lambda: self._cache.bytes)

    @classmethod
    def open(cls, settings: Settings) -> "PreviewService":
        """Open the dataset, load its model onto the device and try both."""
        dataset = open_dataset(settings.dataset, settings.options)
        codec = dataset.codec(settings.device)
        tried = _tried(codec, dataset.num_layers)
        slow = settings.device == "cpu" and tried > SLOW
        return cls(dataset, codec, settings.limits, 1 if slow else None)

    @property
    def version(self) -> str:
        """Of what the dataset holds; it changes when any picture may."""
        return self._library.version

    def close(self) -> None:
        """End the threads after what they are doing."""
        for lane in (self._quick, self._slow):
            lane.close()
        for desk in (self._finding, self._telling, self._listing):
            desk.close()
        self._readers.shutdown(wait=True, cancel_futures=True)

    # -- what is asked for ------------------------------------------------------------------------

    async def image(self, wish: Wish, known: Callable[[str], bool] = lambda _: False) -> Answer:
        """The picture as a file; with an empty body where the client has it (``known(etag)``)."""
        count = self.figures.cache.labels
        async with asyncio.timeout(self.limits.deadline) as patience:
            found = await self._finding.do("find", self._library.find, wish)
            if known(found.etag):
                count("not_modified").inc()
                return Answer(b"", MEDIA_TYPES[wish.format], found.etag)
            cached: Answer | None = self._cache.get(found.etag)
            if cached is not None:
                count("hit").inc()
                return cached
            lane = self._quick if found.quick else self._slow
            patience.reschedule(asyncio.get_running_loop().time() + lane.deadline)
            with lane.gate.admitted():
                count("shared" if found.etag in self._sharing else "miss").inc()
                return await self._sharing.do(found.etag, partial(self._make, found, lane))

    async def info(self, key: str) -> dict[str, Any]:
        """What there is to know of one picture besides its pixels."""
        async with asyncio.timeout(self.limits.deadline):
            return await self._telling.do("info", self._library.info, key)

    async def original(self, key: str, known: Callable[[str], bool] = lambda _: False) -> Answer:
        """The kept original, as ``image`` gives it. Raises NotThere where none is kept."""
        async with asyncio.timeout(self.limits.deadline):
            found = await self._finding.do("find", self._library.find_original, key)
            if known(found.etag):
                return Answer(b"", "", found.etag)
            async with self._originals.enter(), self._originals_room.take(found.nbytes):
                body, media_type = await self._read(self._library.original, found.entry)
        self.figures.stream_bytes.inc(len(body))
        return Answer(body, media_type, found.etag, found.entry.num_layers, len(body), True)

    async def page(self, after: str | None, limit: int, search: str, filter: Any) -> dict[str, Any]:
        """Some pictures in the dataset's order, and the cursor that goes on behind them.

        Raises CursorError for a cursor that was not given by this dataset.
        """
        async with asyncio.timeout(self.limits.deadline):
            return await self._listing.do("page", self._library.page, after, limit, search, filter)

    def facts(self) -> dict[str, Any]:
        """What there is to know of the dataset."""
        return {**self._library.facts(), "quick_layers": self._quick_layers}

    # -- the steps --------------------------------------------------------------------------------

    async def _make(self, found: Found, lane: "_Lane", keep: Callable[[], None]) -> Answer:
        """The answer, which the cache gets, too; ``keep()`` once its decoding begins."""
        wish, figures = found.wish, self.figures
        media_type = MEDIA_TYPES[wish.format]
        async with lane.gate.slot(), lane.room.take(found.memory):
            if found.original:
                original, _ = await self._read(self._library.original, found.entry)
                figures.stream_bytes.inc(len(original))
                body = await lane.write(figures, self._write_original, original, wish)
                layers, nbytes = found.entry.num_layers, len(original)
                return self._remember(Answer(body, media_type, found.etag, layers, nbytes, True))
            source = await self._read(self._library.read, found)
            figures.stream_bytes.inc(source.stream.nbytes)
            with figures.stage("decode"):
                rgb, source = await self._decode_sound_layers(source, wish, lane.batcher, keep)
            body = await lane.write(figures, self._write, rgb, source, wish)
        layers, nbytes = source.stream.num_layers, source.stream.nbytes
        if source.damaged is not None:
            figures.damaged.inc()
            return Answer(body, media_type, "", layers, nbytes, damaged=source.damaged)
        return self._remember(Answer(body, media_type, found.etag, layers, nbytes))

    def _remember(self, answer: Answer) -> Answer:
        cost = len(answer.body) + _OVERHEAD
        if 4 * cost <= self.limits.cache_bytes:  # one picture must not drive out all the others
            self._cache.put(answer.etag, answer, cost)
        return answer

    async def _read(self, function: Callable[..., T], *arguments: Any) -> T:
        """However long decoding may take: a store that does not answer has no more than this."""
        async with asyncio.timeout(self.limits.deadline):
            return await self.figures.run(self._readers, "read", function, *arguments)

    async def _decode_sound_layers(
        self, source: Source, wish: Wish, batcher: Batcher, begun: Callable[[], None]
    ) -> tuple[np.ndarray, Source]:
        """The picture from the layers that can be decoded, and these."""
        while True:
            stream = source.stream
            try:
                rgb = await batcher.decode(stream, stream.num_layers, wish.max_side, begun)
                return rgb, source
            except CorruptStreamError as error:
                if not error.layer:
                    raise nothing_left(wish.key, error) from error
                source = replace(source, stream=stream.truncate(error.layer), damaged=error.layer)

    def _decode(
        self, streams: Sequence[EncodedImage], layers: int, max_side: int | None
    ) -> list[np.ndarray]:
        if max_side is None:
            return self.codec.decode(streams, layers=layers)
        return self.codec.decode_small(streams, max_side=max_side, layers=layers)

    def _write(self, rgb: np.ndarray, source: Source, wish: Wish) -> bytes:
        if source.alpha is None:
            return render(rgb, None, wish.format)
        try:
            alpha = alpha_like(source.alpha, rgb, self.limits.max_pixels)
        except CorruptStreamError as error:
            raise nothing_left(wish.key, error) from error
        return render(rgb, alpha, wish.format)

    def _write_original(self, original: bytes, wish: Wish) -> bytes:
        try:
            rgb, alpha = from_original(original, wish.max_side, self.limits.max_pixels)
        except (BrokenImageError, UnsupportedImageError) as error:
            raise nothing_left(wish.key, error) from error
        return render(rgb, alpha, wish.format)


def _tried(codec: Codec, layers: int) -> float:
    """Seconds a megapixel that three layers take longer than one, of this thread's processor.

    Also makes the codec ready: whatever is used for the first time is slow.
    """
    picture = np.empty((_TRIED, _TRIED, 3), np.uint8)
    picture[:] = np.linspace(0, 255, _TRIED)[:, None]
    picture[..., 0] = picture[..., 1].T
    (stream,) = codec.encode([picture], layers=min(3, layers))

    def seconds(stream: EncodedImage) -> float:
        started = time.thread_time()
        codec.decode_small([stream], max_side=_TRIED // 2)
        return time.thread_time() - started

    first = stream.truncate(1)
    seconds(first)
    return (seconds(stream) - seconds(first)) / (_TRIED**2 / 1e6)


class _Desk:
    """Threads for questions of one kind, and a gate before them."""

    def __init__(self, figures: Figures, threads: int) -> None:
        self._figures = figures
        self._gate = Gate(threads, 15 * threads)
        self._threads = ThreadPoolExecutor(threads)

    async def do(self, stage: str, function: Callable[..., T], *arguments: Any) -> T:
        async with self._gate.enter():
            return await self._figures.run(self._threads, stage, function, *arguments)

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


class _Lane:
    """What pictures of one kind, quick or slow ones, have to themselves."""

    def __init__(self, limits: Limits, batcher: Batcher, deadline: float) -> None:
        self.gate = Gate(limits.running, limits.waiting)
        self.room = Room(limits.memory)
        self.batcher, self.deadline = batcher, deadline
        self._writers = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="write")

    async def write(
        self, figures: Figures, function: Callable[..., bytes], *arguments: Any
    ) -> bytes:
        return await figures.run(self._writers, "write", function, *arguments)

    def close(self) -> None:
        self.batcher.close()
        self._writers.shutdown(wait=True, cancel_futures=True)
