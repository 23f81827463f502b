"""The driver's loop: keep every actor busy, count attempts, watch deadlines, lose no task.

Every task ends in exactly one ``Outcome``. Ray restarts an actor that dies; whether its shard is
tried again is decided here, never by Ray, because only the driver can count. Finding the one
sample that kills its worker (by bisecting the shard in a throw-away actor) would start from
``Outcome.crashed``.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from codec.errors import StrataError

from .cluster import ClusterError, WorkerShape

POLL_SECONDS = 0.5
MAX_FAILED_STARTS = 3
FIRST_START_SECONDS = 600.0  # a cloud cluster may have to start machines first


@dataclass(frozen=True)
class Task:
    """One call of a worker's ``run``: a name for people, and small picklable arguments."""

    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a task: a result, or the error of its last attempt."""

    task: Task
    result: dict[str, Any] | None
    error: str = ""
    attempts: int = 0
    crashed: bool = False


@dataclass(frozen=True)
class Policy:
    """``attempts`` per task; ``deadline`` seconds for each of them."""

    attempts: int = 3
    deadline: float = 3600.0


@dataclass
class _Actor:
    """One worker process: either starting, idle or running a task."""

    handle: Any
    failed_starts: int = 0
    task: Task | None = None
    started: float = 0.0
    overdue: bool = False
    progress_call: Any = None
    progress: dict[str, Any] | None = None


def run_tasks(
    worker: type,
    settings: Any,
    tasks: Sequence[Task],
    shape: WorkerShape,
    policy: Policy,
    on_progress: Callable[[list[Outcome], dict[str, dict[str, Any]]], None],
    *,
    on_ready: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Run every task on a pool of ``worker(settings)`` actors.

    ``worker`` has methods ``ready()``, ``run(*arguments) -> dict`` and ``progress() -> dict``.
    ``on_progress`` gets the outcomes that are new and the progress of the tasks under way.
    Raises ClusterError when no actor can be started.
    """
    return list(_Pool(worker, settings, tasks, shape, policy, on_progress, on_ready).run())


class _Pool:
    def __init__(
        self,
        worker: type,
        settings: Any,
        tasks: Sequence[Task],
        shape: WorkerShape,
        policy: Policy,
        on_progress: Callable[[list[Outcome], dict[str, dict[str, Any]]], None],
        on_ready: Callable[[], None],
    ) -> None:
        import ray

        self.ray = ray
        self.policy = policy
        self.on_progress = on_progress
        self.on_ready = on_ready
        self.pending = deque(tasks)
        self.attempts = dict.fromkeys((task.name for task in tasks), 0)
        self.calls: dict[Any, _Actor] = {}  # the one outstanding call of each actor
        self.idle: list[_Actor] = []
        self.ever_ready = False
        self.last_start_error = ""
        options: dict[str, Any] = {
            "concurrency_groups": {"status": 1},  # ``progress`` answers while ``run`` runs
            "num_cpus": shape.cpus,
            "num_gpus": shape.gpus,
            "max_restarts": -1,
            "max_task_retries": 0,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(shape.threads)}},
        }
        remote: Any = ray.remote(**options)(worker)
        self.start = lambda: remote.remote(settings)
        self.workers = min(shape.workers, len(tasks))

    def run(self) -> Iterator[Outcome]:
        """Yields outcomes as they come; kills the actors however it ends."""
        actors: list[_Actor] = []
        try:
            for _ in range(self.workers):
                actors.append(_Actor(self.start()))
                self._call_ready(actors[-1])
            waiting_since = time.monotonic()
            while self.pending or self.calls:
                self._assign()
                new = list(self._collect())
                yield from new
                self._enforce_deadlines()
                self.on_progress(new, self._poll_progress())
                if self.pending and not self.calls and not self.idle:
                    raise ClusterError(f"no worker can be started: {self.last_start_error}")
                if not self.ever_ready and time.monotonic() - waiting_since > FIRST_START_SECONDS:
                    raise ClusterError(
                        f"no worker was given its resources in {FIRST_START_SECONDS:.0f} s: the "
                        "cluster is busy or has no machine that is large enough"
                    )
        finally:
            for actor in actors:
                with contextlib.suppress(Exception):
                    self.ray.kill(actor.handle)

    def _call_ready(self, actor: _Actor) -> None:
        actor.task, actor.overdue, actor.progress, actor.progress_call = None, False, None, None
        self.calls[actor.handle.ready.remote()] = actor

    def _assign(self) -> None:
        while self.pending and self.idle:
            actor, task = self.idle.pop(), self.pending.popleft()
            self.attempts[task.name] += 1
            actor.task, actor.started = task, time.monotonic()
            self.calls[actor.handle.run.remote(*task.arguments)] = actor

    def _collect(self) -> Iterator[Outcome]:
        if not self.pending:  # actors that are still starting have nothing left to do
            self.calls = {call: actor for call, actor in self.calls.items() if actor.task}
        if not self.calls:
            return
        ready, _ = self.ray.wait(list(self.calls), num_returns=1, timeout=POLL_SECONDS)
        for call in ready:
            actor = self.calls.pop(call)
            task = actor.task
            try:
                result = self.ray.get(call)
            except self.ray.exceptions.RayActorError as error:
                if task is None:
                    self._start_failed(actor, _first_line(error), permanent=False)
                else:
                    yield from self._failed(task, actor, _first_line(error), crashed=True)
                    self._call_ready(actor)
            except self.ray.exceptions.RayTaskError as error:
                if task is None:
                    self._start_failed(actor, _cause(error), permanent=True)
                else:
                    permanent = isinstance(error.cause, StrataError)
                    yield from self._failed(task, actor, _cause(error), permanent=permanent)
                    self._release(actor)
            else:
                actor.task, actor.progress, actor.failed_starts = None, None, 0
                self._release(actor)
                if task is not None:
                    yield Outcome(task, result, attempts=self.attempts[task.name])
                elif not self.ever_ready:
                    self.ever_ready = True
                    self.on_ready()

    def _release(self, actor: _Actor) -> None:
        if actor.overdue:  # it answered while it was being killed
            self._call_ready(actor)
        else:
            self.idle.append(actor)

    def _failed(
        self,
        task: Task,
        actor: _Actor,
        error: str,
        *,
        permanent: bool = False,
        crashed: bool = False,
    ) -> Iterator[Outcome]:
        """Queue the task again, or give it up."""
        if actor.overdue:
            error = f"took longer than {self.policy.deadline:.0f} s (--shard-timeout)"
        elif crashed:
            last = (actor.progress or {}).get("key")
            error = f"its worker died{f' near sample {last!r}' if last else ''}: {error}"
        actor.task, actor.progress = None, None
        attempts = self.attempts[task.name]
        if permanent or attempts >= self.policy.attempts:
            yield Outcome(task, None, error, attempts, crashed)
        else:
            self.pending.append(task)

    def _start_failed(self, actor: _Actor, error: str, *, permanent: bool) -> None:
        self.last_start_error = error
        actor.failed_starts += 1
        if permanent or actor.failed_starts >= MAX_FAILED_STARTS:
            self.ray.kill(actor.handle)
            return
        time.sleep(POLL_SECONDS)  # a restarting actor refuses calls at once
        self._call_ready(actor)

    def _enforce_deadlines(self) -> None:
        now = time.monotonic()
        for actor in self.calls.values():
            late = actor.task is not None and now - actor.started > self.policy.deadline
            if late and not actor.overdue:
                actor.overdue = True
                self.ray.kill(actor.handle, no_restart=False)

    def _poll_progress(self) -> dict[str, dict[str, Any]]:
        """What the busy workers report; asking never waits for an answer."""
        progress = {}
        for actor in self.calls.values():
            if actor.task is None or actor.overdue:
                continue
            if actor.progress_call is None:
                method = actor.handle.progress.options(concurrency_group="status")
                actor.progress_call = method.remote()
            elif self.ray.wait([actor.progress_call], timeout=0)[0]:
                with contextlib.suppress(self.ray.exceptions.RayError):
                    actor.progress = self.ray.get(actor.progress_call)
                actor.progress_call = None
            if actor.progress:
                progress[actor.task.name] = actor.progress
        return progress


def _cause(error: Any) -> str:
    """The worker's own exception without Ray's traceback around it."""
    cause = error.cause
    return f"{type(cause).__name__}: {cause}" if cause is not None else _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
