"""What a worker is doing, for the driver that polls it while other threads of the worker work."""

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .progress.memory import free_bytes, kernel_kills, resident_bytes
from .stages import StageClock


class Activity:
    """The shards that a worker has under way, its busy seconds by stage, its traffic.

    A shard has the stage it is in (``stage``), how many of its samples are done (``samples`` ``of``
    so many, ``bad`` ones among them), the last ``key``, and what else a worker wants to show. Of a
    shard that is under way twice, what was begun last is shown, until either ends.
    """

    def __init__(self) -> None:
        self.clock = StageClock()
        self._lock = threading.Lock()
        self._shards: dict[str, dict[str, Any]] = {}
        self._bytes = {"bytes_in": 0, "bytes_out": 0}

    @contextmanager
    def shard(self, name: str, **facts: Any) -> Iterator[None]:
        """Show a shard as long as the block takes."""
        begun = {"stage": "download", "samples": 0, "of": 0, "bad": 0, "key": ""}
        with self._lock:
            self._shards[name] = begun | facts
        try:
            yield
        finally:
            with self._lock:
                self._shards.pop(name, None)

    def show(self, name: str, **facts: Any) -> None:
        """Set facts of a shard under way."""
        with self._lock:
            self._shards.get(name, {}).update(facts)

    def add(self, name: str, **counts: int) -> None:
        """Add to counts of a shard under way."""
        with self._lock:
            shard = self._shards.get(name, {})
            for count, more in counts.items():
                shard[count] = shard.get(count, 0) + more

    def transferred(self, *, read: int = 0, written: int = 0) -> None:
        """Bytes read from and written to the stores."""
        with self._lock:
            self._bytes["bytes_in"] += read
            self._bytes["bytes_out"] += written

    def status(self) -> dict[str, Any]:
        """All of it, and the memory of process and machine, as ``Progress.show`` takes it."""
        with self._lock:
            shards = {name: dict(shard) for name, shard in self._shards.items()}
            traffic = dict(self._bytes)
        return {
            "node": platform.node(),
            "pid": os.getpid(),
            "rss": resident_bytes(),
            "free": free_bytes(),
            "kernel_kills": kernel_kills(),
            "shards": shards,
            "stage_seconds": self.clock.seconds(),
            **traffic,
        }
