"""The driver's loop: keep every actor busy, count attempts, watch deadlines, lose no task.

Every task ends in exactly one ``Outcome``. Ray restarts an actor that dies; whether its shards are
tried again is decided here, never by Ray, because only the driver can count.

An actor has up to ``in_flight`` tasks at once: it fetches one and publishes another while it
computes a third. When it dies nobody knows which of them was the reason, so each of them becomes a
**suspect** and goes on alone in an actor, where its crashes count as attempts. A task that used up
its attempts by crashing is searched for the one sample that does it (``poison.py``), and goes on
without that sample.
"""

import contextlib
import itertools
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from codec.errors import StrataError

from .cluster import ClusterError, WorkerShape
from .poison import PoisonSearch
from .tasks import Outcome, Policy, Task, Watcher

POLL_SECONDS = 0.5
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 20.0  # between attempts to start a worker
TIRED = 3  # so many tasks in a row that fail in one worker: start it anew, the fault may be its own
LOOK_AHEAD = 100  # tasks that are looked at to find one that a free worker has not failed at
FREE_LOSSES = 10  # so often a task may lose its machine without losing an attempt
# A cloud cluster may have to start machines first, or wait for spot machines to come back.
PATIENCE_SECONDS = 1800.0
WAITING_SECONDS = 60.0  # after which people are told, and then each time it doubles
MAX_POISON = 8  # so many samples of one shard that kill their worker: the shard itself is at fault
PROBE_SECONDS = 60.0  # even a single sample gets this long before it counts as hanging


@dataclass
class _State:
    """What the driver knows of a task."""

    task: Task
    starts: int = 0
    failures: int = 0
    alone: bool = False
    skip: dict[int, str] = field(default_factory=dict)
    search: PoisonSearch | None = None
    crash: str = ""
    losses: int = 0
    failed_on: set[int] = field(default_factory=set)  # slots of workers

    @property
    def arguments(self) -> tuple[Any, ...]:
        return (*self.task.arguments, dict(self.skip)) if self.skip else self.task.arguments


@dataclass
class _Call:
    """One outstanding call of an actor; no state means that it is starting."""

    state: _State | None = None
    probing: bool = False
    deadline: float = 0.0
    began: float = field(default_factory=time.monotonic)


@dataclass
class _Actor:
    """One worker process and its outstanding calls, the oldest first."""

    handle: Any
    slot: int
    calls: dict[Any, _Call] = field(default_factory=dict)
    ready: bool = False
    failed_starts: int = 0
    failures: int = 0  # of tasks, in a row
    retry_at: float = 0.0  # when to ask again whether it is ready
    reserved: bool = False  # gets no more work until it is empty, and then a task that goes alone
    clock: float = 0.0  # when it last finished something, or began after having nothing
    overdue: _State | None = None
    progress_call: Any = None
    progress: dict[str, Any] = field(default_factory=dict)

    @property
    def states(self) -> list[_State]:
        return [call.state for call in self.calls.values() if call.state is not None]


def run_tasks(
    worker: type,
    settings: Any,
    tasks: Sequence[Task],
    shape: WorkerShape,
    policy: Policy,
    watcher: Watcher,
) -> list[Outcome]:
    """Run every task on a pool of ``worker(settings)`` actors.

    ``worker`` has methods ``ready()``, ``run(*arguments) -> dict`` and ``progress() -> dict``. If
    it has ``probe(*arguments, start, stop, skip) -> int`` too, tasks that kill their worker are
    searched, and ``run`` gets the samples to skip as a last argument. When the watcher asks to
    stop, tasks that were not begun have no outcome. Raises ClusterError when no actor can be
    started.
    """
    return list(_Pool(worker, settings, tasks, shape, policy, watcher).run())


class _Pool:
    def __init__(
        self,
        worker: type,
        settings: Any,
        tasks: Sequence[Task],
        shape: WorkerShape,
        policy: Policy,
        watcher: Watcher,
    ) -> None:
        import ray

        self.ray = ray
        self.policy = policy
        self.watcher = watcher
        self.searches = hasattr(worker, "probe")
        self.pending = deque(_State(task) for task in tasks)
        self.alone: deque[_State] = deque()
        self.actors: list[_Actor] = []
        self.ever_ready = False
        self.last_start_error = ""
        self.last_alive = time.monotonic()
        self.next_notice = WAITING_SECONDS
        self.scattered = False
        self.stopping = 0.0  # the moment at which what is under way is given up
        options: dict[str, Any] = {
            "concurrency_groups": {"status": 1},  # ``progress`` answers while ``run`` runs
            "max_concurrency": policy.in_flight,
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
        try:
            for slot in range(self.workers):
                self.actors.append(_Actor(self.start(), slot))
                self._call_ready(self.actors[-1])
            while self._work_left():
                self._retry_starts()
                self._assign()
                new = list(self._collect())
                yield from new
                self._enforce_deadlines()
                reason = self.watcher.progress(new, self._poll_progress())
                if reason and not self.stopping:
                    self._stop(reason)
                if self.stopping and time.monotonic() > self.stopping:
                    return
                self._check_pulse()
        finally:
            for actor in self.actors:
                with contextlib.suppress(Exception):
                    self.ray.kill(actor.handle)

    # -- giving out work --------------------------------------------------------------------------

    def _work_left(self) -> bool:
        under_way = any(actor.states for actor in self.actors)
        return under_way or (not self.stopping and bool(self.pending or self.alone))

    def _stop(self, reason: str) -> None:
        self.stopping = time.monotonic() + self.policy.drain
        under_way = sum(len(actor.states) for actor in self.actors)
        self.watcher.event("draining", reason=reason, under_way=under_way)

    def _call_ready(self, actor: _Actor) -> None:
        actor.ready, actor.reserved, actor.overdue = False, False, None
        actor.progress, actor.progress_call = {}, None
        actor.calls = {actor.handle.ready.remote(): _Call()}

    def _assign(self) -> None:
        if self.stopping:
            return
        able = [
            actor
            for actor in self.actors
            if actor.ready and actor.overdue is None and actor.failures < TIRED
        ]
        reserved = sum(actor.reserved for actor in able)
        for actor in sorted(able, key=lambda actor: len(actor.calls)):
            if not self.alone:
                actor.reserved = False
            elif reserved < len(self.alone) and not actor.reserved:
                actor.reserved = True
                reserved += 1
            if actor.reserved and not actor.calls:
                actor.reserved = False
                if self.alone:
                    self._begin(actor, self.alone.popleft())
        while self.pending:
            # towards the end, work must not wait behind a busy worker while another is idle
            share = -(-len(self.pending) // len(self.actors))
            alone = len(self.actors) == 1
            limit = self.policy.in_flight if alone else min(self.policy.in_flight, 1 + share)
            free = [
                actor
                for actor in able
                if not actor.reserved
                and len(actor.calls) < limit
                and not any(state.alone for state in actor.states)
            ]
            if not free:
                return
            if not self._begin_one(free):
                return

    def _begin_one(self, free: Sequence[_Actor]) -> bool:
        """Give a task to a worker, to one that has not failed at it as long as there is one."""
        slots = {actor.slot for actor in self.actors if actor.ready}
        for number, state in enumerate(itertools.islice(self.pending, LOOK_AHEAD)):
            fresh = [actor for actor in free if actor.slot not in state.failed_on]
            if fresh or slots <= state.failed_on:
                del self.pending[number]
                self._begin(min(fresh or free, key=lambda actor: len(actor.calls)), state)
                return True
        return False

    def _begin(self, actor: _Actor, state: _State) -> None:
        if not actor.calls:
            actor.clock = time.monotonic()
        if state.search is not None:
            start, stop = state.search.next_range()
            call = actor.handle.probe.remote(*state.task.arguments, start, stop, dict(state.skip))
            seconds = self.policy.deadline
            if stop > start:  # else it only opens the shard, which may take as long as all of it
                share = (stop - start) / max(1, state.search.total)
                working = max(PROBE_SECONDS, 2 * share * seconds)
                seconds = min(seconds, 2 * state.search.opening + working)
            actor.calls[call] = _Call(state, probing=True, deadline=seconds)
        else:
            state.starts += 1
            call = actor.handle.run.remote(*state.arguments)
            actor.calls[call] = _Call(state, deadline=self.policy.deadline)

    def _scatter(self) -> None:
        """Another job does the same tasks in the same order: take another one, and share them."""
        if not self.scattered:
            self.scattered = True
            random.shuffle(self.pending)
            self.watcher.event("shared", left=len(self.pending))

    # -- taking in results ------------------------------------------------------------------------

    def _collect(self) -> Iterator[Outcome]:
        calls = {call: actor for actor in self.actors for call in actor.calls}
        if not calls:
            time.sleep(POLL_SECONDS)
            return
        ready, _ = self.ray.wait(list(calls), num_returns=len(calls), timeout=0)
        if not ready:
            ready, _ = self.ray.wait(list(calls), num_returns=1, timeout=POLL_SECONDS)
        for ref in ready:
            actor = calls[ref]
            if ref in actor.calls:  # else it died with another call of this round
                yield from self._take(actor, ref)

    def _take(self, actor: _Actor, ref: Any) -> Iterator[Outcome]:
        call = actor.calls[ref]
        state = call.state
        try:
            result = self.ray.get(ref)
        except (
            self.ray.exceptions.RayTaskError,
            self.ray.exceptions.UnserializableException,
        ) as error:
            self._pop(actor, ref)
            permanent = isinstance(getattr(error, "cause", None), StrataError)
            if state is None:
                self._start_failed(actor, _cause(error), permanent=permanent)
                return
            actor.failures += not permanent
            state.failed_on.add(actor.slot)
            if call.probing:
                # The search cannot go on; what was wrong in the first place stands.
                yield self._give_up(state, f"{state.crash}; searching it: {_cause(error)}", True)
            else:
                yield from self._failed(state, _cause(error), permanent=permanent)
        except self.ray.exceptions.RayError as error:  # it died, or cannot be reached
            if state is None:
                self._start_failed(actor, _first_line(error), error=error)
            else:
                yield from self._died(actor, error)
            return
        else:
            self._pop(actor, ref)
            if state is None:
                actor.ready, actor.failed_starts, actor.failures = True, 0, 0
                if not self.ever_ready:
                    self.ever_ready = True
                    self.watcher.ready()
                return
            actor.failures = 0
            if call.probing:
                assert state.search is not None
                if not state.search.total:
                    state.search.opening = time.monotonic() - call.began
                yield from self._probed(state, died=False, total=result)
            else:
                if result.get("found"):
                    self._scatter()
                yield Outcome(state.task, result, attempts=state.starts)
        if actor.calls:
            return
        if actor.overdue is not None:  # it answered while it was being killed
            self._call_ready(actor)
        elif actor.failures >= TIRED:
            self._start_anew(actor)

    def _pop(self, actor: _Actor, ref: Any) -> None:
        actor.clock = time.monotonic()
        del actor.calls[ref]

    def _died(self, actor: _Actor, error: Exception) -> Iterator[Outcome]:
        """A worker died: sort out its tasks by what they may have had to do with it."""
        calls = list(actor.calls.values())
        culprit = actor.overdue
        shards = actor.progress.get("shards", {}).values()
        near = ", ".join(repr(shard["key"]) for shard in shards if shard.get("key"))
        names = [call.state.task.name for call in calls if call.state is not None]
        self._call_ready(actor)
        if culprit is not None:
            late = next((call.deadline for call in calls if call.state is culprit), 0.0)
            text = f"took longer than {late or self.policy.deadline:.0f} s (--shard-timeout)"
        else:
            where = f" near sample {near}" if near else ""
            text = f"its worker died{where}: {_first_line(error)}"
        self.watcher.event("worker_died", worker=actor.slot, shards=names, error=text)
        innocent = culprit is None and _machine_is_gone(error)
        for call in calls:
            state = call.state
            if state is None:
                continue
            if innocent and state.losses < FREE_LOSSES:
                state.losses += 1
                (self.alone if state.alone else self.pending).append(state)
            elif call.probing:
                yield from self._probed(state, died=True)
            elif culprit is not None and state is not culprit:
                self.pending.appendleft(state)  # it only had bad company
            elif len(calls) > 1 and culprit is None and not state.alone:
                state.alone = True
                self.alone.append(state)
            else:
                state.alone = True
                yield from self._failed(state, text, crashed=True)

    def _failed(
        self, state: _State, error: str, *, permanent: bool = False, crashed: bool = False
    ) -> Iterator[Outcome]:
        """Queue the task again, search it, or give it up."""
        state.failures += 1
        if not permanent and state.failures < self.policy.attempts:
            self.watcher.event(
                "attempt_failed", shard=state.task.name, error=error, attempt=state.failures
            )
            (self.alone if state.alone else self.pending).append(state)
        elif crashed and self.searches and len(state.skip) < MAX_POISON:
            self.watcher.event("poison_search", shard=state.task.name, error=error)
            state.search, state.crash = PoisonSearch(), error
            self.alone.append(state)
        else:
            yield self._give_up(state, error, crashed)

    def _give_up(self, state: _State, error: str, crashed: bool) -> Outcome:
        return Outcome(state.task, None, error, state.starts, crashed)

    def _probed(self, state: _State, *, died: bool, total: int = 0) -> Iterator[Outcome]:
        """Take one step of a search."""
        search = state.search
        assert search is not None
        search.answer(died=died, total=total)
        if not search.finished:
            self.alone.append(state)
        elif search.found is None:
            yield self._give_up(state, f"{state.crash}; {search.verdict}", True)
        else:
            state.skip[search.found] = f"kills its worker: {state.crash}"
            self.watcher.event("poison_found", shard=state.task.name, sample=search.found)
            # With this sample out of the way, everything else has all its attempts again.
            state.search, state.failures = None, 0
            self.alone.append(state)

    def _start_failed(
        self,
        actor: _Actor,
        text: str,
        *,
        permanent: bool = False,
        error: Exception | None = None,
    ) -> None:
        """A worker is not ready: ask again later; only a fault that stays ends it."""
        self.last_start_error = text
        actor.calls = {}
        if permanent:
            self.ray.kill(actor.handle)
            self.actors.remove(actor)
            self.watcher.event("worker_lost", worker=actor.slot, error=text)
            return
        # A restarting actor refuses calls at once. One that is dead for good needs a successor.
        if isinstance(error, self.ray.exceptions.ActorDiedError):
            with contextlib.suppress(Exception):
                self.ray.kill(actor.handle)
            actor.handle = self.start()
        self._pause(actor)

    def _start_anew(self, actor: _Actor) -> None:
        """Tasks fail in this worker one after the other: perhaps a new process does better."""
        self.watcher.event("worker_restarted", worker=actor.slot, failures=actor.failures)
        self.ray.kill(actor.handle, no_restart=False)
        actor.ready, actor.failures = False, 0
        self._pause(actor)

    def _pause(self, actor: _Actor) -> None:
        pause = FIRST_PAUSE_SECONDS * 2 ** min(actor.failed_starts, 16)
        actor.failed_starts += 1
        actor.retry_at = time.monotonic() + min(pause, LONGEST_PAUSE_SECONDS)

    def _retry_starts(self) -> None:
        for actor in self.actors:
            if actor.retry_at and time.monotonic() > actor.retry_at:
                actor.retry_at = 0.0
                self._call_ready(actor)

    # -- watching ---------------------------------------------------------------------------------

    def _enforce_deadlines(self) -> None:
        """Kill workers that finish nothing for too long.

        Tasks take turns in a worker, so the oldest is the one that the others wait for.
        """
        now = time.monotonic()
        for actor in self.actors:
            oldest = next(iter(actor.calls.values()), None)
            if oldest is None or oldest.state is None or actor.overdue is not None:
                continue
            if now - actor.clock > oldest.deadline:
                actor.overdue = oldest.state
                self.ray.kill(actor.handle, no_restart=False)

    def _check_pulse(self) -> None:
        """Raise ClusterError when nobody has been there to work for too long."""
        if not self.actors:
            raise ClusterError(f"no worker can be started: {self.last_start_error}")
        now = time.monotonic()
        if any(actor.ready for actor in self.actors):
            self.last_alive = now
            self.next_notice = WAITING_SECONDS
            return
        waited = now - self.last_alive
        if waited > PATIENCE_SECONDS:
            raise ClusterError(
                f"no worker was given its resources in {waited:.0f} s: the cluster is busy, has "
                "lost its machines, or has none that is large enough"
            )
        if waited > self.next_notice:
            self.next_notice *= 2
            self.watcher.event("waiting", seconds=round(waited), workers=len(self.actors))

    def _poll_progress(self) -> list[dict[str, Any]]:
        """What the workers report; asking never waits for an answer."""
        for actor in self.actors:
            if not actor.ready or actor.overdue is not None:
                continue
            if actor.progress_call is None:
                method = actor.handle.progress.options(concurrency_group="status")
                actor.progress_call = method.remote()
            elif self.ray.wait([actor.progress_call], timeout=0)[0]:
                with contextlib.suppress(self.ray.exceptions.RayError):
                    actor.progress = self.ray.get(actor.progress_call)
                actor.progress_call = None
        return [{"worker": actor.slot, **actor.progress} for actor in self.actors]


def _cause(error: Any) -> str:
    """The worker's own exception without Ray's traceback around it."""
    cause = getattr(error, "cause", None)
    return f"{type(cause).__name__}: {cause}" if cause is not None else _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _machine_is_gone(error: Exception) -> bool:
    """Whether an actor died with its machine: no task is to blame for that."""
    return bool(getattr(error, "preempted", False)) or "node has died" in str(error).lower()
