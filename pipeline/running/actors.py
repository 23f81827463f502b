"""The actors of a job: starts, restarts and replaces them, and asks for their status.

Ray restarts an actor that dies, on another machine if its own is gone. This module knows nothing of
tasks: the scheduler gives them to actors and decides what happens to them.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from codec.errors import StrataError

from .cluster import ClusterError, WorkerShape
from .tasks import PausedError, Watcher

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 20.0  # between attempts to start a worker
# A cloud cluster may have to start machines first, or to wait for spot machines.
PATIENCE_SECONDS = 1800.0
WAITING_SECONDS = 60.0  # before the first message that no worker is ready; then it doubles

C = TypeVar("C")


@dataclass(eq=False)
class Actor(Generic[C]):
    """One worker: its current process, and its calls.

    ``calls`` are the outstanding calls by Ray reference, the oldest first. ``starting`` is the
    reference of a call of ``ready`` that has not been answered. ``failures`` counts tasks in a row
    that failed in this process.
    """

    handle: Any
    slot: int
    starting: Any = None
    calls: dict[Any, C] = field(default_factory=dict)
    ready: bool = False
    failures: int = 0
    reserved: bool = False  # it gets no more tasks until it is idle, and then a suspect
    clock: float = 0.0  # when it last made progress, or got a task while it was idle
    killed_for: C | None = None  # the call that has timed out, while the actor is being killed
    status: dict[str, Any] = field(default_factory=dict)
    asked: Any = None  # the reference of a call of ``status``
    failed_starts: int = 0
    retry_at: float = 0.0  # when to ask again whether it is ready


@dataclass(frozen=True)
class Answer:
    """The end of a call: a result, an error, or the death of its actor."""

    result: Any = None
    error: Exception | None = None
    died: bool = False

    @property
    def permanent(self) -> bool:
        """Whether another attempt would fail in the same way."""
        cause = getattr(self.error, "cause", None)
        return isinstance(cause, StrataError) and not getattr(cause, "passing", False)

    @property
    def paused(self) -> bool:
        """Whether the worker has paused the task because it was asked to."""
        return isinstance(getattr(self.error, "cause", None), PausedError)

    @property
    def text(self) -> str:
        """The worker's own exception without Ray's traceback around it."""
        cause = getattr(self.error, "cause", None)
        if cause is not None:
            # A worker's RuntimeError names the original exception itself: see picklable_errors.
            named = type(cause) is RuntimeError
            return str(cause) if named else f"{type(cause).__name__}: {cause}"
        lines = [line.strip() for line in str(self.error).splitlines() if line.strip()]
        return lines[0] if lines else type(self.error).__name__

    @property
    def machine_is_gone(self) -> bool:
        """Whether the actor died with its machine. Then no task is the reason."""
        preempted = bool(getattr(self.error, "preempted", False))
        return preempted or "node has died" in str(self.error).lower()


class Crew(Generic[C]):
    """``count`` actors ``worker(settings)``, each with the resources of ``shape``.

    Args:
        in_flight: calls that an actor runs at the same time.
        watcher: gets the events of actors.
    """

    def __init__(
        self,
        worker: type,
        settings: Any,
        shape: WorkerShape,
        count: int,
        in_flight: int,
        watcher: Watcher,
    ) -> None:
        import ray

        self.ray = ray
        self.watcher = watcher
        options: dict[str, Any] = {
            "concurrency_groups": {"status": 1},  # ``status`` answers while ``run`` runs
            "max_concurrency": in_flight,
            "num_cpus": shape.cpus,
            "num_gpus": shape.gpus,
            "max_restarts": -1,
            "max_task_retries": 0,
            "runtime_env": {"env_vars": shape.environment},
        }
        remote: Any = ray.remote(**options)(worker)
        self._new = lambda: remote.remote(settings)
        self._ever_ready = False
        self._last_start_error = ""
        self._last_alive = time.monotonic()
        self._next_notice = WAITING_SECONDS
        self.actors: list[Actor[C]] = []
        for slot in range(count):
            self.actors.append(Actor(self._new(), slot))
            self.ask_ready(self.actors[-1])

    def close(self) -> None:
        """Kill all actors."""
        for actor in self.actors:
            with contextlib.suppress(Exception):
                self.ray.kill(actor.handle)

    def answers(self, seconds: float) -> list[tuple[Actor[C], Any, Answer]]:
        """The answers that arrive within ``seconds``: (actor, reference of the call, answer).

        An actor's death comes after its other answers.
        """
        refs = {ref: actor for actor in self.actors for ref in actor.calls}
        refs |= {actor.starting: actor for actor in self.actors if actor.starting is not None}
        if not refs:
            time.sleep(seconds)
            return []
        waiting = list(refs)
        self.ray.wait(waiting, num_returns=1, timeout=seconds)
        ready, _ = self.ray.wait(waiting, num_returns=len(waiting), timeout=0)
        found = [(refs[ref], ref, self._answer(ref)) for ref in ready]
        return sorted(found, key=lambda item: item[2].died)

    def _answer(self, ref: Any) -> Answer:
        errors = self.ray.exceptions
        try:
            return Answer(self.ray.get(ref))
        except (errors.RayTaskError, errors.UnserializableException) as error:
            return Answer(error=error)
        except errors.RayError as error:  # it died, or cannot be reached
            return Answer(error=error, died=True)

    # -- the life of an actor ---------------------------------------------------------------------

    def ask_ready(self, actor: Actor[C]) -> None:
        """Treat an actor as new and ask whether it is ready: it may be another process now."""
        actor.ready, actor.reserved, actor.killed_for = False, False, None
        actor.status, actor.asked, actor.calls = {}, None, {}
        actor.starting = actor.handle.ready.remote()

    def take_ready(self, actor: Actor[C], answer: Answer) -> None:
        """Handle an actor's answer to ``ask_ready``. Only a permanent error removes the actor."""
        actor.starting = None
        if answer.error is None:
            actor.ready, actor.failed_starts, actor.failures = True, 0, 0
            if not self._ever_ready:
                self._ever_ready = True
                self.watcher.ready()
            return
        self._last_start_error = answer.text
        if answer.permanent:
            self.ray.kill(actor.handle)
            self.actors.remove(actor)
            self.watcher.event("worker_lost", worker=actor.slot, error=answer.text)
            return
        if not answer.died:
            self.watcher.event("worker_cannot_start", worker=actor.slot, error=answer.text)
        # A restarting actor refuses calls at once. One that Ray does not restart is replaced.
        if isinstance(answer.error, self.ray.exceptions.ActorDiedError):
            with contextlib.suppress(Exception):
                self.ray.kill(actor.handle)
            actor.handle = self._new()
        self._pause(actor)

    def restart(self, actor: Actor[C]) -> None:
        """Replace an actor's process, because several tasks in a row have failed in it."""
        self.watcher.event("worker_restarted", worker=actor.slot, failures=actor.failures)
        self.ray.kill(actor.handle, no_restart=False)
        actor.ready, actor.failures = False, 0
        self._pause(actor)

    def kill_for(self, actor: Actor[C], call: C) -> None:
        """Kill an actor's process because of one of its calls. Ray starts another one."""
        actor.killed_for = call
        self.ray.kill(actor.handle, no_restart=False)

    def _pause(self, actor: Actor[C]) -> None:
        pause = FIRST_PAUSE_SECONDS * 2 ** min(actor.failed_starts, 16)
        actor.failed_starts += 1
        actor.retry_at = time.monotonic() + min(pause, LONGEST_PAUSE_SECONDS)

    # -- watching ---------------------------------------------------------------------------------

    def attend(self) -> None:
        """Ask actors again whether they are ready, if their pause is over.

        Raises ClusterError if no actor has been ready for too long.
        """
        if not self.actors:
            raise ClusterError(f"no worker can be started: {self._last_start_error}")
        now = time.monotonic()
        for actor in self.actors:
            if actor.retry_at and now > actor.retry_at:
                actor.retry_at = 0.0
                self.ask_ready(actor)
        if any(actor.ready for actor in self.actors):
            self._last_alive = now
            self._next_notice = WAITING_SECONDS
            return
        waited = now - self._last_alive
        if waited > PATIENCE_SECONDS:
            last = f" (last error of a worker: {self._last_start_error})"
            raise ClusterError(
                f"no worker could start in {waited:.0f} s: the cluster is busy, has lost its "
                "machines, or has no machine that is large enough"
                + (last if self._last_start_error else "")
            )
        if waited > self._next_notice:
            self._next_notice *= 2
            message = f"no worker has started in {waited:.0f} s; {len(self.actors)} asked for"
            self.watcher.event("waiting", message=message)

    def pause(self) -> None:
        """Ask all workers that can to pause their tasks."""
        for actor in self.actors:
            if actor.ready and hasattr(actor.handle, "pause"):
                actor.handle.pause.options(concurrency_group="status").remote()

    def statuses(self) -> Sequence[dict[str, Any]]:
        """The last known status of each actor. Never waits for an answer."""
        for actor in self.actors:
            if not actor.ready or actor.killed_for is not None:
                continue
            if actor.asked is not None and self.ray.wait([actor.asked], timeout=0)[0]:
                with contextlib.suppress(self.ray.exceptions.RayError):
                    actor.status = self.ray.get(actor.asked)
                actor.asked = None
            if actor.asked is None:
                method = actor.handle.status.options(concurrency_group="status")
                actor.asked = method.remote()
        return [{"worker": actor.slot, **actor.status} for actor in self.actors]
