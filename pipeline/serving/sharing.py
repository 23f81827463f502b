"""What several ask for at the same time is done once."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class Shared(Generic[T]):
    """A piece of work, and how many wait for it."""

    task: "asyncio.Task[T]"
    waiting: int = 0
    kept: bool = False


class Sharing(Generic[T]):
    """Work by name. Belongs to one event loop.

    Work that nobody waits for any more is given up, unless it has called ``keep()`` before: then
    it goes on to its end, for it is too late to save anything, and whoever waited comes back.
    """

    def __init__(self) -> None:
        self._under_way: dict[str, Shared[T]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._under_way

    async def do(
        self, name: str, work: Callable[[Callable[[], None]], Coroutine[None, None, T]]
    ) -> T:
        """What ``work(keep)`` gives or raises: begun here, or by somebody before."""
        shared = self._under_way.get(name) or self._begin(name, work)
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if not shared.waiting and not shared.kept and not shared.task.done():
                self._forget(name, shared)  # who comes now must not be given up with it
                shared.task.cancel()

    def _begin(
        self, name: str, work: Callable[[Callable[[], None]], Coroutine[None, None, T]]
    ) -> Shared[T]:
        def keep() -> None:
            shared.kept = True

        shared = Shared(asyncio.create_task(work(keep)))
        self._under_way[name] = shared
        shared.task.add_done_callback(lambda _: self._ended(name, shared))
        return shared

    def _ended(self, name: str, shared: Shared[T]) -> None:
        self._forget(name, shared)
        if not shared.task.cancelled():
            shared.task.exception()  # nobody may be left to look at it

    def _forget(self, name: str, shared: Shared[T]) -> None:
        if self._under_way.get(name) is shared:
            del self._under_way[name]
