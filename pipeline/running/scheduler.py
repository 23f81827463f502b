"""The driver's loop: keeps actors busy, counts attempts, enforces timeouts, loses no task.

Every task ends in exactly one ``Outcome``. Ray restarts an actor that dies (``actors.py``). Whether
its tasks are tried again is decided here and not by Ray, because attempts are counted here.

An actor has up to ``in_flight`` tasks at once: it fetches one and publishes another while it
computes a third. When the actor dies, any of them may be the reason. So each becomes a **suspect**:
it runs alone in an actor, and its crashes count as attempts. A task that has used up its attempts
with crashes is searched for the sample that kills the worker (``bisection.py``), and then runs
without that sample.
"""

import itertools
import math
import platform
import random
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .actors import Actor, Answer, Crew
from .bisection import DeadlySampleSearch
from .cluster import WorkerShape
from .progress.memory import kernel_kills
from .progress.summary import size
from .tasks import Outcome, Policy, Task, Watcher

POLL_SECONDS = 0.5
FAILURES_IN_A_ROW = 3  # then a worker's process is replaced, because it may be the reason
LOOK_AHEAD = 100  # pending tasks in which to find one that a free worker has not failed at
FREE_LOSSES = 10  # a task may lose its machine so often before that counts as an attempt
MAX_DEADLY_SAMPLES = 8  # of one shard; with more of them the shard itself fails
# A worker died for lack of memory if its machine had less free memory than this share of free
# memory and the worker's together. Ray starts to kill when 5 % of a machine's memory is left.
SCARCE = 0.1
PROBE_SECONDS = 60.0  # the shortest timeout of a search step


@dataclass(eq=False)
class _State:
    """What the driver knows of a task."""

    task: Task
    starts: int = 0
    failures: int = 0
    suspect: bool = False  # it may have killed an actor, so it runs alone in one
    skip: dict[int, str] = field(default_factory=dict)
    search: DeadlySampleSearch | None = None
    crash: str = ""
    losses: int = 0
    failed_on: set[int] = field(default_factory=set)  # slots of workers

    @property
    def arguments(self) -> tuple[Any, ...]:
        return (*self.task.arguments, dict(self.skip)) if self.skip else self.task.arguments


@dataclass(eq=False)
class _Call:
    """One outstanding call of an actor.

    It is overdue if its actor has finished no sample, stage or task for ``timeout`` seconds, or if
    the call itself has made no progress for ``patience`` seconds. Its last progress was at
    ``moved``, to ``place`` (stage and samples).
    """

    state: _State
    probing: bool
    timeout: float
    patience: float
    began: float
    moved: float
    place: tuple[Any, Any] = (None, None)


_Worker = Actor[_Call]


def run_tasks(
    worker: type,
    settings: Any,
    tasks: Sequence[Task],
    shape: WorkerShape,
    policy: Policy,
    watcher: Watcher,
) -> Iterator[Outcome]:
    """Run every task on a pool of ``worker(settings)`` actors; yields outcomes as they come.

    ``worker`` has methods ``ready()``, ``run(*arguments) -> dict`` and ``status() -> dict``. If
    it also has ``probe(*arguments, start, stop, skip) -> int``, tasks that kill their worker are
    searched, and ``run`` gets the samples to skip as a last argument. If it has ``pause()``, its
    ``run`` may raise PausedError after that was called. When the watcher asks to stop, tasks that
    have not started or were paused get no outcome. Raises ClusterError if no actor can be started.
    """
    count = min(shape.workers, len(tasks))
    crew = Crew[_Call](worker, settings, shape, count, policy.in_flight, watcher)
    yield from _Scheduler(crew, tasks, policy, watcher, hasattr(worker, "probe")).run()


def _lack_of_memory(status: Mapping[str, Any]) -> str:
    """A message if a worker with this last status died for lack of memory, otherwise ""."""
    free, held = status.get("free"), status.get("rss", 0)
    here = status.get("node") == platform.node()
    killed = here and kernel_kills() > status.get("kernel_kills", math.inf)
    if not killed and (free is None or free > SCARCE * (free + held)):
        return ""
    return (
        f"most likely for lack of memory (it held {size(held)}); fewer workers (--workers), a "
        "smaller --batch-size or larger machines help"
    )


class _Scheduler:
    def __init__(
        self,
        crew: Crew[_Call],
        tasks: Sequence[Task],
        policy: Policy,
        watcher: Watcher,
        searches: bool,
    ) -> None:
        self.crew, self.policy, self.watcher, self.searches = crew, policy, watcher, searches
        self.pending = deque(_State(task) for task in tasks)
        self.suspects: deque[_State] = deque()
        self.scattered = False
        self.stopping = 0.0  # if not 0: when running tasks are given up
        self.pausing = math.inf  # when workers are asked to pause their tasks

    def run(self) -> Iterator[Outcome]:
        """Yield outcomes as they come. Kills the actors at the end."""
        try:
            while self._work_left():
                self.crew.attend()
                self._assign()
                new = list(self._collect())
                yield from new
                reason = self.watcher.update(new, list(self.crew.statuses()))
                self._enforce_timeouts()
                if reason and not self.stopping:
                    self._stop(reason)
                if time.monotonic() > self.pausing:
                    self.pausing = math.inf
                    self.crew.pause()
                if self.stopping and time.monotonic() > self.stopping:
                    return
        finally:
            self.crew.close()

    # -- assigning tasks --------------------------------------------------------------------------

    def _work_left(self) -> bool:
        under_way = any(actor.calls for actor in self.crew.actors)
        return under_way or (not self.stopping and bool(self.pending or self.suspects))

    def _stop(self, reason: str) -> None:
        self.stopping = time.monotonic() + self.policy.drain
        self.pausing = time.monotonic() + self.policy.drain / 2  # the rest is for saving
        under_way = sum(len(actor.calls) for actor in self.crew.actors)
        self.watcher.event(
            "draining", reason=reason, under_way=under_way, seconds=self.policy.drain
        )

    def _assign(self) -> None:
        if self.stopping:
            return
        able = [
            actor
            for actor in self.crew.actors
            if actor.ready and actor.killed_for is None and actor.failures < FAILURES_IN_A_ROW
        ]
        reserved = sum(actor.reserved for actor in able)
        for actor in sorted(able, key=lambda actor: len(actor.calls)):
            if not self.suspects:
                actor.reserved = False
            elif reserved < len(self.suspects) and not actor.reserved:
                actor.reserved = True
                reserved += 1
            if actor.reserved and not actor.calls:
                actor.reserved = False
                if self.suspects:
                    self._begin(actor, self.suspects.popleft())
        starting = sum(not actor.calls and actor not in able for actor in self.crew.actors)
        while self.pending:
            # Near the end, and while workers start, a task must not wait for a busy worker if
            # another one could take it.
            share = -(-len(self.pending) // len(self.crew.actors))
            if len(self.pending) <= starting:
                share = 0
            only_one = len(self.crew.actors) == 1
            limit = self.policy.in_flight if only_one else min(self.policy.in_flight, 1 + share)
            free = [
                actor
                for actor in able
                if not actor.reserved
                and len(actor.calls) < limit
                and not any(call.state.suspect for call in actor.calls.values())
            ]
            if not free:
                return
            if not self._begin_one(free):
                return

    def _begin_one(self, free: Sequence[_Worker]) -> bool:
        """Assign one task, if possible to a worker that has not failed at it."""
        slots = {actor.slot for actor in self.crew.actors if actor.ready}
        for number, state in enumerate(itertools.islice(self.pending, LOOK_AHEAD)):
            fresh = [actor for actor in free if actor.slot not in state.failed_on]
            if fresh or slots <= state.failed_on:
                del self.pending[number]
                self._begin(min(fresh or free, key=lambda actor: len(actor.calls)), state)
                return True
        return False

    def _begin(self, actor: _Worker, state: _State) -> None:
        now = time.monotonic()
        if not actor.calls:
            actor.clock = now
        seconds = self.policy.timeout
        if state.search is not None:
            start, stop = state.search.next_range()
            ref = actor.handle.probe.remote(*state.task.arguments, start, stop, dict(state.skip))
            if stop > start:  # otherwise it only opens the shard, and has the whole timeout
                share = (stop - start) / max(1, state.search.total)
                working = max(PROBE_SECONDS, 2 * share * seconds)
                seconds = min(seconds, 2 * state.search.opening + working)
        else:
            state.starts += 1
            ref = actor.handle.run.remote(*state.arguments)
        # Tasks take turns, so each may have to wait for all earlier ones.
        patience = seconds + sum(call.timeout for call in actor.calls.values())
        probing = state.search is not None
        actor.calls[ref] = _Call(state, probing, seconds, patience, now, now)

    def _scatter(self) -> None:
        """Shuffle the tasks, because another job runs the same ones: so the two share them."""
        if not self.scattered:
            self.scattered = True
            random.shuffle(self.pending)
            self.watcher.event("shared", left=len(self.pending))

    # -- collecting results -----------------------------------------------------------------------

    def _collect(self) -> Iterator[Outcome]:
        for actor, ref, answer in self.crew.answers(POLL_SECONDS):
            if ref is actor.starting:
                self.crew.take_ready(actor, answer)
            elif ref in actor.calls:  # otherwise its actor's death was handled in this round
                if answer.died:
                    yield from self._died(actor, answer)
                else:
                    yield from self._answered(actor, actor.calls.pop(ref), answer)

    def _answered(self, actor: _Worker, call: _Call, answer: Answer) -> Iterator[Outcome]:
        actor.clock = time.monotonic()
        state = call.state
        if answer.error is not None:
            if answer.paused:
                return
            actor.failures += not answer.permanent
            state.failed_on.add(actor.slot)
            if call.probing:
                # The search cannot go on, so the task fails with the crash that started it.
                yield self._give_up(state, f"{state.crash}; searching it: {answer.text}", True)
            else:
                yield from self._failed(state, answer.text, permanent=answer.permanent)
        else:
            actor.failures = 0
            if call.probing:
                assert state.search is not None
                if not state.search.total:
                    state.search.opening = time.monotonic() - call.began
                yield from self._probed(state, died=False, total=answer.result)
            else:
                if answer.result.get("found"):
                    self._scatter()
                yield Outcome(state.task, answer.result, attempts=state.starts)
        if actor.calls:
            return
        if actor.killed_for is not None:  # it answered while it was being killed
            self.crew.ask_ready(actor)
        elif actor.failures >= FAILURES_IN_A_ROW:
            self.crew.restart(actor)

    def _died(self, actor: _Worker, answer: Answer) -> Iterator[Outcome]:
        """Handle a worker's death: decide for each of its tasks whether it may be the reason."""
        calls = list(actor.calls.values())
        culprit = actor.killed_for
        shards = actor.status.get("shards", {}).values()
        near = ", ".join(repr(shard["key"]) for shard in shards if shard.get("key"))
        lack_of_memory = _lack_of_memory(actor.status)
        self.crew.ask_ready(actor)
        if culprit is not None:
            text = f"finished no sample for {culprit.timeout:.0f} s (--shard-timeout)"
        else:
            where = f" near sample {near}" if near else ""
            text = f"its worker died{where}: {lack_of_memory or answer.text}"
        names = [call.state.task.name for call in calls]
        self.watcher.event("worker_died", worker=actor.slot, shards=names, error=text)
        innocent = culprit is None and answer.machine_is_gone
        for call in calls:
            state = call.state
            if innocent and state.losses < FREE_LOSSES:
                state.losses += 1
                (self.suspects if state.suspect else self.pending).append(state)
            elif call.probing:
                yield from self._probed(state, died=True)
            elif culprit is not None and call is not culprit:
                self.pending.appendleft(state)  # another task was stuck, not this one
            elif len(calls) > 1 and culprit is None and not state.suspect:
                state.suspect = True
                self.suspects.append(state)
            else:
                state.suspect = True
                yield from self._failed(state, text, crashed=True)

    def _failed(
        self, state: _State, error: str, *, permanent: bool = False, crashed: bool = False
    ) -> Iterator[Outcome]:
        """Queue a failed task again, search it, or give it up."""
        state.failures += 1
        if not permanent and state.failures < self.policy.attempts:
            self.watcher.event(
                "attempt_failed", shard=state.task.name, error=error, attempt=state.failures
            )
            (self.suspects if state.suspect else self.pending).append(state)
        elif crashed and self.searches and len(state.skip) < MAX_DEADLY_SAMPLES:
            self.watcher.event("deadly_sample_search", shard=state.task.name, error=error)
            state.search, state.crash = DeadlySampleSearch(), error
            self.suspects.append(state)
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
            self.suspects.append(state)
        elif search.found is None:
            yield self._give_up(state, f"{state.crash}; {search.verdict}", True)
        else:
            state.skip[search.found] = f"kills its worker: {state.crash}"
            self.watcher.event("deadly_sample_found", shard=state.task.name, sample=search.found)
            # Without this sample, the task gets all its attempts again.
            state.search, state.failures = None, 0
            self.suspects.append(state)

    # -- watching ---------------------------------------------------------------------------------

    def _enforce_timeouts(self) -> None:
        """Kill workers that have made no progress for too long, or none in one of their tasks.

        Tasks take turns in a worker, so the oldest one holds up the others.
        """
        now = time.monotonic()
        for actor in self.crew.actors:
            if not actor.calls or actor.killed_for is not None:
                continue
            self._note_progress(actor, now)
            calls = list(actor.calls.values())
            overdue = [call for call in calls if now - call.moved > call.patience]
            if now - actor.clock > calls[0].timeout:
                overdue.insert(0, calls[0])
            if overdue:
                self.crew.kill_for(actor, overdue[0])

    def _note_progress(self, actor: _Worker, now: float) -> None:
        """Note whether stages and samples in an actor's last status have changed."""
        shards = actor.status.get("shards", {})
        for call in actor.calls.values():
            shard = shards.get(call.state.task.name, {})
            place = shard.get("stage"), shard.get("samples")
            if place != call.place:
                call.place, call.moved, actor.clock = place, now, now
            elif place[0] == "wait":
                call.moved = now
