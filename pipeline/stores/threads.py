"""``map`` in threads: results in order, and a bound on how many wait."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
ASKED_TOGETHER = 32


def ask_in_threads(fs: Any, ask: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``ask`` for every item, in threads if the file system answers several requests at once."""
    if len(items) < 2 or not fs.async_impl:
        return [ask(item) for item in items]
    with ThreadPoolExecutor(min(ASKED_TOGETHER, len(items))) as pool:
        return list(pool.map(ask, items))


def ahead(
    pool: Executor, function: Callable[[T], R], items: Iterable[T], limit: Callable[[], int]
) -> Iterator[R]:
    """``map`` in threads, in order, with at most ``limit()`` results waiting or under way.

    ``limit`` is called again for every item, so it can depend on the size of the pictures.
    """
    waiting: deque[Future[R]] = deque()
    source = iter(items)
    try:
        while True:
            while len(waiting) < max(1, limit()):
                try:
                    waiting.append(pool.submit(function, next(source)))
                except StopIteration:
                    break
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def ahead_within(
    pool: Executor,
    function: Callable[[T], R],
    items: Iterable[T],
    cost: Callable[[R], int],
    *,
    budget: int,
    count: int,
    threads: int,
) -> Iterator[R]:
    """``map`` in threads, in order, with a bound on the cost of the results that wait.

    The cost of an item is known only when it is done. So at most ``threads`` items are under way,
    and each starts the next one as it ends, without waiting for the caller, while the waiting
    results cost less than ``budget`` and fewer than ``count`` items wait or are under way. The
    waiting results thus cost less than ``budget`` plus ``threads`` of the most expensive items.
    """
    lock = Lock()  # guards the variables below
    source = iter(items)
    waiting: deque[Future[R]] = deque()
    running = held = 0
    ended = False

    def fill() -> None:
        nonlocal running, ended
        while not ended and running < threads and len(waiting) < count and held < budget:
            try:
                waiting.append(pool.submit(work, next(source)))
                running += 1
            except StopIteration:
                ended = True
            except BaseException as error:  # raised to the caller after the earlier items
                ended = True
                waiting.append(Future())
                waiting[-1].set_exception(error)

    def work(item: T) -> R:
        nonlocal running, held, ended
        try:
            result = function(item)
        except BaseException:
            with lock:
                running, ended = running - 1, True
            raise
        with lock:
            running, held = running - 1, held + cost(result)
            fill()
        return result

    try:
        while True:
            with lock:
                fill()
                if not waiting:
                    return
                first = waiting.popleft()
            result = first.result()
            with lock:
                held -= cost(result)
            yield result
            del first, result  # otherwise it stays in memory until the next one is done
    finally:
        with lock:
            ended = True
        for future in waiting:
            future.cancel()
        waiting.clear()  # ``fill`` and ``work`` refer to each other, so they live on for a while
