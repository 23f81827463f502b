"""How much is done at once. Requests beyond that are refused at once, with Retry-After."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

LONGEST_PAUSE = 30  # seconds: the longest Retry-After
SLOWER = 10  # the timeout of slow pictures, in timeouts of quick ones


@dataclass(frozen=True)
class Limits:
    """The limits of one server process, which together bound its memory.

    There are three kinds of requests: quick pictures, slow pictures and originals. Of each kind,
    ``running`` are processed at once and ``waiting`` more may wait; those that are processed take
    at most ``memory`` bytes of streams and pixels, or are a single one. A request ends after
    ``timeout`` seconds, that for a slow picture after ``SLOWER`` times as long. A batch has at
    most ``batch`` pictures and ``batch_pixels`` pixels; the first waits ``gather`` seconds for
    others. Pictures of more than ``max_pixels`` are not decoded. The cache holds ``cache_bytes``
    of answers.
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
    """Too many requests wait already; ``retry_after`` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("too many requests wait already")
        self.retry_after = retry_after


class Gate:
    """Admits ``running + waiting`` requests and refuses others; ``running`` proceed, in order."""

    def __init__(self, running: int, waiting: int) -> None:
        self._slots = asyncio.Semaphore(running)
        self._most = running + waiting
        self._inside = 0
        self._running = running
        self._seconds = 0.1  # a request takes: a running average

    @property
    def inside(self) -> int:
        """How many requests are admitted."""
        return self._inside

    def retry_after(self) -> int:
        """Seconds after which the requests that are admitted now should be done."""
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
    """A number of bytes that requests share. Those that need more than is free wait, in order."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def take(self, nbytes: int) -> AsyncIterator[None]:
        """Hold ``nbytes``; a request that needs more than the total holds all, so it runs alone."""
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
