"""Runs a job's tasks on a cluster: connects, schedules, shows progress, stops when asked to."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..stores import gzip_limits
from ..stores.gzip_limits import GzipLimits
from ..stores.store import clear_scratch
from . import cluster
from .progress.events import EventLog
from .progress.metrics import Metrics
from .progress.progress import Progress
from .progress.summary import Summary, count_reasons
from .scheduler import run_tasks
from .tasks import Outcome, Policy, Task
from .worker import WorkerSettings

Stop = Callable[[], str]
"""A function that a job calls regularly. It returns why the job must end early, or ""."""

KILLED_WITHIN = 2.0  # seconds in which Ray ends the processes of workers that it kills
# A job must not stop because the first two pictures of a hundred million are bad.
ENOUGH_SAMPLES = 200
ENOUGH_SHARDS = 10


@dataclass(frozen=True, kw_only=True)
class RunningOptions:
    """Options that change how a job runs, but not what it writes.

    ``input_options`` and ``output_options`` are fsspec's storage options; they may hold secrets.
    ``log`` is the path of the event log. For the others see ``--help`` of a job.
    """

    batch_size: int = 32
    device: str = "auto"
    workers: int | None = None
    worker_cpus: int | None = None
    address: str | None = None
    policy: Policy = field(default_factory=Policy)
    scratch: str | None = None
    input_options: dict[str, Any] = field(default_factory=dict, repr=False)
    output_options: dict[str, Any] = field(default_factory=dict, repr=False)
    log: str | None = None
    gzip: GzipLimits = gzip_limits.DEFAULT


def run_job_tasks(
    verb: str,
    worker: type,
    settings: WorkerSettings,
    tasks: Mapping[Task, int],
    options: RunningOptions,
    summary: Summary,
    log: EventLog,
    stop: Stop = lambda: "",
    *,
    in_flight: int | None = None,
    max_bad_fraction: float = 1.0,
    keep_results: bool = True,
) -> Sequence[Outcome]:
    """Run the tasks of a job on the workers of a cluster, and add this run to the summary.

    Args:
        verb: what the job is doing, for messages.
        worker: the class for ``run_tasks``.
        settings: the worker's. The fields of ``WorkerSettings`` are set here.
        tasks: each with its bytes of input.
        in_flight: how many tasks a worker takes at once; default: the policy's number.
        keep_results: False returns outcomes with empty results, for jobs that read them from their
            ledger: the results of a hundred thousand shards take half a gigabyte.

    Raises ClusterError if there is no cluster, or no worker can start.
    """
    if not tasks:
        return []
    cluster.connect(options.address)
    shape = cluster.share(options.workers, options.device, len(tasks), options.worker_cpus)
    sizes = {task.name: size for task, size in tasks.items()}
    progress = Progress(verb, sizes, events=log, metrics=Metrics())
    watcher = JobWatcher(progress, stop, max_bad_fraction)
    settings = replace(
        settings,
        batch_size=options.batch_size,
        device=shape.device,
        threads=shape.threads,
        scratch=options.scratch,
        input_options=options.input_options,
        output_options=options.output_options,
        gzip=options.gzip,
    )
    policy = options.policy if in_flight is None else replace(options.policy, in_flight=in_flight)
    try:
        outcomes = [
            outcome if keep_results or outcome.result is None else replace(outcome, result={})
            for outcome in run_tasks(worker, settings, list(tasks), shape, policy, watcher)
        ]
    finally:
        progress.close()
        clear_scratch(options.scratch, KILLED_WITHIN)
    progress.add_to(summary)
    if len(outcomes) < len(tasks):
        summary.stopped = watcher.stopped
    return outcomes


class JobWatcher:
    """A scheduler's watcher: shows progress, and stops the job on request or after many failures.

    Args:
        stop: called at every update; returns why the job must stop, usually "".
        max_bad_fraction: more failures among the new samples or new shards stop the job, once there
            are enough of them. 1 never stops it.
    """

    def __init__(
        self,
        progress: Progress,
        stop: Stop = lambda: "",
        max_bad_fraction: float = 1.0,
    ) -> None:
        self.progress = progress
        self.stop = stop
        self.max_bad_fraction = max_bad_fraction
        self.stopped = ""
        self._samples: Counter[str] = Counter()
        self._shards: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def ready(self) -> None:
        self.progress.start()

    def event(self, kind: str, **facts: Any) -> None:
        self.progress.event(kind, **facts)

    def update(self, new: list[Outcome], workers: list[dict[str, Any]]) -> str:
        for outcome in new:
            self._count(outcome.result)
            self.progress.finish(outcome.task.name, outcome.result, outcome.error, outcome.attempts)
        self.progress.show(workers)
        self.stopped = self.stopped or self.stop() or self._too_bad()
        return self.stopped

    def _count(self, record: Mapping[str, Any] | None) -> None:
        self._shards["all"] += 1
        if record is None:
            self._shards["bad"] += 1
            return
        self._samples["all"] += record.get("ok", 0) + record.get("bad", 0)
        self._samples["bad"] += record.get("bad", 0)
        count_reasons(self._reasons, record.get("reasons", {}))

    def _too_bad(self) -> str:
        for what, counts, enough in (
            ("samples", self._samples, ENOUGH_SAMPLES),
            ("shards", self._shards, ENOUGH_SHARDS),
        ):
            if counts["all"] >= enough and counts["bad"] > self.max_bad_fraction * counts["all"]:
                common = ", ".join(reason for reason, _ in self._reasons.most_common(3))
                return (
                    f"{counts['bad']} of {counts['all']} {what} failed, more than "
                    f"--max-bad-fraction {self.max_bad_fraction:g}"
                    + (f" (most often: {common})" if common and what == "samples" else "")
                )
        return ""
