"""Batches that memory can hold: of similar pictures, and smaller ones where a batch fails."""

from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from typing import TypeVar

from .numerics.memory import is_out_of_memory, release_memory

T = TypeVar("T")
R = TypeVar("R")


def batches_by_size(
    sizes: Sequence[tuple[int, int]], batch_size: int, batch_pixels: int
) -> Iterator[list[int]]:
    """Positions of ``sizes`` (height, width) in batches of similar ones.

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

    An item that costs more is a group of its own. A ``budget`` that is a function is asked for
    every item. With ``first`` groups begin at that number of items and double until ``most``. The
    caller may clear a group to let its items go.
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
    """The items one by one, each of which is then no longer held by ``items``."""
    items.reverse()
    while items:
        yield items.pop()


def one_by_one_on_error(
    function: Callable[[list[T]], Sequence[R]], batch: list[T]
) -> list[R | Exception]:
    """``function(batch)``; if it raises, each item alone, with its exception where it fails again.

    One picture that the codec cannot do must not take its neighbours with it. Where memory runs
    out, the batch is halved instead, and halved again, down to single items.
    """
    try:
        return list(function(batch))
    except Exception as error:
        short = is_out_of_memory(error)
        if len(batch) == 1:
            return [error.with_traceback(None)]  # its frames would hold the memory
    return in_parts(function, batch, short)


def in_parts(
    function: Callable[[list[T]], Sequence[R]], batch: list[T], short: bool
) -> list[R | Exception]:
    """What to do with a batch that failed: halves if memory was ``short``, else one by one."""
    if short:
        release_memory()
    step = max(1, len(batch) // 2) if short else 1
    parts = [batch[at : at + step] for at in range(0, len(batch), step)]
    return [result for part in parts for result in one_by_one_on_error(function, part)]
