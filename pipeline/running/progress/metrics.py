"""Metrics for Prometheus, through Ray: every node's agent serves them with Ray's own metrics.

Ray puts ``ray_`` in front of the names below, as in ``ray_strata_samples_total``. Only the driver
records them, so its node has the metrics of all workers.
"""

import sys
from typing import Any

# name: (kind, description, tags)
METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "samples_total": ("counter", "Samples of committed shards by what became of them", ("status",)),
    "shards_total": (
        "counter",
        "Shards by what became of them: done, found (done elsewhere), failed",
        ("outcome",),
    ),
    "bytes_in_total": ("counter", "Bytes read from the stores", ()),
    "bytes_out_total": ("counter", "Bytes written to the stores", ()),
    "picture_bytes_total": ("counter", "Bytes of the pictures' original files", ()),
    "stream_bytes_total": ("counter", "Bytes of the streams that replace them", ()),
    "stage_busy_seconds_total": ("counter", "Seconds that workers were busy by stage", ("stage",)),
    "attempts_failed_total": ("counter", "Attempts at a shard that failed", ()),
    "workers": ("gauge", "Workers by state: starting, idle or busy", ("state",)),
    "shard_seconds": ("histogram", "Seconds that a shard took, from download to commit", ()),
}
SHARD_SECONDS = [1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0]


class Metrics:
    """Records metrics with Ray, which must be connected. An error is only a warning."""

    def __init__(self) -> None:
        self._instruments: dict[str, Any] = {}
        self._broken = False

    def count(self, name: str, amount: float = 1, **tags: str) -> None:
        if amount > 0:  # Ray refuses zero
            self._record(name, "inc", float(amount), tags)

    def gauge(self, name: str, value: float, **tags: str) -> None:
        self._record(name, "set", float(value), tags)

    def observe(self, name: str, value: float) -> None:
        self._record(name, "observe", float(value), {})

    def _record(self, name: str, verb: str, value: float, tags: dict[str, str]) -> None:
        if self._broken:
            return
        try:
            if name not in self._instruments:
                self._instruments[name] = _instrument(name)
            getattr(self._instruments[name], verb)(value, tags or None)
        except Exception as error:
            self._broken = True
            print(
                f"warning: no metrics for Prometheus: {type(error).__name__}: {error}",
                file=sys.stderr,
            )


def _instrument(name: str) -> Any:
    from ray.util import metrics

    kind, description, tags = METRICS[name]
    options: dict[str, Any] = {"description": description, "tag_keys": tags}
    if kind == "histogram":
        return metrics.Histogram(f"strata_{name}", boundaries=SHARD_SECONDS, **options)
    return (metrics.Counter if kind == "counter" else metrics.Gauge)(f"strata_{name}", **options)
