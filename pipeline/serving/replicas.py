"""The metrics of all replicas in one answer, because Serve sends a request to only one of them.

Every few seconds each replica sends its metrics to an actor. The replica that gets a request for
/metrics adds the metrics of the others. Samples are labelled with the replica's name: so the series
of a lost replica ends, and sums over replicas stay right.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import ray
from prometheus_client import Metric, generate_latest
from ray import serve

from .metrics import Metrics

_INTERVAL = 5.0  # seconds between two reports of a replica
_FORGOTTEN = 6 * _INTERVAL  # seconds after which a replica without reports is left out
_TIMEOUT = 2.0  # seconds to wait for the actor


class MetricsBoard:
    """The actor that holds the last report of each replica."""

    def __init__(self) -> None:
        self._reports: dict[str, tuple[float, Sequence[Metric]]] = {}

    def report(self, replica: str, metrics: Sequence[Metric]) -> dict[str, Sequence[Metric]]:
        """Keep this replica's metrics; returns the recent metrics of all replicas."""
        now = time.monotonic()
        self._reports[replica] = now, metrics
        for name, (when, _) in list(self._reports.items()):
            if now - when > _FORGOTTEN:
                del self._reports[name]
        return {name: each for name, (_, each) in self._reports.items()}


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
        reports: dict[str, Sequence[Metric]] = {self._replica: own}
        try:
            async with asyncio.timeout(_TIMEOUT):
                reports = await self._find_board().report.remote(self._replica, own)
        except TimeoutError:  # the actor is starting, or the machine is busy
            pass
        except Exception:  # the actor ended with the replica that had made it
            self._board = None  # the next call makes another, whatever Ray raised
        return generate_latest(_Merged(reports))

    async def share(self) -> None:
        """Report this replica's metrics every few seconds, until cancelled."""
        while True:
            await self.text()
            await asyncio.sleep(_INTERVAL)

    def _find_board(self) -> Any:
        if self._board is None:
            actor = ray.remote(num_cpus=0)(MetricsBoard)
            named = actor.options(name=self._name, namespace="strata", get_if_exists=True)
            self._board = named.remote()
        return self._board


class _Merged:
    """A registry of the samples of several replicas, each with its replica's name."""

    def __init__(self, reports: dict[str, Sequence[Metric]]) -> None:
        self._reports = reports

    def collect(self) -> list[Metric]:
        families: dict[str, Metric] = {}
        for replica, metrics in sorted(self._reports.items()):
            for metric in metrics:
                family = families.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type)
                )
                family.samples += [
                    sample._replace(labels={**sample.labels, "replica": replica})
                    for sample in metric.samples
                ]
        return list(families.values())
