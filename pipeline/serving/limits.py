"""How much is done at once: what comes beyond that is told to come back later, at once."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

LONGEST_PAUSE = 30  # seconds: the most that a client is told to wait
SLOWER = 10  # times: how much longer than others pictures may take that are not quick to decode


@dataclass(frozen=True)
class Limits:
    """What one server process takes upon itself. Memory is bounded by these figures alone.

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
        """For as long as somebody waits. Raises Busy at once where there is no room to wait in."""
        if self._inside >= self._most:
            raise Busy(self.retry_after())
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """For as long as something is in work."""
        async with self._slots:
            started = time.monotonic()
            yield
            self._seconds += 0.1 * (time.monotonic() - started - self._seconds)

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Both: for what nobody shares."""
        with self.admitted():
            async with self.slot():
                yield


class Room:
    """Memory for what is in work: who finds too little left waits, in their order."""

    def __init__(self, total: int) -> None:
        self._total = self._free = total
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def take(self, nbytes: int) -> AsyncIterator[None]:
        """So many bytes, or all there are: what needs more than that is in work alone."""
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
