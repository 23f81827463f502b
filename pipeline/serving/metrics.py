"""The server's metrics, in Prometheus' format."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from time import perf_counter, thread_time
from typing import Any, Protocol, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

T = TypeVar("T")

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.8, 1.5, 3.0, 10.0, 30.0)


class MetricsSource(Protocol):
    """What /metrics shows."""

    async def text(self) -> bytes:
        """Prometheus' exposition format."""

    async def share(self) -> None:
        """Share the metrics with other replicas in the background, until cancelled."""


class Metrics:
    """The metrics of one server process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "strata_preview_requests",
            "Requests by route and status",
            ("route", "status"),
            registry=registry,
        )
        self.seconds = Histogram(
            "strata_preview_seconds",
            "Seconds until the answer, by route",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.stages = Counter(
            "strata_preview_stage_seconds",
            "Seconds by stage (find, read, decode, write), including the wait for a thread",
            ("stage",),
            registry=registry,
        )
        self.cpu = Counter(
            "strata_preview_stage_cpu_seconds",
            "Processor seconds by stage, of the stage's own thread (decoding may use more threads)",
            ("stage",),
            registry=registry,
        )
        self.batches = Histogram(
            "strata_preview_batch_pictures",
            "Pictures decoded together",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )
        self.inside = Gauge(
            "strata_preview_inside",
            "Requests for pictures that run or wait",
            registry=registry,
        )
        self.cache = Counter(
            "strata_preview_cache",
            "Pictures by how they were answered: hit, shared, miss, not_modified",
            ("result",),
            registry=registry,
        )
        self.cache_bytes = Gauge(
            "strata_preview_cache_bytes", "Bytes of cached answers", registry=registry
        )
        self.stream_bytes = Counter(
            "strata_preview_stream_bytes",
            "Bytes of streams and originals read for pictures",
            registry=registry,
        )
        self.damaged = Counter(
            "strata_preview_damaged",
            "Pictures with a damaged layer",
            registry=registry,
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of a ``with`` block."""
        started = perf_counter()
        try:
            yield
        finally:
            self.stages.labels(name).inc(perf_counter() - started)

    def working(self, stage: str, function: Callable[..., T]) -> Callable[..., T]:
        """``function``, with its CPU seconds counted in the thread that calls it."""
        counter = self.cpu.labels(stage)

        def counted(*arguments: Any) -> T:
            started = thread_time()
            try:
                return function(*arguments)
            finally:
                counter.inc(thread_time() - started)

        return counted

    async def run(
        self, threads: Executor, stage: str, function: Callable[..., T], *arguments: Any
    ) -> T:
        """Run ``function`` in one of the threads; counts its seconds and its CPU seconds."""
        loop, work = asyncio.get_running_loop(), self.working(stage, function)
        with self.stage(stage):
            return await loop.run_in_executor(threads, work, *arguments)

    async def text(self) -> bytes:
        """Prometheus' exposition format."""
        return generate_latest(self.registry)

    async def share(self) -> None:
        """Do nothing, because there is one process; see ``replicas.SharedMetrics``."""
