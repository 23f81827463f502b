"""Encodes the samples of a shard to rows: reads, decodes and encodes at the same time.

    loader threads        device thread         coder threads          caller
    bytes -> pixels  ──►  pixels -> symbols ──► symbols -> bytes  ──►  rows, in the shard's order

With a GPU, each coder thread has a process that codes for it (codec/coder_process.py). Each arrow
is a bounded queue, so memory does not depend on the shard. One thread makes all calls of the codec
that need the device, because torch keeps a pool of threads for every thread that calls it.
"""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, TypeGuard

import numpy as np

from codec import Codec, EncodedImage, coder_process
from codec.batches import batches_by_size, in_parts, one_by_one_on_error, windows
from codec.coder_process import Coding, Helper
from codec.numerics.memory import is_out_of_memory, release_memory

from ..dataset.rows import Row
from ..running.stages import StageClock
from ..sources.samples import Sample
from ..sources.shards import ShardFile
from ..stores.reasons import describe
from ..stores.threads import ahead_within
from .keeping import finished_row, layers_to_encode, packed
from .loading import Loaded, load
from .quality import Measured, shown_by_layers
from .settings import CompressSettings

# Limits of a window: samples in memory with their decoded pictures. There are three windows: read
# ahead, on the device, in the coder. A larger sample is a window alone. Loaders may exceed the
# limit by one sample per thread, because a picture's size is unknown before it is decoded.
WINDOW_BYTES = 3 << 25
# All rows of a window are finished at the same time. A window must not take longer than this,
# because a lost worker loses it; so windows are smaller if the device is slow.
WINDOW_SECONDS = 60.0
WINDOW_ROWS = 256
BATCH_PIXELS = 1 << 22
CPU_BATCH_PIXELS = 1 << 20  # larger batches are no faster there and delay the first picture
SYSTEMATIC = 8  # so many failures without a success mean that the codec is broken


@dataclass(frozen=True)
class _DeviceFailure:
    """The device failed at a batch as a whole."""

    out_of_memory: bool


@dataclass
class _Batch:
    """Pictures that are encoded together, their positions in the window, and layers to encode.

    ``begun`` is the future of the device's half. Its result is the future of the coder's half, the
    streams.
    """

    positions: list[int]
    images: list[np.ndarray]
    layers: int
    begun: Future[Future[list[EncodedImage]] | _DeviceFailure]


class SampleEncoder:
    """One device and the threads around it. One shard at a time: ``rows`` is not reentrant."""

    def __init__(self, codec: Codec, settings: CompressSettings) -> None:
        self.codec, self.settings = codec, settings
        threads = max(1, settings.threads)
        self._loaders = ThreadPoolExecutor(threads, "load")
        self._device = ThreadPoolExecutor(1, "device")
        self._coders = max(1, threads // 2)
        self._coder = ThreadPoolExecutor(self._coders, "coder")
        self._of_thread = threading.local()
        self._queued: deque[Future[Any]] = deque()  # on the device, or waiting for it
        self._coding: deque[Future[list[EncodedImage]]] = deque()
        self._batch_pixels = CPU_BATCH_PIXELS if settings.device == "cpu" else BATCH_PIXELS
        self._window_bytes = WINDOW_BYTES
        self._clock = StageClock()
        self._encoded = self._failed = 0  # pictures of this shard
        self._on_coded: Callable[[int], None] = lambda count: None

    @property
    def batch_pixels(self) -> int:
        """Most pixels given to the device at once; halved whenever its memory runs out."""
        return min(self._batch_pixels, BATCH_PIXELS)

    def on_device(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call ``function`` in the device's thread and return its result."""
        return self._device.submit(function, *arguments).result()

    def rows(
        self,
        file: ShardFile,
        samples: Iterable[tuple[int, Sample]],
        clock: StageClock,
        on_rows: Callable[[list[Row]], None],
        on_coded: Callable[[int], None] = lambda count: None,
        *,
        skip: Mapping[int, str] | None = None,
        strict: bool = True,
    ) -> Iterator[Row]:
        """One row for each of the numbered ``samples``, in their order.

        ``skip`` has samples to leave out, by number, each with the reason; they become bad rows.
        ``on_coded`` is called with the number of coded pictures, in any thread and long before
        their rows are complete; ``on_rows`` is called with the rows. With ``strict``, RuntimeError
        is raised if the codec fails on all of the first ``SYSTEMATIC`` pictures.
        """
        self._clock, self._on_coded = clock, on_coded
        self._encoded = self._failed = 0
        self._window_bytes = min(3 * BATCH_PIXELS, WINDOW_BYTES)  # until the speed is known
        waiting: deque[tuple[list[Loaded], list[_Batch]]] = deque()
        ended = time.monotonic()

        def finish() -> list[Row]:
            nonlocal ended
            window, batches = waiting.popleft()
            rows = self._finish(window, batches, on_rows, strict)
            self._fit_windows(window, time.monotonic() - ended)
            ended = time.monotonic()
            return rows

        for window in self._windows(file, samples, skip or {}):
            waiting.append((window, self._begin(window)))
            if len(waiting) > 1:
                yield from finish()
        while waiting:
            yield from finish()

    # -- bytes to pixels --------------------------------------------------------------------------

    def _windows(
        self, file: ShardFile, samples: Iterable[tuple[int, Sample]], skip: Mapping[int, str]
    ) -> Iterator[list[Loaded]]:
        """Samples loaded in threads, in groups that memory can hold."""
        threads = max(1, self.settings.threads)

        def load_one(numbered: tuple[int, Sample]) -> Loaded:
            with self._clock.timed("decode", threads):
                return load(self.settings, file, *numbered, skip.get(numbered[0]))

        cost = attrgetter("cost")
        limits = {"budget": WINDOW_BYTES, "count": WINDOW_ROWS, "threads": threads}
        loaded = ahead_within(self._loaders, load_one, samples, cost, **limits)
        first = self.settings.batch_size  # few, because the device waits for them
        return windows(loaded, cost, lambda: self._window_bytes, WINDOW_ROWS, first)

    def _fit_windows(self, window: list[Loaded], seconds: float) -> None:
        """Choose the size of the next windows by the time that this one took."""
        cost = sum(loaded.cost for loaded in window)
        fitting = WINDOW_SECONDS * cost / max(seconds, 1e-3)
        self._window_bytes = int(min(max(fitting, 1), WINDOW_BYTES))

    # -- pixels to streams ------------------------------------------------------------------------

    def _begin(self, window: list[Loaded]) -> list[_Batch]:
        """Start encoding all pictures of a window, in batches of similar size."""
        alike: dict[int, list[int]] = defaultdict(list)
        for position, loaded in enumerate(window):
            if loaded.rgb is not None:
                alike[layers_to_encode(self.settings, loaded.row)].append(position)
        batches = []
        for layers, pictures in sorted(alike.items()):
            sizes = [window[position].rgb.shape[:2] for position in pictures]  # type: ignore[union-attr]
            for batch in batches_by_size(sizes, self.settings.batch_size, self.batch_pixels):
                for part in self._fitting(batch, sizes):
                    positions = [pictures[number] for number in part]
                    images = [window[position].rgb for position in positions]
                    batches.append(self._begin_batch(positions, images, layers))  # type: ignore[arg-type]
        return batches

    def _fitting(self, batch: list[int], sizes: list[tuple[int, int]]) -> Iterator[list[int]]:
        """Split a batch again if the device has run out of memory since it was made."""
        chosen = [sizes[number] for number in batch]
        for part in batches_by_size(chosen, len(batch), self.batch_pixels):
            yield [batch[number] for number in part]

    def _begin_batch(self, positions: list[int], images: list[np.ndarray], layers: int) -> _Batch:
        while len(self._queued) > 1:  # one runs on the device, and the next one is ready
            wait([self._queued.popleft()])
        begun = self._device.submit(self._begin_coding, images, layers)
        self._queued.append(begun)
        return _Batch(positions, images, layers, begun)

    def _begin_coding(
        self, images: list[np.ndarray], layers: int
    ) -> Future[list[EncodedImage]] | _DeviceFailure:
        """Run the device's half of a batch, and hand the rest to the coder."""
        finish = self._quantise(images, layers)
        if isinstance(finish, _DeviceFailure):
            return finish
        while len(self._coding) > self._coders:  # the device waits for the coder here
            wait([self._coding.popleft()])
        streams = self._coder.submit(self._code, finish)
        self._coding.append(streams)
        return streams

    def _quantise(
        self, images: list[np.ndarray], layers: int
    ) -> Callable[[], list[EncodedImage]] | _DeviceFailure:
        """Run the device's half of a batch; returns a function that runs the coder's half."""
        options = self.settings.codec_options
        try:
            with self._clock.timed("device"):
                return self.codec.begin_encode(images, layers=layers, **options)
        except Exception as error:
            failure = _DeviceFailure(is_out_of_memory(error))
        if (
            failure.out_of_memory
        ):  # outside the handler, whose traceback holds what is to be released
            release_memory()
            self._batch_pixels = max(1, sum(image[..., 0].size for image in images) // 2)
        return failure

    def _code(self, finish: Callable[[], list[EncodedImage]]) -> list[EncodedImage]:
        """The coder's half of a batch. Runs in a coder's thread."""
        with self._clock.timed("coder", self._coders):
            streams = finish.by(self._helper()) if self._helped(finish) else finish()
        self._on_coded(len(streams))
        return streams

    def _helped(self, finish: Callable[[], list[EncodedImage]]) -> TypeGuard[Coding]:
        """Whether other processes do the coding. On CPUs they would slow down the networks."""
        has_time = self.settings.threads > 1 and self.settings.device != "cpu"
        return has_time and coder_process.AVAILABLE and isinstance(finish, Coding)

    def _helper(self) -> Helper:
        """The helper process of this coder thread."""
        if not hasattr(self._of_thread, "helper"):
            self._of_thread.helper = Helper()
        helper: Helper = self._of_thread.helper
        return helper

    def _streams(self, batch: _Batch) -> list[EncodedImage | Exception]:
        """A batch's streams. If it failed as a whole, those of its parts, or their errors."""
        begun = batch.begun.result()
        if not isinstance(begun, _DeviceFailure) and begun.exception() is None:
            streams = begun.result()
            try:
                self._check(batch.images, streams)
                return list(streams)
            except ValueError:
                pass
        halve = isinstance(begun, _DeviceFailure) and begun.out_of_memory
        encode = partial(self._encode, layers=batch.layers)
        return list(self.on_device(in_parts, encode, batch.images, halve))

    def _encode(self, images: list[np.ndarray], layers: int) -> list[EncodedImage]:
        with self._clock.timed("device"):
            options = self.settings.codec_options
            streams = self.codec.encode(images, layers=layers, **options)
        self._check(images, streams)
        return streams

    def _check(self, images: list[np.ndarray], streams: list[EncodedImage]) -> None:
        for image, stream in zip(images, streams, strict=True):
            if (stream.height, stream.width) != image.shape[:2]:
                raise ValueError(
                    f"{self.codec.name} encoded {image.shape[1]}x{image.shape[0]} as "
                    f"{stream.width}x{stream.height}"
                )

    # -- streams to rows --------------------------------------------------------------------------

    def _finish(
        self,
        window: list[Loaded],
        batches: list[_Batch],
        on_rows: Callable[[list[Row]], None],
        strict: bool,
    ) -> list[Row]:
        rows = [loaded.row for loaded in window]
        without = [number for number, loaded in enumerate(window) if loaded.rgb is None]
        touched = [number for number in without if not window[number].untouchable]
        for number, row in zip(
            touched, self._loaders.map(packed, [rows[n] for n in touched]), strict=True
        ):
            rows[number] = row
        on_rows([rows[number] for number in without])
        failures: list[Exception] = []
        for batch in batches:
            streams = self._streams(batch)
            measured = self._measured(batch.images, streams)
            failures += [one for one in (*streams, *measured) if isinstance(one, Exception)]
            done = [rows[position] for position in batch.positions]
            finish = partial(finished_row, self.settings)
            finished = list(self._loaders.map(finish, done, streams, measured))
            for position, row in zip(batch.positions, finished, strict=True):
                rows[position] = row
            on_rows(finished)
        self._failed += len(failures)
        self._encoded += sum(len(batch.positions) for batch in batches) - len(failures)
        if strict and failures and self._failed >= SYSTEMATIC and not self._encoded:
            raise RuntimeError(f"no picture could be encoded: {describe(failures[0])}")
        return rows

    def _measured(
        self, images: list[np.ndarray], streams: list[EncodedImage | Exception]
    ) -> list[Measured | Exception | None]:
        """The quality of each picture; None if there is no target."""
        target = self.settings.target_quality
        if target is None:
            return [None] * len(images)
        numbers = [n for n, stream in enumerate(streams) if isinstance(stream, EncodedImage)]
        pairs = [(images[n], streams[n]) for n in numbers]

        def show(some: list[tuple[np.ndarray, EncodedImage]]) -> list[list[np.ndarray]]:
            with self._clock.timed("device"):
                return shown_by_layers(self.codec, [stream for _, stream in some])

        shown = self.on_device(one_by_one_on_error, show, pairs) if pairs else []

        def measure(pair: tuple[int, list[np.ndarray] | Exception]) -> Measured | Exception:
            number, pictures = pair
            if isinstance(pictures, Exception):
                return pictures
            with self._clock.timed("measure", max(1, self.settings.threads)):
                return target.measure(images[number], pictures)

        pairs_shown = list(zip(numbers, shown, strict=True))
        found = dict(zip(numbers, self._loaders.map(measure, pairs_shown), strict=True))
        return [found.get(n) for n in range(len(images))]
