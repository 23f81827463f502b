"""Decodes pictures in batches: those that are requested at the same time, in one thread."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from codec import EncodedImage
from codec.batches import one_by_one_on_error

from .limits import Limits

MANY_KINDS = 1000  # kinds whose speed is remembered: clients may ask for any size
LONGEST_BATCH = 0.5  # seconds; other requests wait for a batch to end

Kind = tuple[int, int | None]  # layers and max_side: what can be decoded together
Decode = Callable[[Sequence[EncodedImage], int, int | None], list[np.ndarray]]


@dataclass(frozen=True)
class _Wanted:
    stream: EncodedImage
    kind: Kind
    done: "asyncio.Future[np.ndarray]" = field(compare=False)
    begun: Callable[[], None] = field(compare=False)

    @property
    def pixels(self) -> int:
        return self.stream.width * self.stream.height


class Batcher:
    """Gives streams to ``decode(streams, layers, max_side)`` in batches of one kind, oldest first.

    ``decode`` runs in one thread, because more would not be faster on one device. Requests that
    arrive while it runs form the next batch. If it does not run, the first request waits
    ``limits.gather`` seconds for others. Cancelled requests are not decoded. A batch is as large as
    can be decoded in ``LONGEST_BATCH`` seconds, estimated from earlier batches of its kind. The
    first picture of a kind is decoded alone. A Batcher belongs to one event loop.
    """

    def __init__(
        self, decode: Decode, limits: Limits, on_batch: Callable[[int], None] = lambda _: None
    ) -> None:
        self._decode = decode
        self._limits = limits
        self._on_batch = on_batch
        self._waiting: list[_Wanted] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self._runner: asyncio.Task[None] | None = None
        self._cost: dict[Kind, float] = {}  # seconds per pixel: a running average

    async def decode(
        self,
        stream: EncodedImage,
        layers: int,
        max_side: int | None,
        begun: Callable[[], None] = lambda: None,
    ) -> np.ndarray:
        """The picture, ``(h, w, 3) uint8``. Raises the codec's errors, for this stream only.

        ``begun()`` is called when its batch starts: after that, cancelling saves nothing.
        """
        done: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Wanted(stream, (layers, max_side), done, begun))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        return await done

    async def _run(self) -> None:
        """Decode batches until no request waits."""
        batch: list[_Wanted] = []
        try:
            await asyncio.sleep(self._limits.gather)
            while batch := self._take():
                self._on_batch(len(batch))
                for wanted in batch:
                    wanted.begun()
                started = time.monotonic()
                results = await asyncio.get_running_loop().run_in_executor(
                    self._thread, self._decode_batch, batch
                )
                self._learn(batch, time.monotonic() - started)
                for wanted, result in zip(batch, results, strict=True):
                    _settle(wanted.done, result)
        finally:
            self._runner = None
            for wanted in [*batch, *self._waiting]:  # after a cancellation: they must not hang
                wanted.done.cancel()

    def _take(self) -> list[_Wanted]:
        """The next batch: the oldest request and others of its kind, within the limits."""
        self._waiting = [wanted for wanted in self._waiting if not wanted.done.done()]
        batch: list[_Wanted] = []
        others: list[_Wanted] = []
        pixels = 0
        for wanted in self._waiting:
            fits = not batch or (
                wanted.kind == batch[0].kind
                and len(batch) < self._limits.batch
                and pixels + wanted.pixels <= self._most_pixels(wanted.kind)
            )
            if fits:
                batch.append(wanted)
                pixels += wanted.pixels
            else:
                others.append(wanted)
        self._waiting = others
        return batch

    def _most_pixels(self, kind: Kind) -> float:
        cost = self._cost.get(kind)
        return 0 if cost is None else min(self._limits.batch_pixels, LONGEST_BATCH / cost)

    def _learn(self, batch: Sequence[_Wanted], seconds: float) -> None:
        kind = batch[0].kind
        if kind not in self._cost and len(self._cost) >= MANY_KINDS:
            self._cost.clear()
        cost = max(seconds, 1e-6) / sum(wanted.pixels for wanted in batch)
        self._cost[kind] = cost if kind not in self._cost else 0.7 * self._cost[kind] + 0.3 * cost

    def _decode_batch(self, batch: list[_Wanted]) -> list[Any]:
        layers, max_side = batch[0].kind

        def decode(streams: list[EncodedImage]) -> list[np.ndarray]:
            return self._decode(streams, layers, max_side)

        return one_by_one_on_error(decode, [wanted.stream for wanted in batch])

    def close(self) -> None:
        """End the thread after its current batch."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def _settle(done: "asyncio.Future[np.ndarray]", result: Any) -> None:
    if done.done():
        return
    if isinstance(result, BaseException):
        done.set_exception(result)
    else:
        done.set_result(result)
