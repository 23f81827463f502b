"""Limits of the server. Requests beyond them are refused at once, with Retry-After."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

LONGEST_PAUSE = 30  # seconds: the longest Retry-After
SLOWER = 10  # slow pictures may take so many times as long as quick ones


@dataclass(frozen=True)
class Limits:
    """The limits of one server process, which together bound its memory.

    There are three kinds of requests: quick pictures, slow pictures and originals. Of each kind,
    ``running`` requests are processed at once and ``waiting`` more may wait. Together they take at
    most ``memory`` bytes for streams and pixels; a request that needs more runs alone. A request
    ends after ``timeout`` seconds, or for a slow picture after ``SLOWER`` times that. A batch has
    at most ``batch`` pictures and ``batch_pixels`` pixels, and its first request waits ``gather``
    seconds for others. Pictures of more than ``max_pixels`` pixels are not decoded. The cache
    holds ``cache_bytes`` of answers.
    """

    running: int = 16
    waiting: int = 64
    timeout: float = 30.0
    batch: int = 8
    batch_pixels: int = 1 << 22
    gather: float = 0.002
    max_pixels: int = 1 << 26
    memory: int = 512 << 20
    cache_bytes: int = 64 << 20


DEFAULT_LIMITS = Limits()


class Busy(Exception):
    """Too many requests are waiting; ``retry_after`` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("too many requests are waiting")
        self.retry_after = retry_after


class Gate:
    """Admits ``running + waiting`` requests and refuses more; ``running`` of them run at once."""

    def __init__(self, running: int, waiting: int) -> None:
        self._slots = asyncio.Semaphore(running)
        self._most = running + waiting
        self._inside = 0
        self._running = running
        self._seconds = 0.1  # that a request takes: a running average

    @property
    def inside(self) -> int:
        """How many requests are admitted."""
        return self._inside

    def retry_after(self) -> int:
        """Seconds until the admitted requests should be done."""
        expected = self._inside * self._seconds / self._running
        return max(1, min(LONGEST_PAUSE, math.ceil(expected)))

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request as admitted. Raises Busy at once if there are too many."""
        if self._inside >= self._most:
            raise Busy(self.retry_after())
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for one of the ``running`` slots and hold it."""
        async with self._slots:
            started = time.monotonic()
            yield
            self._seconds += 0.1 * (time.monotonic() - started - self._seconds)

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """``admitted`` and ``slot`` together."""
        with self.admitted():
            async with self.slot():
                yield


class MemoryBudget:
    """Memory that requests share. Requests that need more than is free wait, in order."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def take(self, nbytes: int) -> AsyncIterator[None]:
        """Hold ``nbytes``. A request that needs more than the total holds all, so it runs alone."""
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
