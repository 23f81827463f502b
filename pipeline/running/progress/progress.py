"""A job's progress: counts what shards and workers report, and passes it to display and log."""

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import asdict
from typing import Any, TextIO

from .display import LOG_SECONDS, Totals, WorkerView, describe_event, display_for, duration
from .events import EventLog
from .memory import resident_bytes
from .metrics import Metrics
from .rates import Growth, Window
from .summary import Summary, size

ESTIMATE_SECONDS = 45.0  # then the job prints an estimate of its final size and time
SETTLED_SECONDS = 5.0  # a rate over less time is no good for an estimate
MAX_SECONDS_LEFT = 10 * 365 * 86400.0
_COUNTED = ("samples", "bad", "picture_bytes", "stream_bytes")
_RECORDED = ("rows", "ok", "bad", "filtered", "picture_bytes", "stream_bytes", "bytes", "seconds")


class _Worker:
    """The state of one worker between two reports."""

    def __init__(self) -> None:
        self.process: tuple[str, int] | None = None
        self.growth = Growth()
        self.samples = 0  # of all its shards
        self.counted: dict[str, int] = {}  # samples of the shards it has now
        self.window = Window()

    def count(self, shards: Mapping[str, Mapping[str, Any]], now: float) -> None:
        counts = {name: int(shard.get("samples", 0)) for name, shard in shards.items()}
        for name, samples in counts.items():
            before = self.counted.get(name, 0)
            self.samples += samples - before if samples >= before else samples
        self.counted = counts
        self.window.add(now, {"samples": self.samples})


class Progress:
    """Follows a job on the driver's side.

    ``sizes`` maps task names to input bytes. The clock starts with ``start``, so the time in which
    workers start does not count. ``events`` and ``metrics`` get what the display shows.
    """

    def __init__(
        self,
        verb: str,
        sizes: Mapping[str, int],
        *,
        events: EventLog | None = None,
        metrics: Metrics | None = None,
        out: TextIO | None = None,
    ) -> None:
        self.sizes = dict(sizes)
        self.started = time.monotonic()
        self._events = events or EventLog(None)
        self._metrics = metrics
        self._display = display_for(out or sys.stderr, verb)
        self._total_bytes = sum(self.sizes.values())
        self._done: Counter[str] = Counter()  # of shards that were finished here
        self._input_bytes = 0
        self._read_bytes = self._written_bytes = 0  # at least; retries come on top
        self._finished: set[str] = set()
        self._failed = 0
        self._under_way: dict[str, Mapping[str, Any]] = {}
        self._workers: dict[int, _Worker] = {}
        self._reports: list[Mapping[str, Any]] = []
        self._grown: defaultdict[str, float] = defaultdict(
            float
        )  # the workers' cumulative figures, over restarts
        self._worker_seconds = 0.0
        self._failed_attempts = self._restarts = 0
        self._window = Window()
        self._estimated = False
        self._last_show = self._last_event = self.started

    @property
    def seconds(self) -> float:
        """Seconds since ``start``."""
        return time.monotonic() - self.started

    def start(self) -> None:
        """The first worker is ready."""
        self.started = self._last_show = self._last_event = time.monotonic()

    def finish(
        self, name: str, record: Mapping[str, Any] | None, error: str = "", attempts: int = 1
    ) -> None:
        """A shard has its commit ``record``, or failed for good (None)."""
        self._finished.add(name)
        self._under_way.pop(name, None)
        self._input_bytes += self.sizes.get(name, 0)
        if record is None:
            self._failed += 1
            self._count("shards_total", outcome="failed")
            self._events.write("shard_failed", shard=name, attempts=attempts, error=error)
            self._display.say(describe_event("shard_failed", {"shard": name, "error": error}))
            return
        if record.get("found"):  # another job has committed it meanwhile
            self._count("shards_total", outcome="found")
            self._events.write("shard_found", shard=name)
            return
        self._done["samples"] += record.get("rows", 0)
        for key in _COUNTED[1:]:
            self._done[key] += record.get(key, 0)
        source = record.get("source") or {}
        self._read_bytes += source.get("size", 0)
        self._written_bytes += record.get("bytes", 0)
        self._count("shards_total", outcome="done")
        for status in ("ok", "bad", "filtered"):
            self._count("samples_total", record.get(status, 0), status=status)
        for key in ("picture_bytes", "stream_bytes"):
            self._count(f"{key}_total", record.get(key, 0))
        if self._metrics is not None and "seconds" in record:
            self._metrics.observe("shard_seconds", record["seconds"])
        self._events.write(
            "shard_done",
            shard=name,
            url=source.get("url"),
            attempts=attempts,
            source_bytes=source.get("size", self.sizes.get(name)),
            stage_seconds=record.get("stage_seconds", {}),
            **{key: record.get(key, 0) for key in _RECORDED},
        )

    def event(self, kind: str, /, **fields: Any) -> None:
        """Show and log an event (``attempt_failed``, ``worker_died``, ...)."""
        if kind == "attempt_failed":
            self._failed_attempts += 1
            self._count("attempts_failed_total")
        self._events.write(kind, **fields)
        self._display.say(describe_event(kind, fields))

    def show(self, workers: Sequence[Mapping[str, Any]]) -> None:
        """Take the workers' reports; draw and log them when that is due."""
        now = time.monotonic()
        self._account(workers, now)
        draw, log = self._display.due(now), now - self._last_event >= LOG_SECONDS
        if not draw and not log:
            return
        totals = self.totals()
        if not self._estimated and totals.seconds >= ESTIMATE_SECONDS:
            self._estimate(totals)
        if draw:
            self._display.show(totals, [self._view(report) for report in workers])
        if log:
            self._last_event = now
            self._events.write(
                "progress",
                **_rounded(asdict(totals)),
                driver_rss=resident_bytes(),
                worker_rss={report["worker"]: report.get("rss") for report in workers},
            )

    def totals(self) -> Totals:
        """The job's figures now."""
        seconds, figures = self.seconds, self._figures()
        position = int(figures["position"])
        rate = self._window.rate("position")
        left = None
        if rate > 0 and self._window.span >= SETTLED_SECONDS:
            left = min((self._total_bytes - position) / rate, MAX_SECONDS_LEFT)
        shares = self._stage_shares()
        return Totals(
            seconds=seconds,
            fraction=min(1.0, position / self._total_bytes) if self._total_bytes else 0.0,
            input_bytes=position,
            total_bytes=self._total_bytes,
            shards_done=len(self._finished) - self._failed,
            shards_failed=self._failed,
            shards_total=len(self.sizes),
            samples=int(figures["samples"]),
            bad=int(figures["bad"]),
            picture_bytes=int(figures["picture_bytes"]),
            stream_bytes=int(figures["stream_bytes"]),
            bytes_in=int(figures["bytes_in"]),
            bytes_out=int(figures["bytes_out"]),
            images_per_second=self._window.rate("samples"),
            bytes_in_per_second=self._window.rate("bytes_in"),
            bytes_out_per_second=self._window.rate("bytes_out"),
            seconds_left=left,
            stage_shares=shares,
            slowest_stage=self.slowest_stage(),
            failed_attempts=self._failed_attempts,
            restarts=self._restarts,
            workers=dict(Counter(map(_state, self._reports))),
        )

    def _estimate(self, totals: Totals) -> None:
        """Print an estimate of the final size and time, once, if pictures become streams."""
        if not totals.stream_bytes or totals.seconds_left is None:
            return
        self._estimated = True
        share = totals.stream_bytes / totals.picture_bytes
        told = (
            f"about {size(share * totals.total_bytes)} at the end, "
            f"{100 * share:.0f} % of the input; {duration(totals.seconds_left)} left"
        )
        self.event("estimate", message=told, samples=totals.samples)

    def slowest_stage(self) -> str:
        """The stage that kept the workers busy longest, "" as long as none did."""
        busy = self._stage_seconds()
        return max(busy, key=busy.__getitem__) if busy else ""

    def add_to(self, summary: Summary) -> None:
        """Set what the summary says of this run alone."""
        totals = self.totals()
        summary.seconds = totals.seconds
        summary.new_samples = self._done["samples"]
        summary.bytes_in, summary.bytes_out = totals.bytes_in, totals.bytes_out
        summary.slowest_stage = totals.slowest_stage
        summary.slowest_share = totals.stage_shares.get(totals.slowest_stage, 0.0)
        summary.failed_attempts, summary.restarts = totals.failed_attempts, totals.restarts

    def close(self) -> None:
        """Release the terminal. May be called twice."""
        self._display.close(self.totals())
        if self._metrics is not None:
            for state in ("starting", "idle", "busy"):
                self._metrics.gauge("workers", 0, state=state)

    def _account(self, workers: Sequence[Mapping[str, Any]], now: float) -> None:
        """Add what the workers did since their last reports."""
        grown: defaultdict[str, float] = defaultdict(float)
        self._reports, self._under_way = list(workers), {}
        for report in workers:
            worker = self._workers.setdefault(report["worker"], _Worker())
            if "pid" not in report:  # it is starting
                continue
            self._worker_seconds += now - self._last_show
            self._notice_restart(worker, report)
            figures = {key: report[key] for key in ("bytes_in", "bytes_out") if key in report}
            for stage, seconds in report.get("stage_seconds", {}).items():
                figures[f"stage:{stage}"] = seconds
            _add(grown, worker.growth.since_last(worker.process, figures))
            shards = report.get("shards", {})
            worker.count(shards, now)
            # A report may be older than the message that its shard is finished.
            self._under_way |= {k: v for k, v in shards.items() if k not in self._finished}
        self._last_show = now
        _add(self._grown, grown)
        totals = self._figures()
        if totals["samples"] or totals["position"]:  # before, there was only waiting
            self._window.add(now, totals)
        if self._metrics is not None:
            self._measure(grown)

    def _notice_restart(self, worker: _Worker, report: Mapping[str, Any]) -> None:
        process = (str(report.get("node", "")), int(report["pid"]))
        if process == worker.process:
            return
        if worker.process is not None:
            self._restarts += 1
        worker.process, worker.counted = process, {}
        self._events.write("worker_ready", worker=report["worker"], node=process[0], pid=process[1])

    def _measure(self, grown: Mapping[str, float]) -> None:
        for name, amount in grown.items():
            if name.startswith("stage:"):
                stage = name.removeprefix("stage:")
                self._count("stage_busy_seconds_total", amount, stage=stage)
            else:
                self._count(f"{name}_total", amount)
        assert self._metrics is not None
        states = Counter(map(_state, self._reports))
        for state in ("starting", "idle", "busy"):
            self._metrics.gauge("workers", states[state], state=state)

    def _count(self, name: str, amount: float = 1, **tags: str) -> None:
        if self._metrics is not None:
            self._metrics.count(name, amount, **tags)

    def _figures(self) -> dict[str, float]:
        """Cumulative totals: finished shards, and the finished parts of running ones."""
        figures = {key: float(self._done[key]) for key in _COUNTED}
        position = float(self._input_bytes)
        for name, shard in self._under_way.items():
            _add(figures, {key: shard.get(key, 0) for key in _COUNTED})
            done = min(1.0, shard.get("samples", 0) / max(1, shard.get("of", 1)))
            position += self.sizes.get(name, 0) * done
        figures["position"] = position
        # The last reports of workers may be missing; those of shards are not.
        figures["bytes_in"] = max(self._grown["bytes_in"], self._read_bytes)
        figures["bytes_out"] = max(self._grown["bytes_out"], self._written_bytes)
        return figures

    def _stage_seconds(self) -> dict[str, float]:
        return {
            name.removeprefix("stage:"): seconds
            for name, seconds in self._grown.items()
            if name.startswith("stage:") and seconds > 0
        }

    def _stage_shares(self) -> dict[str, float]:
        # A report may cover a little more time than has passed on this clock.
        lived = max(self._worker_seconds, 1e-9)
        return {name: min(1.0, busy / lived) for name, busy in self._stage_seconds().items()}

    def _view(self, report: Mapping[str, Any]) -> WorkerView:
        return WorkerView(
            worker=report["worker"],
            node=str(report.get("node", "")),
            rate=self._workers[report["worker"]].window.rate("samples"),
            rss=report.get("rss"),
            shards=report.get("shards", {}) if "pid" in report else None,
        )


def _add(totals: MutableMapping[str, float], more: Mapping[str, float]) -> None:
    for name, amount in more.items():
        totals[name] = totals.get(name, 0.0) + amount


def _state(report: Mapping[str, Any]) -> str:
    if "pid" not in report:
        return "starting"
    return "busy" if report.get("shards") else "idle"


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Floats to four decimals: a log is read by people too."""
    rounded: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, float):
            value = round(value, 4)
        elif isinstance(value, dict):
            value = _rounded(value)
        rounded[name] = value
    return rounded
