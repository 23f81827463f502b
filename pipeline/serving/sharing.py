"""Equal requests at the same time are processed once."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class Shared(Generic[T]):
    """A task, and how many callers wait for it."""

    task: "asyncio.Task[T]"
    waiting: int = 0
    kept: bool = False


class Sharing(Generic[T]):
    """Tasks by name. Belongs to one event loop.

    A task is cancelled when all its callers have gone. It goes on if it has called ``keep()``:
    after that cancelling would save nothing, and the callers are likely to come back.
    """

    def __init__(self) -> None:
        self._running: dict[str, Shared[T]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._running

    async def do(
        self, name: str, work: Callable[[Callable[[], None]], Coroutine[None, None, T]]
    ) -> T:
        """The result of ``work(keep)``, started by this call or by an earlier one."""
        shared = self._running.get(name) or self._start(name, work)
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if not shared.waiting and not shared.kept and not shared.task.done():
                self._forget(name, shared)  # later callers must not join a cancelled task
                shared.task.cancel()

    def _start(
        self, name: str, work: Callable[[Callable[[], None]], Coroutine[None, None, T]]
    ) -> Shared[T]:
        def keep() -> None:
            shared.kept = True

        shared = Shared(asyncio.create_task(work(keep)))
        self._running[name] = shared
        shared.task.add_done_callback(lambda _: self._ended(name, shared))
        return shared

    def _ended(self, name: str, shared: Shared[T]) -> None:
        self._forget(name, shared)
        if not shared.task.cancelled():
            shared.task.exception()  # so that asyncio does not warn if all callers have gone

    def _forget(self, name: str, shared: Shared[T]) -> None:
        if self._running.get(name) is shared:
            del self._running[name]
