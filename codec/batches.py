"""Makes batches that fit into memory, and tries smaller ones if a batch fails."""

from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from typing import TypeVar

from .numerics.memory import is_out_of_memory, release_memory

T = TypeVar("T")
R = TypeVar("R")


def batches_by_size(
    sizes: Sequence[tuple[int, int]], batch_size: int, batch_pixels: int
) -> Iterator[list[int]]:
    """Positions in ``sizes`` (height, width), in batches of similar sizes.

    A batch has at most ``batch_size`` pictures and, unless it is a single one, at most
    ``batch_pixels`` pixels.
    """
    order = sorted(range(len(sizes)), key=lambda position: sizes[position])
    return windows(order, lambda n: sizes[n][0] * sizes[n][1], batch_pixels, batch_size)


def windows(
    items: Iterable[T],
    cost: Callable[[T], int],
    budget: int | Callable[[], int],
    most: int,
    first: int | None = None,
) -> Iterator[list[T]]:
    """Groups of at most ``most`` items that cost at most ``budget`` together.

    An item that costs more is a group of its own. A ``budget`` that is a function is called for
    every item. With ``first``, the first group has so many items, and each next one twice as many,
    until ``most``. The caller may clear a group to free its items.
    """
    window: list[T] = []
    total, limit = 0, min(most if first is None else first, most)
    for item in items:
        more = cost(item)
        room = budget() if callable(budget) else budget
        if window and (len(window) == limit or total + more > room):
            yield window
            window, total, limit = [], 0, min(2 * limit, most)
        window.append(item)
        total += more
    if window:
        yield window


def taken(items: MutableSequence[T]) -> Iterator[T]:
    """The items one by one. Each is removed from ``items``, so that it can be freed."""
    items.reverse()
    while items:
        yield items.pop()


def one_by_one_on_error(
    function: Callable[[list[T]], Sequence[R]], batch: list[T]
) -> list[R | Exception]:
    """``function(batch)``. If it fails, each item alone, with its exception if it fails again.

    So one picture that the codec cannot handle does not spoil the others. If memory runs out, the
    batch is halved instead, again and again, down to single items.
    """
    try:
        return list(function(batch))
    except Exception as error:
        short = is_out_of_memory(error)
        if len(batch) == 1:
            return [error.with_traceback(None)]  # frames of the traceback would hold the memory
    return in_parts(function, batch, short)


def in_parts(
    function: Callable[[list[T]], Sequence[R]], batch: list[T], short: bool
) -> list[R | Exception]:
    """Try a failed batch again: in halves if memory was ``short``, otherwise one by one."""
    if short:
        release_memory()
    step = max(1, len(batch) // 2) if short else 1
    parts = [batch[at : at + step] for at in range(0, len(batch), step)]
    return [result for part in parts for result in one_by_one_on_error(function, part)]
