"""The stages of a worker: a clock of busy seconds, and a lock that keeps the order of threads."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager


class StageClock:
    """Adds up busy seconds by stage, from any thread. A shard's clock also adds to its worker's."""

    def __init__(self, parent: "StageClock | None" = None) -> None:
        self._parent = parent
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self, stage: str, threads: int = 1) -> Iterator[None]:
        """Count the time of the block, which runs in one of ``threads`` threads of a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, (time.perf_counter() - started) / threads)

    def add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self._seconds[stage] += seconds
        if self._parent is not None:
            self._parent.add(stage, seconds)

    def seconds(self) -> dict[str, float]:
        """Busy seconds by stage, rounded to milliseconds."""
        with self._lock:
            return {stage: round(seconds, 3) for stage, seconds in self._seconds.items()}


class Turn:
    """A lock that threads get in the order in which they asked for it.

    ``threading.Lock`` keeps no order. The order matters because the driver assumes that the oldest
    task of a worker is the one that is stuck.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        mine.acquire()  # waits until the previous thread releases it

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False
