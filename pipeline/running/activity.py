"""What a worker is doing. The driver polls it while the worker's threads run."""

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .progress.memory import free_bytes, kernel_kills, resident_bytes
from .stages import StageClock


class Activity:
    """A worker's running shards, its busy seconds by stage, and its traffic.

    A shard has its ``stage``, the number of finished ``samples`` (``of`` all, and ``bad`` ones),
    the last ``key``, and other facts that a worker wants to show. If a shard runs twice at once,
    the later run is shown, until one of them ends.
    """

    def __init__(self) -> None:
        self.clock = StageClock()
        self._lock = threading.Lock()
        self._shards: dict[str, dict[str, Any]] = {}
        self._bytes = {"bytes_in": 0, "bytes_out": 0}

    @contextmanager
    def shard(self, name: str, **facts: Any) -> Iterator[None]:
        """Show a shard for the duration of the block."""
        initial = {"stage": "download", "samples": 0, "of": 0, "bad": 0, "key": ""}
        with self._lock:
            self._shards[name] = initial | facts
        try:
            yield
        finally:
            with self._lock:
                self._shards.pop(name, None)

    def show(self, name: str, **facts: Any) -> None:
        """Set facts of a running shard."""
        with self._lock:
            self._shards.get(name, {}).update(facts)

    def add(self, name: str, **counts: int) -> None:
        """Add to counts of a running shard."""
        with self._lock:
            shard = self._shards.get(name, {})
            for count, more in counts.items():
                shard[count] = shard.get(count, 0) + more

    def transferred(self, *, read: int = 0, written: int = 0) -> None:
        """Count bytes read from and written to the stores."""
        with self._lock:
            self._bytes["bytes_in"] += read
            self._bytes["bytes_out"] += written

    def status(self) -> dict[str, Any]:
        """All of this, and the memory of process and machine, for ``Progress.show``."""
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
