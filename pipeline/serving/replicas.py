"""The metrics of all replicas in one answer: Serve gives each request to one of them.

Every few seconds each replica sends its metrics to an actor. The replica that is asked for /metrics
adds those of the others. Samples carry the replica's name, as Prometheus wants it: the series of a
replica that is gone ends, and sums over replicas stay right.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import ray
from prometheus_client import Metric, generate_latest
from ray import serve

from .metrics import Metrics

_EVERY = 5.0  # seconds between two reports of a replica
_FORGOTTEN = 6 * _EVERY
_TIMEOUT = 2.0


class MetricsBoard:
    """The actor that holds the last report of each replica."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, Sequence[Metric]]] = {}

    def leave(self, replica: str, metrics: Sequence[Metric]) -> dict[str, Sequence[Metric]]:
        """Keep this replica's metrics; returns the recent ones of all replicas."""
        now = time.monotonic()
        self._left[replica] = now, metrics
        for name, (when, _) in list(self._left.items()):
            if now - when > _FORGOTTEN:
                del self._left[name]
        return {name: each for name, (_, each) in self._left.items()}


class SharedMetrics:
    """``Metrics`` of this replica of Ray Serve, together with those of the others."""

    def __init__(self, metrics: Metrics) -> None:
        context = serve.get_replica_context()
        self._metrics = metrics
        self._replica = context.replica_id.unique_id
        self._name = f"{context.app_name}-metrics"
        self._board: Any = None

    async def text(self) -> bytes:
        """The metrics of all replicas, or of this one if the others cannot be reached."""
        own = list(self._metrics.registry.collect())
        left: dict[str, Sequence[Metric]] = {self._replica: own}
        try:
            async with asyncio.timeout(_TIMEOUT):
                left = await self._found().leave.remote(self._replica, own)
        except TimeoutError:  # the actor starts, or the machine is busy
            pass
        except Exception:  # the actor went with the replica that had made it
            self._board = None  # so the next call makes another, whatever Ray raised
        return generate_latest(_Merged(left))

    async def share(self) -> None:
        """Report this replica's metrics every few seconds, until cancelled."""
        while True:
            await self.text()
            await asyncio.sleep(_EVERY)

    def _found(self) -> Any:
        if self._board is None:
            actor = ray.remote(num_cpus=0)(MetricsBoard)
            named = actor.options(name=self._name, namespace="strata", get_if_exists=True)
            self._board = named.remote()
        return self._board


class _Merged:
    """A registry of the samples of several replicas, each with its replica's name."""

    def __init__(self, left: dict[str, Sequence[Metric]]) -> None:
        self._left = left

    def collect(self) -> list[Metric]:
        families: dict[str, Metric] = {}
        for replica, metrics in sorted(self._left.items()):
            for metric in metrics:
                family = families.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type)
                )
                family.samples += [
                    sample._replace(labels={**sample.labels, "replica": replica})
                    for sample in metric.samples
                ]
        return list(families.values())
