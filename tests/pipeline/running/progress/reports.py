"""What workers and shards report to a driver, and a clock for watching them."""

from typing import Any

import pytest

from pipeline.running.progress import display, progress


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    @classmethod
    def install(cls, monkeypatch: pytest.MonkeyPatch) -> "Clock":
        clock = cls()
        for module in (progress, display):
            monkeypatch.setattr(module, "time", clock)
        return clock


def worker(number: int = 0, **facts: Any) -> dict[str, Any]:
    report = {"worker": number, "node": "10.0.0.7", "pid": 40 + number, "rss": 12 * 10**8}
    return {**report, "shards": {}, **facts}


def encoding(samples: int, of: int = 1000, **more: Any) -> dict[str, Any]:
    return {"stage": "encode", "samples": samples, "of": of, **more}


def record(rows: int = 100, bad: int = 0, **more: Any) -> dict[str, Any]:
    return {"rows": rows, "ok": rows - bad, "bad": bad, "filtered": 0, "bytes": 10**6, **more}
