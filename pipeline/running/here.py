"""Runs tasks in threads of this process, for jobs that only copy bytes and need no Ray."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

from ..stores.passing import may_pass
from ..stores.reasons import describe
from .tasks import Outcome, Task, Watcher

ATTEMPTS = 3
_POLL_SECONDS = 0.5  # between two updates of the watcher


class ThreadedWorker(Protocol):
    """A worker (``worker.Worker``) that can run several tasks at once."""

    @property
    def run(self) -> Callable[..., dict[str, Any]]:
        """Runs a task, given its arguments."""

    def status(self) -> dict[str, Any]:
        """What it is doing."""


def run_here(
    worker: ThreadedWorker, tasks: Sequence[Task], threads: int, watcher: Watcher
) -> list[Outcome]:
    """Run every task with ``worker.run``, ``threads`` at once; returns outcomes as tasks ended.

    A task that fails with a passing error is tried three times. When the watcher asks to stop,
    running tasks are finished, and the others get no outcome.
    """
    waiting = deque((task, 1) for task in tasks)
    running: dict[Future[dict[str, Any]], tuple[Task, int]] = {}
    outcomes: list[Outcome] = []
    reason = ""
    watcher.ready()
    with ThreadPoolExecutor(threads) as pool:
        while running or (waiting and not reason):
            while waiting and len(running) < threads and not reason:
                task, attempt = waiting.popleft()
                running[pool.submit(worker.run, *task.arguments)] = task, attempt
            ended, _ = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            new = []
            for future in ended:
                task, attempt = running.pop(future)
                error = future.exception()
                if error is None:
                    new.append(Outcome(task, future.result(), attempts=attempt))
                elif not isinstance(error, Exception):
                    raise error
                elif attempt < ATTEMPTS and may_pass(error):
                    watcher.event(
                        "attempt_failed", shard=task.name, error=describe(error), attempt=attempt
                    )
                    waiting.append((task, attempt + 1))
                else:
                    new.append(Outcome(task, None, describe(error), attempt))
            outcomes += new
            reason = watcher.update(new, [{"worker": 0, **worker.status()}])
    return outcomes
