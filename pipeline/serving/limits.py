"""How much is done at once: what comes beyond that is told to come back later, at once."""

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

LONGEST_PAUSE = 30  # seconds: the most that a client is told to wait


@dataclass(frozen=True)
class Limits:
    """What one server process takes upon itself. Memory is bounded by these figures alone.

    ``running`` requests for pictures are in work at once and ``waiting`` more may wait; one whose
    answer takes longer than ``deadline`` seconds is given up. At most ``batch`` pictures with
    together ``batch_pixels`` pixels are decoded at once; the first of them waits ``gather`` seconds
    for others. Pictures of more than ``max_pixels`` are not decoded. ``cache_bytes`` of answers
    are kept.
    """

    running: int = 16
    waiting: int = 64
    deadline: float = 30.0
    batch: int = 8
    batch_pixels: int = 1 << 22
    gather: float = 0.002
    max_pixels: int = 1 << 26
    cache_bytes: int = 64 << 20


DEFAULT_LIMITS = Limits()


class Busy(Exception):
    """Too many requests wait already; ``retry_after`` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("too many requests wait already")
        self.retry_after = retry_after


class Gate:
    """Lets ``running`` through at once, keeps ``waiting`` more in their order, refuses others."""

    def __init__(self, running: int, waiting: int) -> None:
        self._slots = asyncio.Semaphore(running)
        self._most = running + waiting
        self._inside = 0
        self._running = running
        self._seconds = 0.1  # that a request takes: a running average

    @property
    def inside(self) -> int:
        """Requests that run or wait."""
        return self._inside

    def retry_after(self) -> int:
        """Seconds after which those who are inside now should be done."""
        expected = self._inside * self._seconds / self._running
        return max(1, min(LONGEST_PAUSE, math.ceil(expected)))

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Raises Busy at once where there is no room to wait in."""
        if self._inside >= self._most:
            raise Busy(self.retry_after())
        self._inside += 1
        try:
            async with self._slots:
                started = time.monotonic()
                yield
                self._seconds += 0.1 * (time.monotonic() - started - self._seconds)
        finally:
            self._inside -= 1
