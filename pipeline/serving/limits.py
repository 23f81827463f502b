"""How much is done at once. Requests beyond that are refused at once, with a time to come back."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

LONGEST_PAUSE = 30  # seconds: the longest time to come back after
SLOWER = 10  # times: how much longer than others pictures may take that are not quick to decode


@dataclass(frozen=True)
class Limits:
    """Limits of one server process. They alone bound its memory.

    Of pictures that are quick to decode ``running`` are in work at once and ``waiting`` more may
    wait, of the others as many again, and of originals. ``memory`` bytes of streams and pixels of
    each kind are in work, or one picture. What takes longer than ``deadline`` seconds is given up;
    pictures that are not quick to decode have ``SLOWER`` times as long. At most ``batch`` pictures
    with together ``batch_pixels`` pixels are decoded at once; the first of them waits ``gather``
    seconds for others. Pictures of more than ``max_pixels`` are not decoded. ``cache_bytes`` of
    answers are kept.
    """

    running: int = 16
    waiting: int = 64
    deadline: float = 30.0
    batch: int = 8
    batch_pixels: int = 1 << 22
    gather: float = 0.002
    max_pixels: int = 1 << 26
    memory: int = 512 << 20
    cache_bytes: int = 64 << 20


DEFAULT_LIMITS = Limits()


class Busy(Exception):
    """Too many requests wait already; ``retry_after`` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("too many requests wait already")
        self.retry_after = retry_after


class Gate:
    """Admits ``running + waiting`` and refuses others; lets ``running`` work, in their order."""

    def __init__(self, running: int, waiting: int) -> None:
        self._slots = asyncio.Semaphore(running)
        self._most = running + waiting
        self._inside = 0
        self._running = running
        self._seconds = 0.1  # that a piece of work takes: a running average

    @property
    def inside(self) -> int:
        """Requests that are admitted."""
        return self._inside

    def retry_after(self) -> int:
        """Seconds after which those who are inside now should be done."""
        expected = self._inside * self._seconds / self._running
        return max(1, min(LONGEST_PAUSE, math.ceil(expected)))

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Hold a place among those who wait. Raises Busy at once where there is none."""
        if self._inside >= self._most:
            raise Busy(self.retry_after())
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a place among the pieces of work, in the order of the requests."""
        async with self._slots:
            started = time.monotonic()
            yield
            self._seconds += 0.1 * (time.monotonic() - started - self._seconds)

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Both: for work that one request asks for."""
        with self.admitted():
            async with self.slot():
                yield


class Room:
    """Memory for work: a piece waits until enough is free, in the order of the requests."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def take(self, nbytes: int) -> AsyncIterator[None]:
        """Hold ``nbytes``, or all memory: a piece that needs more than that runs alone."""
        needed = min(nbytes, self._total)
        async with self._turn:
            while self._free < needed:
                self._freed.clear()
                await self._freed.wait()
            self._free -= needed
        try:
            yield
        finally:
            self._free += needed
            self._freed.set()
