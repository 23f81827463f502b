"""The figures of all replicas in one answer: Serve gives each request to one of them.

Every replica leaves what it has measured with an actor, some seconds apart, and whoever is asked
for /metrics adds what the others left. Samples carry the replica's name, as Prometheus wants it:
one that is gone ends its series, and sums over replicas stay right.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import ray
from prometheus_client import Metric, generate_latest
from ray import serve

from .figures import Figures

_EVERY = 5.0  # seconds between what a replica leaves
_FORGOTTEN = 6 * _EVERY
_TIMEOUT = 2.0


class Board:
    """What each replica left last."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, Sequence[Metric]]] = {}

    def leave(self, replica: str, metrics: Sequence[Metric]) -> dict[str, Sequence[Metric]]:
        """Keep this one's; what all left lately."""
        now = time.monotonic()
        self._left[replica] = now, metrics
        for name, (when, _) in list(self._left.items()):
            if now - when > _FORGOTTEN:
                del self._left[name]
        return {name: each for name, (_, each) in self._left.items()}


class SharedFigures:
    """``Figures`` of this replica of Ray Serve, with those of the others beside it."""

    def __init__(self, figures: Figures) -> None:
        context = serve.get_replica_context()
        self._figures = figures
        self._replica = context.replica_id.unique_id
        self._name = f"{context.app_name}-figures"
        self._board: Any = None

    async def text(self) -> bytes:
        """All that is known; what this replica knows alone where the others cannot be reached."""
        own = list(self._figures.registry.collect())
        left: dict[str, Sequence[Metric]] = {self._replica: own}
        try:
            async with asyncio.timeout(_TIMEOUT):
                left = await self._found().leave.remote(self._replica, own)
        except TimeoutError:  # it starts, or the machine is busy
            pass
        except Exception:  # it went with the replica that had made it: the next call makes another
            self._board = None  # and whatever else Ray may raise: figures stop for nothing
        return generate_latest(_Merged(left))

    async def share(self) -> None:
        """Leave the figures of this replica again and again, until cancelled."""
        while True:
            await self.text()
            await asyncio.sleep(_EVERY)

    def _found(self) -> Any:
        if self._board is None:
            actor = ray.remote(num_cpus=0)(Board)
            named = actor.options(name=self._name, namespace="strata", get_if_exists=True)
            self._board = named.remote()
        return self._board


class _Merged:
    """Looks like a registry with the samples of several, each with its replica's name."""

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
